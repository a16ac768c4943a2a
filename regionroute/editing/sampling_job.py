"""A batch of images to edit, as the sampler takes it, its result, and the stacking of images.

Shape legend: B images, S (object, style) pairs per image, C latent channels, H W latent rows and
columns (pixels in `stack_images` and `stack_regions`), h w image tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from regionroute.config.choices import Instance, Mode, SparseQuality
from regionroute.diffusion.flow import StepCallback
from regionroute.editing.request import EditPlan, EditRequest
from regionroute.errors import UserError
from regionroute.routing.gates import normalize_gates


@dataclass(frozen=True, eq=False)
class SamplingJob:
    """A batch of images to edit.

    Attributes:
        plans: S plans for each of B images; one each in plain mode.
        context: latents of the source images, [B,C,H,W].
        noise: [B,C,H,W].
        steps: sampling steps.
        guidance: see `flow.predict_velocity`.
        mode: plain or routed.
        callback: see `flow.denoise`; may raise `Interrupted`.
        strength: factor on the gates, in [0,1].
        lock_background: gates are needed for a composite over the source.
        want_map: record region maps.
        sparse: compute only the region in most steps, see `regionroute.editing.sparse`; a plain
            edit needs given gates for it.
        sparse_quality: how close to the dense edit.
        gates: given gates [B,S,h,w] in place of the predicted maps, or None.
        instance: which of several objects of a word.
        mirrored: latents of the mirrored images, [B,C,H,W], to read maps from them too; or None.
        presence: of each pair's object, [B,S] in [0,1], see `Backbone.presence`; None: all count as
            present.
    """

    plans: Sequence[Sequence[EditPlan]]
    context: Tensor
    noise: Tensor
    steps: int
    guidance: float
    mode: Mode
    callback: StepCallback | None = None
    strength: float = 1.0
    lock_background: bool = False
    want_map: bool = False
    sparse: bool = False
    sparse_quality: SparseQuality = "balanced"
    gates: Tensor | None = None
    instance: Instance = "all"
    mirrored: Tensor | None = None
    presence: Tensor | None = None

    @property
    def rows(self) -> list[EditPlan]:
        """The plans of all images, B·S."""
        return [plan for plans in self.plans for plan in plans]

    @property
    def pairs(self) -> int:
        """S."""
        return len(self.plans[0])

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of image tokens."""
        return self.context.shape[2] // 2, self.context.shape[3] // 2


@dataclass(frozen=True, eq=False)
class SamplingResult:
    """The result of a job.

    Attributes:
        latents: [B,C,H,W].
        gates: [B,S,h,w] in [0,1], if they were needed.
        region_map: [B,h,w] in [0,1] with the region's boundary at 0.5, if there is one.
        concentration: attention on the region of each pair, in multiples of the average over all
            tokens, [B,S]; if routed.
        instances: number of separate parts of each pair's gates, [B,S]; if routed.
        presence: that of the job; if routed.
        absent: bool [B,S], pairs left alone because their object seems to be absent; if routed.
        interrupted: whether a callback ended sampling early.
        sparse: of each pair, B·S: whether only its region was computed in most steps; None: dense.
    """

    latents: Tensor
    gates: Tensor | None = None
    region_map: Tensor | None = None
    concentration: Tensor | None = None
    instances: Tensor | None = None
    presence: Tensor | None = None
    absent: Tensor | None = None
    interrupted: bool = False
    sparse: list[bool] | None = None


def stack_images(images: Sequence[Tensor], requests: Sequence[EditRequest]) -> Tensor:
    """The images of a batch, [B,3,H,W]; a single one is not copied.

    Raises:
        ValueError: not as many requests as images, or images of several sizes.
    """
    if len(images) != len(requests) or not images:
        raise ValueError(f"{len(images)} images and {len(requests)} requests")
    if len({image.shape for image in images}) != 1:
        raise ValueError("the images of a batch must have one size")
    return images[0][None] if len(images) == 1 else torch.stack(list(images))


def stack_regions(requests: Sequence[EditRequest], sources: Tensor) -> Tensor | None:
    """The regions given with the requests of a batch, [B,S,H,W]; None if there are none.

    Raises:
        UserError: a region of another size than the images.
        ValueError: some requests have regions, others do not.
    """
    if not any(request.regions for request in requests):
        return None
    size = tuple(sources.shape[-2:])
    for region in (region for request in requests for region in request.regions):
        if tuple(region.shape) != size:
            raise UserError(
                f"a region map is {region.shape[-1]}x{region.shape[-2]}, but the image is "
                f"{size[1]}x{size[0]}: give a map of the image's size"
            )
    if len({len(request.regions) for request in requests}) != 1:
        raise ValueError("either all images of a batch have regions, or none")
    return normalize_gates(torch.stack([torch.stack(request.regions) for request in requests]))
