"""Arguments and results of the Python API: PIL images, arrays or tensors in and out.

Shape legend: B images, H W pixels, h w the grid of a region map.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from operator import index
from typing import Any, Literal, TypeAlias, get_args

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from regionroute.data.images import LoadedImage, from_pil, load_pil, split_alpha, to_pil
from regionroute.data.masks import check_visible, mask_from_pil
from regionroute.editing.outputs import enlarge_map
from regionroute.editing.request import EditResult
from regionroute.errors import UserError

ImageInput: TypeAlias = Image.Image | np.ndarray | Tensor
ImageOutput: TypeAlias = Image.Image | np.ndarray | Tensor
OutputType = Literal["pil", "np", "pt"]
OUTPUT_TYPES: tuple[OutputType, ...] = get_args(OutputType)


@dataclass
class EditOutput:
    """Edited images, in the order of the input.

    Attributes:
        images: of the size of their inputs: PIL images, arrays [H,W,C] float32 in [0,1] ("np"),
            or tensors [C,H,W] float32 in [0,1] on the CPU ("pt"); C is 3, or 4 where the input
            has transparency, which is kept.
        region_maps: where the words drew attention, in [0,1] with the region's boundary at 0.5:
            grey PIL images of the input's size, or arrays or tensors [h,w] on the token grid;
            None for an image without a map, and everywhere if no maps were asked for.
        metadata: of each image, the settings that reproduce it (`regionroute edit` writes the same
            into its JSON file), and under "warnings" what to look at.
        region_masks: where each object of an image was restyled, at the image's size, in the form
            of ``output_type`` (grey, or [H,W]): what ``region_mask`` takes. Empty for an image
            without a map or whose background is not locked.
    """

    images: list[ImageOutput]
    region_maps: list[ImageOutput | None]
    metadata: list[dict[str, Any]]
    region_masks: list[list[ImageOutput]] = field(default_factory=list)


def to_images(image: ImageInput | Sequence[ImageInput]) -> list[LoadedImage]:
    """Convert images to edit, which keep their transparency.

    Args:
        image: one of, or a list of: a PIL image of any mode; an array [H,W,C] or [B,H,W,C], uint8
            or float in [0,1]; a tensor [C,H,W] or [B,C,H,W], uint8 or float in [0,1]; C is 3, or
            4 with alpha.

    Raises:
        UserError: another type, shape or range, or no image at all.
    """
    return [
        load_pil(one) if isinstance(one, Image.Image) else split_alpha(one)
        for one in _images(image, "image")
    ]


def to_tensors(image: ImageInput | Sequence[ImageInput], name: str) -> list[Tensor]:
    """Convert images to float32 tensors [3,H,W] in [0,1] on the CPU, transparency over white.

    Args:
        image: as of `to_images`.
        name: names the argument in errors.

    Raises:
        UserError: another type, shape or range, or no image at all.
    """
    return [
        from_pil(one) if isinstance(one, Image.Image) else _over_white(one)
        for one in _images(image, name)
    ]


def _images(image: ImageInput | Sequence[ImageInput], name: str) -> Iterator[Image.Image | Tensor]:
    """PIL images as they are, arrays and tensors as [C,H,W] in [0,1] with C = 3 or 4."""
    if isinstance(image, list | tuple):
        if not image:
            raise UserError(f"{name}: the list is empty, give at least one image")
        for one in image:
            yield from _images(one, name)
    elif isinstance(image, Image.Image):
        yield image
    elif isinstance(image, np.ndarray):
        if image.ndim not in (3, 4) or image.shape[-1] not in (3, 4):
            raise UserError(
                f"{name}: an array must have the shape [H,W,3] or [B,H,W,3], or 4 channels with "
                f"alpha, got {list(image.shape)}"
            )
        values = _in_range(torch.tensor(image), name).movedim(-1, -3)
        yield from values.reshape(-1, *values.shape[-3:])
    elif isinstance(image, Tensor):
        if image.ndim not in (3, 4) or image.shape[-3] not in (3, 4):
            raise UserError(
                f"{name}: a tensor must have the shape [3,H,W] or [B,3,H,W], or 4 channels with "
                f"alpha, got {list(image.shape)}"
            )
        yield from _in_range(image, name).reshape(-1, *image.shape[-3:])
    else:
        raise UserError(
            f"{name}: must be a PIL image, an array, a tensor or a list of these, got a "
            f"{type(image).__name__}; open a file with PIL.Image.open"
        )


def _over_white(image: Tensor) -> Tensor:
    rgb, alpha = image[:3], image[3:]
    return rgb * alpha + (1 - alpha) if len(alpha) else rgb


def to_masks(mask: ImageInput | Sequence[ImageInput] | None, name: str) -> tuple[Tensor, ...]:
    """Convert masks to tensors.

    Args:
        mask: one of, or a list of: a PIL image, read as mask files are
            (`regionroute.data.masks`); an array or a tensor [H,W], boolean,
            uint8 or float in [0,1]; None: no mask.
        name: names the argument in errors.

    Returns:
        [H,W] float32 tensors in [0,1] on the CPU.

    Raises:
        UserError: another type, shape or range, or a mask that is empty or nearly so.
    """
    if mask is None:
        return ()
    if isinstance(mask, list | tuple):
        return tuple(tensor for one in mask for tensor in to_masks(one, name))
    values = _mask(mask, name)
    check_visible(values, name)
    return (values,)


def _mask(mask: object, name: str) -> Tensor:
    """Values [H,W] in [0,1]."""
    if isinstance(mask, Image.Image):
        return mask_from_pil(mask, name)[0]
    if not isinstance(mask, np.ndarray | Tensor):
        raise UserError(
            f"{name}: must be a PIL image, an array, a tensor or a list of these, got a "
            f"{type(mask).__name__}; open a file with PIL.Image.open"
        )
    if mask.ndim != 2:
        raise UserError(
            f"{name}: a mask must have the shape [H,W], got {list(mask.shape)}; give a list for "
            "several objects"
        )
    tensor = torch.as_tensor(mask)
    if not tensor.any():
        raise UserError(f"{name}: the mask is empty, all its values are 0")
    if tensor.dtype == torch.bool or (tensor.dtype == torch.uint8 and tensor.max() == 1):
        return tensor.float().cpu()
    return _in_range(tensor, name)


def edit_output(
    loaded: Sequence[LoadedImage], results: Sequence[EditResult], output_type: OutputType
) -> EditOutput:
    """Results as the caller wants them, with the transparency of their inputs."""
    return EditOutput(
        [
            _to_output(one.restored(result.image), output_type)
            for one, result in zip(loaded, results, strict=True)
        ],
        [_map_to_output(result.region_map, result.image, output_type) for result in results],
        [result.settings for result in results],
        [_masks_to_output(result.regions, output_type) for result in results],
    )


def _to_output(image: Tensor, output_type: OutputType) -> ImageOutput:
    """An image [C,H,W] in [0,1] as a PIL image, an array [H,W,C] or a tensor."""
    if output_type == "pil":
        return to_pil(image)
    return image if output_type == "pt" else image.permute(1, 2, 0).numpy()


def _map_to_output(
    region_map: Tensor | None, image: Tensor, output_type: OutputType
) -> ImageOutput | None:
    """A region map [h,w] in [0,1]: a grey PIL image of the image's size, or an array or tensor."""
    if region_map is None:
        return None
    if output_type == "pil":
        return to_pil(enlarge_map(region_map, image.shape[-2], image.shape[-1]))
    return region_map if output_type == "pt" else region_map.numpy()


