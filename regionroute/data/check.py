"""Opens everything a manifest names and lists what is wrong with it."""

import random
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor
from tqdm import tqdm

from regionroute.data.images import from_pil, read_image, read_mask, to_pil, write_image
from regionroute.data.manifest import EditSample, Manifest, Region, manifest_file, parse_rows
from regionroute.data.prompts import find_spans, object_words
from regionroute.errors import UserError
from regionroute.files import AnyPath

CELL, LINE, GAP = 160, 16, 6  # contact sheet: cell side, line of text, space between, in pixels
SAME = 0.5 / 255  # largest difference of equal pixels
TINTS = ((1.0, 0.35, 0.1), (0.1, 0.65, 1.0), (0.3, 0.9, 0.3), (0.9, 0.3, 0.9))


@dataclass(frozen=True)
class CheckReport:
    """What a manifest holds and what is wrong with it.

    Attributes:
        counts: "samples", "regions", and by name "splits", "objects", "styles", "flags".
        problems: one sentence each; empty for a valid manifest.
    """

    counts: dict[str, int | dict[str, int]]
    problems: list[str]


def check_manifest(path: AnyPath) -> CheckReport:
    """Open every image of every row; a problem is noted and the rest is still checked.

    Args:
        path: ``manifest.jsonl`` or its folder.

    Returns:
        Counts over the readable rows, and the problems: invalid rows, missing or damaged images,
        sizes that differ, empty masks, boxes outside the image or the mask, scores outside [0,1],
        targets that differ from the context outside the masks or equal it inside one, phrases that
        are not in the prompt, spans that mark other words than the region's object and style.

    Raises:
        UserError: there is no manifest.
    """
    manifest, problems = read_leniently(path)
    if not manifest.samples and not problems:
        problems.append(f"{manifest_file(path)}: the manifest holds no samples")
    styles = {region.style for sample in manifest.samples for region in sample.regions}
    for sample in tqdm(manifest.samples, desc="check", unit="pair", disable=None):
        problems += [f"{sample.id}: {problem}" for problem in _problems(manifest, sample, styles)]
    return CheckReport(_counts(manifest.samples), problems)


def read_leniently(path: AnyPath) -> tuple[Manifest, list[str]]:
    """The valid rows of a manifest, and what is wrong with the others.

    Args:
        path: ``manifest.jsonl``, its folder, or shards.

    Raises:
        UserError: there is no manifest.
    """
    file = manifest_file(path)
    rows = list(parse_rows(path if isinstance(path, Path) else Path(path)))
    samples = [row for row in rows if isinstance(row, EditSample)]
    return Manifest(file.parent, samples), [str(row) for row in rows if isinstance(row, UserError)]


def _counts(samples: Sequence[EditSample]) -> dict[str, int | dict[str, int]]:
    regions = [region for sample in samples for region in sample.regions]

    def by_name(names: Iterator[str]) -> dict[str, int]:
        return dict(Counter(names).most_common())

    return {
        "samples": len(samples),
        "regions": len(regions),
        "splits": by_name(sample.split for sample in samples),
        "objects": by_name(region.object for region in regions),
        "styles": by_name(region.style for region in regions),
        "flags": by_name(flag for sample in samples for flag in sample.flags),
    }


def _problems(manifest: Manifest, sample: EditSample, styles: Collection[str]) -> Iterator[str]:
    for region in sample.regions:
        yield from _prompt_problems(sample, region, styles)
        if not 0 <= region.score <= 1:
            yield f"score {region.score} of {region.object!r} is not between 0 and 1"
    try:
        context = manifest.context(sample)
    except UserError as error:
        yield str(error)
        return  # nothing else can be compared without it
    size = (context.shape[1], context.shape[2])
    masks = []
    for region in sample.regions:
        try:
            mask = read_mask(manifest.path(region.mask), size)
        except UserError as error:
            yield str(error)
            continue
        yield from _region_problems(region, mask)
        masks.append(mask)
    try:
        target = manifest.target(sample)
    except UserError as error:
        yield str(error)
        return
    if len(masks) == len(sample.regions):
        yield from _target_problems(sample, context, target, masks)


def _region_problems(region: Region, mask: Tensor) -> Iterator[str]:
    height, width = mask.shape[1:]
    y0, x0, y1, x1 = region.box
    if not (0 <= y0 < y1 <= height and 0 <= x0 < x1 <= width):
        yield f"box {region.box} of {region.object!r} is not within the {width}x{height} image"
    elif not mask[:, y0:y1, x0:x1].any():
        yield f"box {region.box} of {region.object!r} does not touch its mask {region.mask}"


def _target_problems(
    sample: EditSample, context: Tensor, target: Tensor, masks: Sequence[Tensor]
) -> Iterator[str]:
    """Where the target changes what it must not, or nothing where it must."""
    changed = (context - target).abs().amax(0, keepdim=True)
    if not masks:
        if changed.amax() <= SAME:
            yield "the target equals the context, so the pair shows no edit"
        return
    for region, mask in zip(sample.regions, masks, strict=True):
        if (changed * mask).amax() <= SAME:
            yield (
                f"the target equals the context inside the mask {region.mask} of "
                f"{region.object!r}, so the pair shows no edit there"
            )
    outside = changed * (1 - torch.stack(list(masks)).amax(0))
    if outside.amax() > SAME:
        count, most = int((outside > SAME).sum()), float(outside.amax()) * 255
        yield (
            f"the target differs from the context outside the masks, in {count} pixels by up to "
            f"{most:.0f} of 255"
        )


