"""Builds object banks (`regionroute.data.object_bank`) from photos with masks.

No rendering restyles a single region: that is what RegionRoute's training adds, exactly as on a
large base.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from pseudo_labels.bank.tasks import COLOURS, recolour
from pseudo_labels.job import BuiltStyle
from pseudo_labels.segment import resize_mask
from pseudo_labels.segment.given import LabelledPhoto, content_hash, open_photo, read_label_files
from pseudo_labels.stylize.registry import load_styles
from regionroute.data.images import from_pil, to_pil
from regionroute.data.object_bank import (
    IMAGES,
    INDEX,
    PHOTO,
    BankIndex,
    BankPhoto,
    Rendering,
    open_rendering,
    read_index,
    rendering_file,
    write_index,
    write_photos,
    write_rendering,
)
from regionroute.engines.local import default_workers, map_in_order
from regionroute.errors import UserError
from regionroute.files import check_output_folder, file_hash, settings_hash, text_hash

_MIN_AREA = 0.005  # share of the square below which an object is skipped
_REVISION = 1


@dataclasses.dataclass(frozen=True)
class Square:
    """One photo of a bank.

    Attributes:
        image: [3,S,S] uint8.
        masks: [N,S,S] uint8 in {0,1}, one per object.
        row: its row of the index.
        skipped: one sentence per object that could not be used.
    """

    image: Tensor
    masks: Tensor
    row: BankPhoto
    skipped: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class _Job:
    """A rendering to make, and the function that paints one photo [3,S,S] in [0,1] so."""

    row: Rendering
    paint: Callable[[Tensor], Tensor]


def make_bank(
    labels: Sequence[str | Path],
    out: Path,
    *,
    images: str | Path | None = None,
    styles: str | Path | None = "photos",
    only: Sequence[str] | None = None,
    side: int = 160,
    test_share: float = 0.1,
    workers: int | None = None,
) -> tuple[int, list[str]]:
    """Write a bank from labels files, see `build_bank`.

    Args:
        labels: labels files with masks; a photo that several name has the objects of all.
        out: folder of the bank.
        images: folder of the photos, None: each labels file's own.
        styles: styles file, or the name of a packaged one; None: photos only.
        only: these styles of the file, None for all.
        side: of the square images, pixels.
        test_share: fraction of the photos that is kept for validation.
        workers: processes, None to choose.

    Returns:
        The number of photos, and a sentence for each photo that was skipped.

    Raises:
        UserError: files that cannot be used, or not one photo in them.
    """
    check_output_folder(out)
    built = None
    if styles is not None:
        built = [BuiltStyle(entry, entry.build()) for entry in load_styles(styles, only)]
    photos, rejected = read_label_files(labels, images)
    skipped = [item.reason for item in rejected]
    if not photos:
        names = ", ".join(map(str, labels))
        first = f"; the first row that is refused: {skipped[0]}" if skipped else ""
        raise UserError(f"{names}: no photo is named here{first}")
    count, unusable = build_bank(photos, built, out, side, test_share, workers)
    return count, [*skipped, *unusable]


def build_bank(
    photos: Sequence[LabelledPhoto],
    styles: Sequence[BuiltStyle] | None,
    out: Path,
    side: int,
    test_share: float,
    workers: int | None = None,
) -> tuple[int, list[str]]:
    """Write a bank. Run again, it makes only what is missing.

    Args:
        photos: photos with masks.
        styles: the styles; None: photos only.
        out: folder of the bank.
        side: S, pixels; photos are scaled to this shorter side and cropped around their objects.
        test_share: share of the photos that is kept for validation; chosen by their content; of
            100 photos or more those that `regionroute label` chooses.
        workers: processes, None to choose.

    Returns:
        The number of photos, and a sentence for each photo that was skipped.

    Raises:
        UserError: the folder holds another data set, or no photo can be used.
    """
    if workers is None:
        workers = default_workers(len(photos), jobs_per_worker=200)
    key = settings_hash([_REVISION, side, test_share, [_photo_key(photo) for photo in photos]])
    index = _kept_index(out, key)
    if index is None:
        index = _write_photos(photos, out, side, test_share, workers)
        index.key = key
        write_index(out, index)
    for name, job in _renderings(styles).items():
        if index.renderings.get(name) == job.row and rendering_file(out, name).exists():
            continue
        rendered = _render(_images(out), job.paint, name, workers)
        write_rendering(out, name, rendered)
        index.renderings[name] = job.row
        write_index(out, index)
    return len(index.photos), index.skipped


def _images(out: Path) -> Tensor:
    """The photos of a bank, uint8 [P,3,S,S]."""
    with open_rendering(out, PHOTO) as file:
        images: Tensor = file.get_tensor(IMAGES)
    return images


def _renderings(styles: Sequence[BuiltStyle] | None) -> dict[str, _Job]:
    """Name -> job of every rendering; none for None."""
    jobs: dict[str, _Job] = {}
    if styles is None:
        return jobs
    for style in styles:
        row = Rendering(kind="style", words=style.entry.spec.words, key=style.stylizer.fingerprint)
        paint = functools.partial(style.stylizer.stylize, style=style.entry.spec)
        jobs[style.entry.spec.name] = _Job(row, paint)
    for colour in COLOURS:
        row = Rendering(kind="colour", words=colour, key=f"colour {_REVISION}")
        jobs[f"colour-{colour}"] = _Job(row, functools.partial(recolour, colour=colour))
    return jobs


def _photo_key(photo: LabelledPhoto) -> list[Any]:
    shown = [
        [item.word, _contents(item.mask) if item.mask else item.outline and text_hash(item.outline)]
        for item in photo.objects
    ]
    return [photo.name, _contents(photo.path), shown]


def _contents(path: Path) -> str:
    """Hash of a file; "" where there is none to read, which the building reports."""
    try:
        return file_hash(path)
    except (UserError, OSError):
        return ""


def _kept_index(out: Path, key: str) -> BankIndex | None:
    """The index of a bank of the same photos; None when there is none yet."""
    if not (out / INDEX).exists():
        if out.exists() and any(out.iterdir()):
            raise UserError(f"{out}: this folder holds other files, give a new folder for the bank")
        return None
    index = read_index(out)
    if index.key != key:
        raise UserError(
            f"{out}: this folder holds a bank of other photos, another size or an earlier version, "
            "give a new folder"
        )
    return index if rendering_file(out, PHOTO).exists() else None


def _write_photos(
    photos: Sequence[LabelledPhoto], out: Path, side: int, test_share: float, workers: int
) -> BankIndex:
    work = functools.partial(_try_square, side=side, test_share=test_share)
    results = map_in_order(work, photos, workers, chunk=16)
    squares, skipped = [], []
    for result in tqdm(results, total=len(photos), desc="photos", unit="photo"):
        if isinstance(result, str):
            skipped.append(result)
        else:
            squares.append(result)
            skipped += result.skipped
    if not squares:
        first = f"; the first: {skipped[0]}" if skipped else ""
        raise UserError(f"none of {len(photos)} photos can be used{first}")
    images = torch.stack([square.image for square in squares])
    write_photos(out, images, torch.cat([square.masks for square in squares]))
    rows = [square.row for square in squares]
    return BankIndex(side=side, photos=rows, renderings={}, skipped=skipped)


def _try_square(photo: LabelledPhoto, side: int, test_share: float) -> Square | str:
    try:
        return photo_square(photo, side, test_share)
    except UserError as error:
        return str(error)


def photo_square(photo: LabelledPhoto, side: int, test_share: float) -> Square:
    """Crop a photo to a square around its objects.

    Args:
        photo: the photo.
        side: S, pixels.
        test_share: see `build_bank`.

    Returns:
        Image, masks and row.

    Raises:
        UserError: the photo cannot be read, or none of its objects is in the square.
    """
    key = content_hash(photo)
    image, segments, rejected = open_photo(photo)
    if not segments:
        reason = f": {rejected[0].reason}" if rejected else ""
        raise UserError(f"{photo.path}: none of its objects has a mask{reason}")
    height, width = image.shape[-2:]
    scale = side / min(height, width)
    size = (max(side, round(height * scale)), max(side, round(width * scale)))
    small = from_pil(to_pil(image).resize((size[1], size[0]), Image.Resampling.LANCZOS))
    masks = torch.cat([_scaled(segment.mask, size) for segment in segments])
    top, left = _corner(masks.amax(0), side)
    window = (slice(top, top + side), slice(left, left + side))
    cut = masks[:, *window]
    kept = [i for i, mask in enumerate(cut) if mask.mean() >= _MIN_AREA]
    if not kept:
        raise UserError(f"{photo.path}: its objects cover less than {_MIN_AREA:.1%} of it")
    row = {
        "file": photo.name,
        "split": "test" if int(text_hash(key)[:8], 16) / 16**8 < test_share else "train",
        "words": [segments[i].word.casefold() for i in kept],
        **photo.facts,
    }
    pixels = (small[:, *window] * 255).round().to(torch.uint8)
    unusable = tuple(f"{photo.path}: the {item.word}: {item.reason}" for item in rejected)
    photo_row = BankPhoto.model_validate(row)
    return Square(pixels.contiguous(), cut[kept].to(torch.uint8), photo_row, unusable)


def _scaled(mask: Tensor, size: tuple[int, int]) -> Tensor:
    """As `resize_mask`, but a mask that vanishes is empty."""
    try:
        return resize_mask(mask, size)
    except UserError:
        return mask.new_zeros(1, *size)


def _corner(covered: Tensor, side: int) -> tuple[int, int]:
    """Top left of the square whose centre is nearest to that of the covered area [H,W]."""
    corner = []
    for length, weights in zip(covered.shape, (covered.sum(1), covered.sum(0)), strict=True):
        places = torch.arange(length, dtype=torch.float32)
        middle = float((places * weights).sum() / weights.sum().clamp(min=1e-6))
        corner.append(min(max(0, round(middle - side / 2)), length - side))
    return corner[0], corner[1]


def _render(images: Tensor, render: Callable[[Tensor], Tensor], name: str, workers: int) -> Tensor:
    chunks = images.split(32)
    work = functools.partial(_render_chunk, render=render)
    results = map_in_order(work, [chunk.numpy() for chunk in chunks], workers)
    bar = tqdm(results, total=len(chunks), desc=name, unit="x32")
    return torch.cat([torch.from_numpy(part) for part in bar])


def _render_chunk(images: Any, render: Callable[[Tensor], Tensor]) -> Any:
    """uint8 arrays [N,3,S,S] in and out; cheaper to send than tensors."""
    torch.set_num_threads(1)
    painted = [render(torch.from_numpy(image).float() / 255) for image in images]
    return (torch.stack(painted).clamp(0, 1) * 255).round().to(torch.uint8).numpy()
