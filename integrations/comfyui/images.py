"""IMAGE and MASK of ComfyUI, and the tensors of the library.

Shape legend: B images, C channels (3, or 4 with alpha), H W pixels, h w the grid of a region map.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


def from_image(image: Tensor) -> Tensor:
    """IMAGE [B,H,W,C] as float32 [B,C,H,W] in [0,1] on the CPU; a grey one becomes RGB.

    Values out of range, which upscalers and decoders leave behind, are clamped.
    """
    pixels = image.float().cpu().movedim(-1, 1).clamp(0, 1)
    return pixels.expand(-1, 3, -1, -1) if pixels.shape[1] == 1 else pixels


def to_image(images: Sequence[Any]) -> Tensor:
    """Images [C,H,W] as IMAGE [B,H,W,C]; opaque ones get alpha where others have it."""
    channels = max(len(image) for image in images)
    padded = [
        image if len(image) == channels else torch.cat([image, torch.ones_like(image[:1])])
        for image in images
    ]
    return torch.stack(padded).movedim(1, -1).contiguous()


def from_mask(mask: Tensor, count: int, size: tuple[int, int]) -> Tensor:
    """MASK [B,H,W] or [H,W] for images of another number or size.

    Args:
        mask: one for all images, or one for each.
        count: number of images.
        size: their (height, width).

    Returns:
        [count,H,W] in [0,1] on the CPU.

    Raises:
        UserError: an empty mask, such as the 64x64 one that LoadImage gives with an image without
            transparency; or another number of masks.
    """
    from regionroute.errors import UserError

    masks = mask.float().cpu().reshape(-1, *mask.shape[-2:]).clamp(0, 1)
    if len(masks) not in (1, count):
        raise UserError(
            f"mask: got {len(masks)} masks for {count} images, give one, or one for each image"
        )
    if not masks.flatten(1).any(1).all():
        raise UserError(
            "mask: it is empty, and LoadImage gives an empty one for an image without "
            "transparency: paint the object in the mask editor, or connect another MASK"
        )
    if tuple(masks.shape[-2:]) != size:
        masks = F.interpolate(masks[:, None], size, mode="bilinear", align_corners=False)[:, 0]
    return masks.expand(count, -1, -1)


def to_mask(out: Any, size: tuple[int, int]) -> Tensor:
    """Where each image of an `EditOutput` was restyled, as MASK [B,H,W] in [0,1].

    Without a locked background that is not known pixel by pixel: then it is the region map, one
    patch a token, with the boundary at 0.5.
    """
    from regionroute.editing.outputs import enlarge_map

    return torch.stack(
        [
            torch.stack(masks).sum(0).clamp(max=1) if masks else enlarge_map(region_map, *size)[0]
            for masks, region_map in zip(out.region_masks, out.region_maps, strict=True)
        ]
    )