def _prompt_problems(sample: EditSample, region: Region, styles: Collection[str]) -> Iterator[str]:
    prompt = sample.prompt
    for kind, span in (("object", region.object_span), ("style", region.style_span)):
        if span is None:
            continue
        marked = prompt[max(span[0], 0) : max(span[1], 0)]
        if not marked.strip():
            yield f"{kind}_span {span} marks nothing in prompt {prompt!r}"
        elif kind == "object" and not _same_words(marked, region.object):
            yield f"object_span {span} marks {marked!r}, but the object is {region.object!r}"
        elif kind == "style" and not _marks_style(sample, region, marked, styles):
            yield f"style_span {span} marks {marked!r}, but the style is {region.style!r}"
    if None in (region.object_span, region.style_span):
        try:
            find_spans(prompt, region.object, region.style)
        except UserError as error:
            yield str(error)


def _marks_style(sample: EditSample, region: Region, marked: str, styles: Collection[str]) -> bool:
    """Whether the marked words can stand for the region's style.

    A style may be called otherwise in prompts than by its name ("line-art" for "lines"). So the
    provenance's ``style_words`` are right too, and whatever the template has in the style's place
    after the object, unless that is the name of another style.
    """
    given = sample.provenance.get("style_words")
    if _same_words(marked, region.style) or (isinstance(given, str) and _same_words(marked, given)):
        return True
    start, end = region.style_span or (0, 0)
    words = " ".join(region.object.split())
    in_template = sample.prompt[:start].endswith(f" {words} in ")
    in_template &= sample.prompt[end:].startswith(" style")
    return in_template and not any(_same_words(marked, style) for style in styles)


def _same_words(one: str, other: str) -> bool:
    return object_words(one) == object_words(other)


def contact_sheet(manifest: Manifest, out_png: AnyPath, limit: int = 24) -> None:
    """Draw context | masks | target of a random choice of samples, the same one each time.

    The line above each row names the sample's id, object words and styles. Images that cannot be
    read stay grey.

    Args:
        manifest: the samples.
        out_png: file to write.
        limit: the largest number of samples drawn.

    Raises:
        UserError: the manifest holds no samples, or the name does not end in ``.png``.
    """
    samples = manifest.samples
    if not samples:
        raise UserError(f"{manifest.root}: the manifest holds no samples to draw")
    # Not every n-th: rows often repeat styles or words in a fixed period.
    lot = random.Random(0).sample(range(len(samples)), min(limit, len(samples)))
    shown = [samples[index] for index in sorted(lot)]
    columns = 1 if len(shown) <= 6 else 2
    width, height = 3 * (CELL + GAP) + GAP, 2 * LINE + CELL + GAP
    sheet = Image.new("RGB", (columns * width, -(-len(shown) // columns) * height + GAP), "white")
    for index, sample in enumerate(shown):
        corner = (index % columns * width + GAP, index // columns * height + GAP)
        _draw_sample(sheet, corner, manifest, sample)
    write_image(out_png, from_pil(sheet))


def _draw_sample(
    sheet: Image.Image, corner: tuple[int, int], manifest: Manifest, sample: EditSample
) -> None:
    left, top = corner
    words = ", ".join(f"{region.object}: {region.style}" for region in sample.regions)
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(12)
    for line, text in enumerate((sample.id, words or sample.prompt)):
        text = " ".join(text.split())
        while draw.textlength(text, font) > 3 * CELL + 2 * GAP:
            text = text[:-2] + "…"
        draw.text((left, top + line * LINE), text, "black", font)
    for column, image in enumerate(_cells(manifest, sample)):
        cell = Image.new("RGB", (CELL, CELL), (225, 225, 225))
        if image is not None:
            picture = to_pil(image)
            picture.thumbnail((CELL, CELL), Image.Resampling.LANCZOS)
            scale = max(1, CELL // max(picture.size))  # small pictures: whole multiples, sharp
            picture = picture.resize(
                (picture.width * scale, picture.height * scale), Image.Resampling.NEAREST
            )
            cell.paste(picture, ((CELL - picture.width) // 2, (CELL - picture.height) // 2))
        sheet.paste(cell, (left + column * (CELL + GAP), top + 2 * LINE))


def _cells(manifest: Manifest, sample: EditSample) -> list[Tensor | None]:
    """Context, context with the masks in colour, target; None where a file cannot be read."""

    def attempt(relative: str) -> Tensor | None:
        try:
            return read_image(manifest.path(relative))
        except UserError:
            return None

    context, overlay = attempt(sample.context), None
    if context is not None:
        try:
            overlay = _overlay(context, manifest.masks(sample))
        except UserError:
            overlay = None
    return [context, overlay, attempt(sample.target)]


def _overlay(context: Tensor, masks: Tensor) -> Tensor:
    """The context, dimmed outside the masks [S,1,H,W] and tinted inside, one colour a region."""
    overlay = context * 0.3
    for index, mask in enumerate(masks):
        tint = torch.tensor(TINTS[index % len(TINTS)])[:, None, None]
        overlay = torch.where(mask > 0, 0.65 * context + 0.35 * tint, overlay)
    return overlay