def _masks_to_output(masks: Tensor | None, output_type: OutputType) -> list[ImageOutput]:
    """Masks [S,H,W] in [0,1]: S grey PIL images, arrays or tensors; none for None."""
    if masks is None:
        return []
    if output_type == "pil":
        return [to_pil(mask[None]) for mask in masks]
    return [mask if output_type == "pt" else mask.numpy() for mask in masks]


def to_pairs(
    objects: str | Sequence[str], styles: str | Sequence[str], images: int
) -> list[tuple[str, str]]:
    """(object, style) pairs; one style serves all objects.

    Raises:
        UserError: what is no text, style and style images, or another number of styles.
    """
    words = _texts("object", objects)
    if images and styles:
        raise UserError("give style or style_image, not both")
    names = [""] if images else _texts("style", styles)
    if len(names) == 1:
        names *= len(words)
    if not words or len(words) != len(names):
        raise UserError(
            f"{len(words)} objects and {len(names)} styles: give one style for each object, or one "
            "for all"
        )
    return list(zip(words, names, strict=True))


def _texts(name: str, given: Any) -> list[str]:
    several = isinstance(given, Iterable) and not isinstance(given, str)
    texts: list[str] = list(given) if several else [given]
    if not all(isinstance(text, str) for text in texts):
        raise UserError(f"{name} {given!r}: must be text, or a list of texts")
    return texts


