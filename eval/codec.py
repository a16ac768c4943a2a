"""``regionroute codec``: what a base's autoencoder alone changes in images."""

import sys
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor
from tqdm import tqdm

from eval.metrics.region import leak
from eval.report.arguments import codec_parser as parser
from eval.report.page import check_option
from eval.sources import Source, load_source, select_split
from eval.summary import RELATIVE, bootstrap_settings, group_by_slice
from regionroute.cli.options import check_least
from regionroute.data.images import resize
from regionroute.data.manifest import Manifest, load_manifest
from regionroute.data.region_scores import in_mask_error, in_mask_ratio, mse_bg
from regionroute.data.stats import describe, ratio_of_means
from regionroute.errors import UserError, command
from regionroute.files import check_output_file, write_json
from regionroute.hub_names import used_name
from regionroute.models.devices import pick_device
from regionroute.models.loading import load_base

SCHEMA_VERSION = 1
MAX_PSNR = 100.0  # dB, for an image that comes back exactly
DEFINITIONS = {
    "psnr_context": f"10 log10(1 / MSE) of contexts, images in [0,1], at most {MAX_PSNR:.0f} dB",
    "psnr_target": "the same of targets",
    "mse_bg": "background error of the context's round trip, images in [-1,1]",
    "leak": "leak of the context's round trip",
    "in_mask_error": "object error of the target's round trip, images in [-1,1]",
    "in_mask_ratio": "that over the object error of the unedited image, mean over samples",
    RELATIVE: "mean in_mask_error over the mean object error of the unedited image",
}


class Codec(Protocol):
    """What is asked of a base (see :class:`regionroute.models.backbone.Backbone`)."""

    def encode_images(self, images: Tensor) -> Tensor:
        """[B,3,H,W] in [0,1] to latents [B,C,h,w]."""
        ...

    def decode_latents(self, latents: Tensor) -> Tensor:
        """The way back."""
        ...

    def fit_size(self, height: int, width: int) -> tuple[int, int]:
        """The (H',W') at which the base works on images of (H,W)."""
        ...


@torch.no_grad()
def round_trip(codec: Codec, images: Tensor) -> Tensor:
    """Images [B,3,H,W] in [0,1] through the autoencoder and back, at their own size.

    Where the base works at another size, resizing there and back is part of the trip, as it is
    part of an edit.
    """
    size = (images.shape[2], images.shape[3])
    fitted = codec.fit_size(*size)
    decoded = codec.decode_latents(codec.encode_images(resize(images, fitted)))
    return resize(decoded.float().cpu(), size)


def psnr(a: Tensor, b: Tensor) -> Tensor:
    """Peak signal-to-noise ratio in dB of images [B,3,H,W] in [0,1]: [B], at most 100."""
    error = (a.float() - b.float()).square().mean((1, 2, 3))
    return (-10 * error.log10()).clamp(max=MAX_PSNR)


def measure(codec: Codec, sources: Iterable[Source], batch_size: int = 8) -> list[dict[str, Any]]:
    """One row for each source: numbers, the unedited object error, styles and flags for slicing.

    Args:
        codec: the base.
        sources: samples with their images.
        batch_size: images at once; a batch also ends where the size changes.
    """
    rows = []
    batch: list[Source] = []
    for source in sources:
        if batch and (len(batch) == batch_size or source.size != batch[0].size):
            rows += _measure_batch(codec, batch)
            batch = []
        batch.append(source)
    return rows + (_measure_batch(codec, batch) if batch else [])


def _measure_batch(codec: Codec, sources: list[Source]) -> list[dict[str, Any]]:
    content = torch.stack([source.content for source in sources])
    target = torch.stack([source.target for source in sources])
    mask = torch.stack([source.mask for source in sources])
    context_back, target_back = round_trip(codec, content), round_trip(codec, target)
    columns = {
        "psnr_context": psnr(context_back, content),
        "psnr_target": psnr(target_back, target),
        "mse_bg": mse_bg(context_back, content, mask),
        "leak": leak(context_back, content, mask),
        "in_mask_error": in_mask_error(target_back, target, mask),
        "in_mask_ratio": in_mask_ratio(target_back, content, target, mask),
        "unedited": in_mask_error(content, target, mask),
    }
    return [
        {
            "id": source.sample.id,
            "styles": [region.style for region in source.sample.regions],
            "flags": list(source.sample.flags),
            "mask_share": float(source.mask.mean()),
            **{name: float(values[number]) for name, values in columns.items()},
        }
        for number, source in enumerate(sources)
    ]


def summarise(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Means with intervals: {slice: {metric: estimate}}, slices as in summary.json."""
    return {name: _estimates(part) for name, part in group_by_slice(rows).items()}


def _estimates(rows: list[dict[str, Any]]) -> dict[str, Any]:
    names = [name for name in DEFINITIONS if name != RELATIVE]
    estimates = {name: asdict(describe([row[name] for row in rows])) for name in names}
    errors = [row["in_mask_error"] for row in rows]
    relative = ratio_of_means(errors, [row["unedited"] for row in rows])
    return {**estimates, RELATIVE: asdict(relative)}


def readable(manifest: Manifest, split: str) -> Iterable[Source]:
    """The split's samples with their images; one that cannot be read is skipped with a message."""
    samples = select_split(manifest, split)
    for index, sample in enumerate(tqdm(samples, desc="round trips", unit="sample")):
        try:
            yield load_source(manifest, index, sample)
        except UserError as error:
            tqdm.write(f"skipped: {error}", file=sys.stderr)


@command
def main(argv: list[str] | None = None) -> int:
    """Runs the command."""
    args = parser().parse_args(argv)
    check_least(args, {"batch_size": 1})
    check_option("--out", args.out, check_output_file)
    if Path(args.out).suffix.lower() != ".json":  # it must not replace other data
        raise UserError(f"--out {args.out}: give a name that ends in .json")
    manifest = load_manifest(args.manifest)
    select_split(manifest, args.split)
    backbone = load_base(args.base, device=pick_device(args.device))
    rows = measure(backbone, readable(manifest, args.split), args.batch_size)
    if not rows:
        raise UserError(f"{args.manifest}: no sample of split {args.split} could be read")
    write_json(
        Path(args.out),
        {
            "schema": SCHEMA_VERSION,
            "base": used_name(backbone.name, backbone.revision),
            "fingerprint": backbone.fingerprint,
            "samples": len(rows),
            "definitions": DEFINITIONS,
            "bootstrap": bootstrap_settings(0),
            "slices": summarise(rows),
        },
    )
    _print(rows, args.out)
    return 0


def _print(rows: list[dict[str, Any]], out: str) -> None:
    for name, estimates in summarise(rows).items():
        numbers = ", ".join(
            f"{key} {estimates[key]['mean']:.4f}"
            for key in ("psnr_context", "mse_bg", "in_mask_ratio")
            if estimates[key]["mean"] is not None
        )
        print(f"{name}: {numbers}")
    print(f"codec: {out}")


if __name__ == "__main__":
    raise SystemExit(main())
