"""What an embedded base learns photos from: pictures, masks, words and whole restyled pictures.

A bank holds every photo as one square, its objects' masks and words, and the whole photo in every
style and every colour. Pre-training (`train.pretrain.photo_pairs`) composes its pairs from these:
cut and paste commute with a style that is painted before, so any composition of photos can be had
in any style without painting again. Nothing in it restyles a region: that is what RegionRoute
training adds, exactly as on a large base.

    bank.json             side, photos (file, split, licence, words), renderings and their kinds
    photos.safetensors    "pictures" [P,3,S,S] and "masks" [M,S,S], uint8
    NAME.safetensors      "pictures" [P,3,S,S] uint8, one file a rendering
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor
from tqdm import tqdm

from pseudo_labels.bank.tasks import COLOURS, recolour
from pseudo_labels.job import Look
from pseudo_labels.parallel import default_workers, map_in_order
from pseudo_labels.segment import resize_mask
from pseudo_labels.segment.given import LabelledPhoto, content_hash, open_photo
from regionroute.data.images import from_pil, to_pil
from regionroute.errors import UserError
from regionroute.files import (
    atomic_write,
    read_json,
    settings_hash,
    text_hash,
    write_json,
)

INDEX, PHOTOS = "bank.json", "photos.safetensors"
_LEAST_AREA = 0.005  # share of the square below which an object is left out
_REVISION = 1


@dataclasses.dataclass(frozen=True)
class Square:
    """One photo of a bank.

    Attributes:
        picture: [3,S,S] uint8.
        masks: [N,S,S] uint8 in {0,1}, one an object.
        facts: its row of the index.
    """

    picture: Tensor
    masks: Tensor
    facts: dict[str, Any]


def build_bank(
    photos: Sequence[LabelledPhoto],
    looks: Sequence[Look],
    out: Path,
    side: int,
    test_share: float,
    workers: int | None = None,
) -> tuple[int, list[str]]:
    """Write a bank; what an interrupted run has finished is kept.

    Args:
        photos: photos with masks.
        looks: the styles.
        out: folder of the bank.
        side: S, pixels; photos are scaled to this shorter side and cut around their objects.
        test_share: share of the photos, chosen by their content as `regionroute label` does, that
            is kept for validation.
        workers: processes, None to choose.

    Returns:
        The number of photos, and a sentence for each that was left out.

    Raises:
        UserError: another data set lies in the folder, or no photo can be used.
    """
    if workers is None:
        workers = default_workers(len(photos), jobs_per_worker=200)
    key = settings_hash([_REVISION, side, test_share, [_photo_key(photo) for photo in photos]])
    index = _kept_index(out, key)
    if index is None:
        index = _write_photos(photos, out, side, test_share, workers) | {"key": key}
        write_json(out / INDEX, index)
    pictures = load_file(out / PHOTOS)["pictures"]
    for name, (kind, words, key, render) in _renderings(looks).items():
        row = {"kind": kind, "words": words, "key": key}
        if index["renderings"].get(name) == row and (out / f"{name}.safetensors").exists():
            continue
        rendered = _render(pictures, render, name, workers)
        with atomic_write(out / f"{name}.safetensors") as temporary:
            save_file({"pictures": rendered}, temporary)
        index["renderings"][name] = row
        write_json(out / INDEX, index)
    return len(pictures), index["left_out"]


def _renderings(
    looks: Sequence[Look],
) -> dict[str, tuple[str, str, str, Callable[[Tensor], Tensor]]]:
    """Name -> kind, words, key and function of every rendering."""
    found: dict[str, tuple[str, str, str, Callable[[Tensor], Tensor]]] = {
        look.entry.spec.name: (
            "style",
            look.entry.spec.words,
            look.stylizer.fingerprint,
            functools.partial(look.stylizer.stylize, style=look.entry.spec),
        )
        for look in looks
    }
    for colour in COLOURS:
        paint = functools.partial(recolour, colour=colour)
        found[f"colour-{colour}"] = ("colour", colour, f"colour {_REVISION}", paint)
    return found


def _photo_key(photo: LabelledPhoto) -> list[Any]:
    return [photo.name, [[item.word, item.mask and item.mask.name] for item in photo.objects]]


def _kept_index(out: Path, key: str) -> dict[str, Any] | None:
    """The index of a bank of the same photos; None when there is none yet."""
    path = out / INDEX
    if not path.exists():
        if out.exists() and any(out.iterdir()):
            raise UserError(f"{out}: something else lies here, give a new folder for the bank")
        return None
    index = read_json(path)
    if not isinstance(index, dict) or index.get("key") != key:
        raise UserError(
            f"{out}: a bank of other photos or another size lies here, give a new folder"
        )
    return index if (out / PHOTOS).exists() else None


def _write_photos(
    photos: Sequence[LabelledPhoto], out: Path, side: int, test_share: float, workers: int
) -> dict[str, Any]:
    work = functools.partial(_try_square, side=side, test_share=test_share)
    results = map_in_order(work, photos, workers, chunk=16)
    squares, left_out = [], []
    for result in tqdm(results, total=len(photos), desc="photos", unit="photo"):
        if isinstance(result, str):
            left_out.append(result)
        else:
            squares.append(result)
    if not squares:
        first = f", the first because {left_out[0]}" if left_out else ""
        raise UserError(f"no photo of {len(photos)} can be used{first}")
    tensors = {
        "pictures": torch.stack([square.picture for square in squares]),
        "masks": torch.cat([square.masks for square in squares]),
    }
    with atomic_write(out / PHOTOS) as temporary:
        save_file(tensors, temporary)
    return {
        "side": side,
        "photos": [square.facts for square in squares],
        "renderings": {},
        "left_out": left_out,
    }


def _try_square(photo: LabelledPhoto, side: int, test_share: float) -> Square | str:
    try:
        return photo_square(photo, side, test_share)
    except UserError as error:
        return str(error)


def photo_square(photo: LabelledPhoto, side: int, test_share: float) -> Square:
    """A photo as a square around its objects.

    Args:
        photo: the photo.
        side: S, pixels.
        test_share: see `build_bank`.

    Returns:
        Picture, masks and facts.

    Raises:
        UserError: the photo cannot be read, or none of its objects is in the square.
    """
    key = content_hash(photo)
    picture, segments, rejected = open_photo(photo)
    if not segments:
        reason = f": {rejected[0].reason}" if rejected else ""
        raise UserError(f"{photo.path}: no object of it has a mask{reason}")
    height, width = picture.shape[-2:]
    scale = side / min(height, width)
    size = (max(side, round(height * scale)), max(side, round(width * scale)))
    small = from_pil(to_pil(picture).resize((size[1], size[0]), Image.Resampling.LANCZOS))
    masks = torch.cat([_scaled(segment.mask, size) for segment in segments])
    top, left = _corner(masks.amax(0), side)
    window = (slice(top, top + side), slice(left, left + side))
    cut = masks[:, *window]
    kept = [i for i, mask in enumerate(cut) if mask.mean() >= _LEAST_AREA]
    if not kept:
        raise UserError(f"{photo.path}: its objects are smaller than {_LEAST_AREA:.1%} of it")
    facts = {
        "file": photo.name,
        "split": "test" if int(text_hash(key)[:8], 16) / 16**8 < test_share else "train",
        "words": [segments[i].word.casefold() for i in kept],
        **photo.facts,
    }
    pixels = (small[:, *window] * 255).round().to(torch.uint8)
    return Square(pixels.contiguous(), cut[kept].to(torch.uint8), facts)


def _scaled(mask: Tensor, size: tuple[int, int]) -> Tensor:
    """As `resize_mask`; empty where nothing is left of it."""
    try:
        return resize_mask(mask, size)
    except UserError:
        return mask.new_zeros(1, *size)


def _corner(covered: Tensor, side: int) -> tuple[int, int]:
    """Top left of the square whose middle is nearest to that of the objects [H,W]."""
    corner = []
    for length, weights in zip(covered.shape, (covered.sum(1), covered.sum(0)), strict=True):
        places = torch.arange(length, dtype=torch.float32)
        middle = float((places * weights).sum() / weights.sum().clamp(min=1e-6))
        corner.append(min(max(0, round(middle - side / 2)), length - side))
    return corner[0], corner[1]


def _render(
    pictures: Tensor, render: Callable[[Tensor], Tensor], name: str, workers: int
) -> Tensor:
    chunks = pictures.split(32)
    work = functools.partial(_render_chunk, render=render)
    results = map_in_order(work, [chunk.numpy() for chunk in chunks], workers)
    bar = tqdm(results, total=len(chunks), desc=name, unit="x32")
    return torch.cat([torch.from_numpy(part) for part in bar])


def _render_chunk(pictures: Any, render: Callable[[Tensor], Tensor]) -> Any:
    """uint8 arrays [N,3,S,S] in and out: numpy, since sharing tensors costs more."""
    torch.set_num_threads(1)
    painted = [render(torch.from_numpy(picture).float() / 255) for picture in pictures]
    return (torch.stack(painted).clamp(0, 1) * 255).round().to(torch.uint8).numpy()