def to_seeds(
    generator: torch.Generator | Sequence[torch.Generator] | None,
    seed: int | Sequence[int] | None,
    count: int,
) -> list[int]:
    """The seed of each image's noise.

    Args:
        generator: one for all images, or one per image; advanced.
        seed: in its place, one for all images or one per image; None: 0.
        count: number of images.

    Raises:
        UserError: both are given, another number of them, or a seed that is no integer.
    """
    if generator is not None and seed is not None:
        raise UserError("give generator or seed, not both")
    if isinstance(generator, torch.Generator):
        return [_draw_seed(generator) for _ in range(count)]
    if generator is not None:
        _check_count("generator", len(generator), count)
        return [_draw_seed(one) for one in generator]
    if seed is None:
        return [0] * count
    given: Any = seed  # integers of NumPy and torch too
    try:
        seeds = [index(one) for one in given] if np.ndim(given) else [index(given)] * count
    except (TypeError, ValueError):
        raise UserError(f"seed {seed!r}: must be a whole number, or one for each image") from None
    _check_count("seed", len(seeds), count)
    return seeds


def size_batches(sizes: Sequence[Hashable], batch_size: int) -> list[list[int]]:
    """Indices of equal sizes, at most `batch_size` at a time."""
    by_size: dict[Hashable, list[int]] = {}
    for row, size in enumerate(sizes):
        by_size.setdefault(size, []).append(row)
    return [
        rows[start : start + batch_size]
        for rows in by_size.values()
        for start in range(0, len(rows), batch_size)
    ]


def _check_count(name: str, found: int, count: int) -> None:
    if found != count:
        raise UserError(f"{name}: got {found} for {count} images, give one, or one for each image")


def _draw_seed(generator: torch.Generator) -> int:
    """The seed of a fresh generator itself, else a number that the generator draws.

    So a seeded generator means the same as its seed, successive calls differ as in diffusers, and
    every edit can be repeated by the seed in its metadata.
    """
    fresh = torch.Generator(generator.device).manual_seed(generator.initial_seed())
    unused = torch.equal(generator.get_state(), fresh.get_state())
    drawn = torch.randint(2**63 - 1, (1,), generator=generator, device=generator.device)
    return generator.initial_seed() if unused else int(drawn)


def _in_range(values: Tensor, name: str) -> Tensor:
    """Float32 values in [0,1] on the CPU, of uint8 or float ones."""
    values = values.detach().cpu()
    if values.dtype == torch.uint8:
        return values.float() / 255
    if not values.is_floating_point():
        raise UserError(f"{name}: values must be uint8 or float in [0,1], got {values.dtype}")
    values = values.float()
    if not torch.isfinite(values).all():
        raise UserError(f"{name}: it holds values that are not finite")
    if values.numel() == 0 or values.min() < 0 or values.max() > 1:
        found = f"[{values.min():.3g}, {values.max():.3g}]" if values.numel() else "no values"
        raise UserError(f"{name}: float values must be in [0,1], got {found}")
    return values
