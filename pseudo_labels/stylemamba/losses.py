"""StyleMamba's losses, as pure functions of images or of embeddings.

Sources: the directional loss of StyleGAN-NADA and CLIPstyler; "masked directional" and
"second-order directional" are names of the paper whose **formulas are not available to us;
these are reconstructions** (each docstring says of what). The encoder is an argument:
anything that maps images [B, 3, H, W] in [0, 1] differentiably to vectors [B, K].

Shapes: B images, K width of the embedding.
"""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

Embed = Callable[[Tensor], Tensor]

SOFTENING = 0.01  # δ of `soft_cosine`, for embeddings of length 1


def soft_cosine(change: Tensor, direction: Tensor, softening: float = SOFTENING) -> Tensor:
    """d·t / ((‖d‖ + δ) ‖t‖): the cosine for d ≫ δ, and 0 with a finite gradient for d = 0.

    The cosine has no gradient at d = 0, where every fit starts, because nothing is edited yet.
    Reconstruction: StyleGAN-NADA perturbs the image instead, CLIPstyler does nothing about it.

    Args:
        change: d [..., K].
        direction: t ≠ 0, [..., K].
        softening: δ.

    Returns:
        [...] in (-1, 1).
    """
    return (soft_normalized(change, softening) * F.normalize(direction, dim=-1)).sum(-1)


def soft_normalized(vector: Tensor, softening: float = SOFTENING) -> Tensor:
    """Vectors [..., K] divided by their softened length, v / (‖v‖ + δ)."""
    # In torch the gradient of the norm at 0 is 0, so that of the quotient is finite, 1/δ.
    return vector / (torch.linalg.vector_norm(vector, dim=-1, keepdim=True) + softening)


def directional_loss(
    source: Tensor, current: Tensor, direction: Tensor, softening: float = SOFTENING
) -> Tensor:
    """1 − scos(E(Y) − E(X), ΔT): 0 aligned, 1 unedited or orthogonal, 2 opposite.

    Args:
        source: E(X) [B, K] of the reconstruction by the codec.
        current: E(Y) [B, K].
        direction: ΔT [B, K] or [K].
        softening: δ; much smaller edits count as none.

    Returns:
        [B].
    """
    return 1 - soft_cosine(current - source, direction, softening)


def random_patches(
    grid: int, ratio: float, count: int, size: tuple[int, int], generator: Generator
) -> Tensor:
    """Random masks that hide an exact fraction of the patches of a grid.

    Args:
        grid: patches along each side.
        ratio: fraction that is hidden, rounded to whole patches.
        count: M, number of masks.
        size: (H, W) of the images.
        generator: draws the patches, on the CPU.

    Returns:
        [M, 1, H, W] in {0, 1}, one where a pixel is hidden.
    """
    hidden = round(ratio * grid * grid)
    masks = torch.zeros(count, grid * grid)
    for mask in masks:
        mask[torch.randperm(grid * grid, generator=generator)[:hidden]] = 1
    return F.interpolate(masks.view(count, 1, grid, grid), size=size, mode="nearest-exact")


def hide(images: Tensor, hidden: Tensor, fill: Tensor) -> Tensor:
    """Images [B, 3, H, W] with `fill` [B, 3, 1, 1] where `hidden` [.., 1, H, W] is one."""
    return torch.where(hidden > 0.5, fill, images)


def masked_directional_loss(
    embed: Embed,
    source: Tensor,
    current: Tensor,
    direction: Tensor,
    masks: Tensor,
    softening: float = SOFTENING,
) -> Tensor:
    """L_dir of the parts that random masks leave visible, averaged over the masks.

    Reconstruction. The paper names a "masked directional loss" for local and global consistency;
    we hide the same patches in X and Y and fill them with the mean colour of X, so that the style
    must be applied everywhere.

    Args:
        embed: the encoder.
        source: X [B, 3, H, W] in [0, 1], the reconstruction by the codec.
        current: Y [B, 3, H, W] in [0, 1].
        direction: ΔT [B, K] or [K].
        masks: [M, 1, H, W] or, one for each image, [M, B, 1, H, W]; one where hidden.
        softening: δ, see `directional_loss`.

    Returns:
        [B]. A pixel that all masks hide has no gradient.
    """
    fill = source.mean((2, 3), keepdim=True)
    losses = []
    for mask in masks:
        with torch.no_grad():
            before = embed(hide(source, mask, fill))
        after = embed(hide(current, mask, fill))
        losses.append(directional_loss(before, after, direction, softening))
    return torch.stack(losses).mean(0)


