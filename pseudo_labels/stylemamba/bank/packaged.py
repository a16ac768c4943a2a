"""The bank that ships, and one photo restyled with it."""

import functools
from importlib import resources
from pathlib import Path
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from pseudo_labels.compose import composite
from pseudo_labels.stylemamba.bank.saved import FACTS_FILE, StyleBank, load_bank
from pseudo_labels.stylemamba.bank.words import FAR, style_weights
from pseudo_labels.stylemamba.networks import find_region
from pseudo_labels.stylemamba.saved import png_metadata
from regionroute.data.images import read_image, write_image
from regionroute.errors import UserError
from regionroute.files import file_hash, write_json
from regionroute.models.embedded import PHOTOS
from regionroute.settings_files import versions

_REGION = 0.5  # boundary of a region in the base's map


def packaged_folder() -> Path:
    """Folder of the bank that ships.

    Raises:
        UserError: the installation lacks it.
    """
    folder = Path(str(resources.files("pseudo_labels.stylemamba.bank"))) / "weights"
    if not (folder / FACTS_FILE).is_file():
        raise UserError(f"the packaged style bank has no files at {folder}: reinstall the package")
    return folder


@functools.cache
def packaged_bank() -> StyleBank:
    """The bank that ships, loaded once."""
    return load_bank(packaged_folder())


def described(bank: StyleBank, words: str) -> tuple[Tensor, dict[str, float], list[str]]:
    """What a description means in a bank.

    Returns:
        Weights [S]; the styles with their weights, largest first; warnings.

    Raises:
        UserError: the description is empty.
    """
    weights, score = style_weights(words, dict(bank.styles))
    names = [name for name, _ in bank.styles]
    order = weights.argsort(descending=True).tolist()
    used = {names[i]: round(float(weights[i]), 3) for i in order if weights[i] > 0}
    warnings = []
    if score < FAR:
        warnings.append(
            f"no style of the bank is near '{words}', the nearest is used; there are "
            f"{', '.join(names)}"
        )
    return weights, used, warnings


def apply_bank(
    photo: str | Path,
    style: str,
    out: str | Path,
    *,
    bank: str | Path | None = None,
    strength: float = 1.0,
    region: str | None = None,
    labels: str | None = None,
    word: str | None = None,
    feather: int = 0,
) -> dict[str, Any]:
    """Restyle a photo, or one object of it, in a style given by words.

    Args:
        photo: image file.
        style: description.
        out: PNG to write, of the photo's size; a JSON file next to it holds every setting.
        bank: folder of a bank; None: the one that ships.
        strength: 0 is the photo, 1 the style.
        region: restyle only this object: a mask's file, or with `labels` a word.
        labels: labels file that holds the masks of words.
        word: restyle only this object, found by the default base.
        feather: width of the soft edge inside the region, pixels.

    Returns:
        The settings, as written; "warnings" among them if there are any.

    Raises:
        UserError: files that cannot be used.
    """
    photo, out = Path(photo), Path(out)
    image = read_image(photo)
    folder = packaged_folder() if bank is None else Path(bank)
    loaded = packaged_bank() if bank is None else load_bank(folder)
    weights, used, warnings = described(loaded, style)
    mask = None
    if word is not None:
        mask, more = object_mask(image, word)
        warnings += more
    elif region is not None:
        mask = find_region(region, photo, labels)
    styled = loaded.paint(image[None], weights, strength)[0]
    if mask is not None:
        styled = composite(image, styled, mask, feather)
    facts: dict[str, Any] = {
        "photo": photo.name,
        "style": style,
        "styles": used,
        "strength": strength,
        "region": word or region,
        "feather": feather if mask is not None else None,
        "bank": file_hash(folder / FACTS_FILE)[:16],
        "versions": versions(),
    }
    if warnings:
        facts["warnings"] = warnings
    write_json(out.with_suffix(".json"), facts)
    write_image(out, styled, png_metadata(facts))
    return facts


def object_mask(image: Tensor, word: str) -> tuple[Tensor, list[str]]:
    """Where the default base sees an object.

    Args:
        image: [3, H, W] in [0, 1].
        word: the object.

    Returns:
        Mask [1, H, W] in {0, 1}, and warnings.

    Raises:
        UserError: the base does not find the object, or takes it for absent as `edit` does.
    """
    pipe = _base()
    # Of strength 0: only the map is wanted.
    edit = pipe(image, word, pipe.styles[0], strength=0.0, refine_crop=False, output_type="pt")
    [found], [facts] = edit.region_maps, edit.metadata
    size = (image.shape[-2], image.shape[-1])
    mask = F.interpolate(found[None, None].float(), size, mode="bilinear")[0] >= _REGION
    if "left_unchanged" in facts or not mask.any():
        raise UserError(f"--object {word}: not found in the photo, give its mask with --region")
    return mask.float(), list(facts.get("warnings", ()))


@functools.cache
def _base() -> Any:
    """The default base with its experts, loaded once."""
    from regionroute.pipeline import RegionRoutePipeline

    return RegionRoutePipeline.from_pretrained(PHOTOS)
