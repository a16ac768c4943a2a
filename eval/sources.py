"""The samples to score and their own images."""

from dataclasses import dataclass

from torch import Tensor

from regionroute.data.manifest import EditSample, Manifest
from regionroute.errors import UserError


@dataclass(frozen=True)
class Source:
    """A sample with its images.

    Attributes:
        index: place in the manifest's selection.
        sample: the manifest's row.
        content: [3,H,W].
        target: [3,H,W].
        region_masks: [S,1,H,W].
    """

    index: int
    sample: EditSample
    content: Tensor
    target: Tensor
    region_masks: Tensor

    @property
    def size(self) -> tuple[int, int]:
        """(height, width)."""
        return self.content.shape[1], self.content.shape[2]

    @property
    def mask(self) -> Tensor:
        """Union of the regions: [1,H,W]."""
        return self.region_masks.amax(0)


def select_split(manifest: Manifest, split: str) -> list[EditSample]:
    """The samples of a split, without wholly restyled ones, which are for training alone.

    Raises:
        UserError: there are none.
    """
    samples = [s for s in manifest.samples if split in (s.split, "all") and not s.whole]
    if not samples:
        there = ", ".join(sorted({sample.split for sample in manifest.samples})) or "none"
        raise UserError(
            f"--split {split}: no such samples in {manifest.root}, splits there: {there} (or all)"
        )
    return samples


def load_source(manifest: Manifest, index: int, sample: EditSample) -> Source:
    """Reads a sample's own images.

    Raises:
        UserError: one is missing, damaged or of another size, or a mask is empty.
    """
    if not sample.regions:
        raise UserError(f"sample {sample.id}: it has no region, regional scores need a mask")
    source = Source(
        index,
        sample,
        manifest.context(sample),
        manifest.target(sample),
        manifest.masks(sample),
    )
    for region, mask in zip(sample.regions, source.region_masks, strict=True):
        if not mask.any():
            raise UserError(f"{manifest.path(region.mask)}: the mask is empty, nothing to score")
    return source