def second_order_loss(
    source: Tensor,
    previous: Tensor,
    current: Tensor,
    direction: Tensor,
    softening: float = SOFTENING,
) -> Tensor:
    """The change since the previous state should point in the direction of the remaining error.

    Reconstruction. The paper names a "second-order directional loss" for quick changes of the
    direction of stylisation. With d_p and d_c the soft-normalised edits of the previous and the
    current state, r = ΔT − d_p and s = d_c − d_p, it is min(‖r‖, 1)·(1 − scos(s, r)): about 0 for
    a step to the target, 1 for no step, more for a step away, and 0 without remaining error.

    Args:
        source: E(X) [B, K].
        previous: E of the previous state [B, K], without gradient.
        current: E(Y) [B, K].
        direction: ΔT of length 1, [B, K] or [K].
        softening: δ, see `directional_loss`.

    Returns:
        [B].
    """
    before = soft_normalized(previous - source, softening).detach()
    left = direction - before
    distance = torch.linalg.vector_norm(left, dim=-1).clamp(max=1)
    step = soft_normalized(current - source, softening) - before
    along = (soft_normalized(step) * soft_normalized(left)).sum(-1)
    return distance * (1 - along)


def content_loss(before: Sequence[Tensor], after: Sequence[Tensor]) -> Tensor:
    """Mean squared difference of feature maps [B, c, h, w], summed over the layers: [B]."""
    pairs = zip(before, after, strict=True)
    return torch.stack([F.mse_loss(b, a, reduction="none").mean((1, 2, 3)) for a, b in pairs]).sum(
        0
    )


def total_variation(images: Tensor) -> Tensor:
    """Mean squared difference of vertical plus horizontal neighbours of [B, 3, H, W]: [B].

    A mean rather than a norm, so that it does not grow with the image.
    """
    down = (images[..., 1:, :] - images[..., :-1, :]).square().mean((1, 2, 3))
    across = (images[..., 1:] - images[..., :-1]).square().mean((1, 2, 3))
    return down + across


def patch_clip_loss(
    embed: Embed,
    source: Tensor,
    current: Tensor,
    direction: Tensor,
    *,
    crops: int,
    share: float,
    reject: float,
    generator: Generator,
    softening: float = SOFTENING,
) -> Tensor:
    """CLIPstyler's loss of random crops with random perspective.

    Crops whose loss is below `reject` are ignored, since they are styled enough. As in CLIPstyler,
    the difference is taken to the whole source image.

    Args:
        embed: the encoder.
        source: X [B, 3, H, W] in [0, 1].
        current: Y [B, 3, H, W] in [0, 1].
        direction: ΔT [B, K] or [K].
        crops: number of crops of each image.
        share: side of a crop, as a fraction of the image side.
        reject: loss below which a crop is skipped.
        generator: draws the crops, on the CPU.
        softening: δ, see `directional_loss`.

    Returns:
        [B].
    """
    with torch.no_grad():
        before = embed(source)
    losses = []
    for _ in range(crops):
        crop = _warp(_crop(current, share, generator), generator)
        loss = directional_loss(before, embed(crop), direction, softening)
        losses.append(torch.where(loss < reject, torch.zeros_like(loss), loss))
    return torch.stack(losses).mean(0)


def _crop(images: Tensor, share: float, generator: Generator) -> Tensor:
    height, width = (max(1, round(side * share)) for side in images.shape[-2:])
    top = int(torch.randint(images.shape[-2] - height + 1, (), generator=generator))
    left = int(torch.randint(images.shape[-1] - width + 1, (), generator=generator))
    return images[..., top : top + height, left : left + width]


def _warp(images: Tensor, generator: Generator) -> Tensor:
    """A random perspective: each corner moves inwards by at most a quarter of each side."""
    from torchvision.transforms.functional import perspective

    height, width = images.shape[-2:]
    corners = [[0, 0], [width - 1, 0], [width - 1, height - 1], [0, height - 1]]
    moves = torch.rand(4, 2, generator=generator) / 4
    moved = []
    for (x, y), (dx, dy) in zip(corners, moves.tolist(), strict=True):
        across, down = round(dx * width), round(dy * height)
        moved.append([x - across if x else across, y - down if y else down])
    return perspective(images, corners, moved)
