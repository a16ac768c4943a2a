"""Test photos, targets and example images of bench/moe_photos.py."""

import random
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from _photo_pairs import Case
from torch import Tensor

from pseudo_labels.stylize.painting import PaintingSettings, PaintingStylizer
from pseudo_labels.stylize.registry import load_styles
from regionroute.data.images import read_image, read_mask, resize
from regionroute.data.manifest import StyleSpec, load_manifest
from regionroute.editing.editor import Editor
from regionroute.errors import UserError

UNSEEN_PAINTINGS = (4, 15, 18, 20, 22, 25)
_NO_STYLE = StyleSpec("style")  # these stylizers do not read it


class Shown(NamedTuple):
    """A test case, its group, and the example image [3,H,W] of its style."""

    group: str
    case: Case
    example: Tensor


def cases(out: Path, editor: Editor, artworks: Path, photos: int) -> list[Shown]:
    """Test photos with targets and examples; the styles take turns."""
    read = load_manifest(out / "pairs")
    pictures = out / "style_pictures"
    known = load_styles("small_experts")
    trained = {entry.spec.name: entry for entry in [*known, *load_styles(out / "styles.yaml")]}
    tests = [s for s in read.samples if s.split == "test" and len(s.regions) == 1]
    random.Random(0).shuffle(tests)
    named = {entry.spec.name for entry in known}
    styles = [
        name for turn in range(photos) for name in sorted(trained) if turn == 0 or name in named
    ]
    if len(styles) > len(tests):
        raise UserError(f"{out}: {len(tests)} test photos, {len(styles)} edits: lower --photos")
    found = [
        Shown(
            "named" if name in named else "more",
            _case(read, editor, sample, name, trained[name].build()),
            _a_picture(pictures / name, index),
        )
        for index, (name, sample) in enumerate(zip(styles, tests, strict=False))
    ]
    others = [s for s in read.samples if s.split == "train" and "collage" not in s.flags]
    random.Random(1).shuffle(others)
    for turn in range(photos):
        for index, number in enumerate(UNSEEN_PAINTINGS):
            painter = PaintingStylizer(PaintingSettings(style=number, scale=2))
            place = turn * len(UNSEEN_PAINTINGS) + index
            case = _case(read, editor, tests[place], f"painting-{number}", painter)
            other = read_image(read.path(others[place].context))
            example = painter.stylize(other, _NO_STYLE)
            found.append(Shown("unseen paintings", case, example))
        for index, file in enumerate(sorted(artworks.glob("*.jpg"))):
            painter = PaintingStylizer(PaintingSettings(reference=str(file)))
            place = turn * 12 + index + 40
            case = _case(read, editor, tests[place], file.stem, painter)
            found.append(Shown("unseen artworks", case, read_image(file)))
    return found


def _case(read: Any, editor: Editor, sample: Any, style: str, stylizer: Any) -> Case:
    """A test photo at the model's size; the target, painted at that of training pairs, inside."""
    image = read_image(read.path(sample.context))
    target = stylizer.stylize(image, _NO_STYLE)
    size = editor.backbone.fit_size(image.shape[-2], image.shape[-1])
    region = sample.regions[0]
    mask = F.interpolate(read_mask(read.path(region.mask))[None], size, mode="area")[0] >= 0.5
    image, target = (resize(x[None], size)[0].clamp(0, 1) for x in (image, target))
    return Case(
        sample.context,
        image,
        torch.where(mask, target, image),  # LPIPS sees some of the background
        mask.float(),
        region.object,
        style,
        style,
        tuple(sample.flags),
    )


def _a_picture(folder: Path, index: int) -> Tensor:
    """An image of a trained style, of a training photo."""
    files = sorted(file for file in folder.iterdir() if not file.name.startswith("reference"))
    return read_image(files[index * 7919 % len(files)])
