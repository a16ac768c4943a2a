"""The pairs behind a run's previews, as a small manifest of their own next to the edits.

With it previews are scored like any other edits, during a run or after it::

    python eval/rses.py --manifest runs/x/previews --split all --out runs/x/previews/scores \
        --edits 500=runs/x/previews/step-000500 --edits 1000=runs/x/previews/step-001000
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch.nn.functional as F
from torch import Tensor

from regionroute.data.buckets import Size, crop_window, fitted
from regionroute.data.images import write_image
from regionroute.data.manifest import mask_box, write_manifest
from train.data.selection import target_of

if TYPE_CHECKING:
    from regionroute.data.manifest import EditSample, Manifest

PAIRS = "pairs"  # folder of the images


def file_id(sample_id: str) -> str:
    """A sample's id as a file name on every system: parts of a sample have a colon in theirs."""
    return sample_id.replace(":", "-")


def windows(masks: Tensor, size: Size) -> Tensor:
    """What the model sees of masks [S,1,H,W], as [S,1,*size] in {0,1}."""
    seen = crop_window(masks.shape[-2], masks.shape[-1], size).of(masks)
    return F.interpolate(seen, size, mode="area").gt(0.5).float()


def write_pairs(
    folder: Path, manifest: Manifest, samples: Sequence[EditSample], size: Size
) -> None:
    """Writes images, masks and manifest of the pairs as the model sees them.

    Args:
        folder: where the manifest goes; the images go to "pairs" in it.
        manifest: where the samples are from.
        samples: to write; regions that lie outside of what the model sees are omitted.
        size: of the edits.
    """
    rows = []
    for sample in samples:
        name = file_id(sample.id)
        context, target = f"{PAIRS}/{name}.context.png", f"{PAIRS}/{name}.target.png"
        write_image(folder / context, fitted(manifest.context(sample)[None], size)[0])
        write_image(folder / target, fitted(target_of(manifest, sample)[None], size)[0])
        regions = []
        for number, mask in enumerate(windows(manifest.masks(sample), size)):
            if mask.any():
                path = f"{PAIRS}/{name}.mask{number}.png"
                write_image(folder / path, mask)
                region = replace(sample.regions[number], mask=path, box=mask_box(mask))
                regions.append(region)
        rows.append(
            replace(sample, id=name, context=context, target=target, regions=tuple(regions))
        )
    write_manifest(folder, rows)
