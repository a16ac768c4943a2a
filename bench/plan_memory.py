"""Does a training step take the memory that `regionroute plan` predicts?

    python bench/plan_memory.py

Training steps of small random transformers on the CPU: predicted activation memory against the peak
that PyTorch's allocator reports (memory events of its profiler), with and without gradient
checkpointing, supervision and a perceptual loss, in float32 and bfloat16. Also recorded: the growth
of the process, which includes what other libraries' kernels and Python allocate. The result goes to
bench/results/plan_memory.json.
"""

from __future__ import annotations

import argparse
import ctypes
import warnings
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from itertools import accumulate
from typing import Any

import torch
from _shared import add_result_argument, peak_bytes, provenance
from diffusers import AutoencoderKL, FluxTransformer2DModel
from torch.profiler import ProfilerActivity, profile
from train_kontext import made_up_batch

from regionroute.adapters import adapter_parameters, inject
from regionroute.config.io import load_config
from regionroute.config.run import RunConfig
from regionroute.diffusion.latents import decode_latents
from regionroute.files import write_json
from regionroute.models.perceptual import VggMaps
from regionroute.models.vgg import VggFeatures, empty_weights
from regionroute.planning.sizes import KONTEXT_PARTS
from regionroute.planning.trace import StepShape, trace_step
from train.perceptual import PerceptualLoss
from train.planned import planned_step
from train.step import Batch, training_step

STYLES = 4
M_MMAP_THRESHOLD = -3  # malloc.h
LARGE = 65536
# name -> heads of 64, double blocks, single blocks, pairs, side of the latents
SHAPES = {"small": (4, 2, 2, 1, 64), "wide": (8, 2, 3, 1, 64), "deep": (4, 4, 8, 2, 48)}
CASES = {
    "plain": ["supervision.focus=0", "supervision.cover=0"],
    "supervised": [],
    "supervised, checkpointing": ["train.gradient_checkpointing=true"],
    "supervised, bfloat16": ["base.dtype=bfloat16"],
    "supervised, perceptual": ["flow.perceptual.network=random"],
}
AUTOENCODER = {  # four pixels to a latent cell
    "block_out_channels": [32, 64, 64],
    "down_block_types": ["DownEncoderBlock2D"] * 3,
    "up_block_types": ["UpDecoderBlock2D"] * 3,
    "latent_channels": 16,
}


def main() -> int:
    """Measure every case and write the result."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shapes", nargs="+", choices=list(SHAPES), default=list(SHAPES))
    parser.add_argument("--cases", nargs="+", choices=list(CASES), default=list(CASES))
    add_result_argument(parser, "plan_memory")
    args = parser.parse_args()
    # Return freed memory to the system at once, so that the process holds live memory only.
    ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, LARGE)
    table: dict[str, Any] = {}
    for name in args.shapes:
        for case in args.cases:
            row = table[f"{name}, {case}"] = compared(*SHAPES[name], CASES[case])
            print(
                f"{name + ', ' + case:<36} predicted {row['predicted'] / 2**20:7.1f} MiB, measured "
                f"{row['measured'] / 2**20:7.1f} MiB, ratio {row['ratio']:.3f}"
            )
    ratios = [row["ratio"] for row in table.values()]
    result = provenance(("torch", "diffusers")) | {
        "cases": table,
        "lowest ratio": min(ratios),
        "highest ratio": max(ratios),
    }
    write_json(args.result, result)
    print(f"{args.result} written")
    return 0


def compared(
    heads: int, double: int, single: int, batch: int, side: int, overrides: list[str]
) -> dict[str, Any]:
    """Predicted and measured peak bytes of the activations."""
    config = load_config(None, overrides, RunConfig)
    settings = KONTEXT_PARTS["transformer"] | {
        "num_layers": double,
        "num_single_layers": single,
        "num_attention_heads": heads,
        "attention_head_dim": 64,
        "joint_attention_dim": 256,
        "axes_dims_rope": [16, 24, 24],
    }
    shape = StepShape(batch, (16, side, side), (64, 256), 768, STYLES)
    predicted = trace_step(settings, config, shape, planned_step, autoencoder).activations
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = FluxTransformer2DModel.from_config(settings)
    torch.nn.Module.to(model, getattr(torch, config.base.dtype))
    experts = config.experts
    inject(model, experts.targets, STYLES, experts.rank, experts.alpha)
    if config.train.gradient_checkpointing:
        model.enable_gradient_checkpointing()
    for parameter in adapter_parameters(model):
        parameter.grad = torch.zeros_like(parameter) + 1  # write to it, so that it is allocated
    given = made_up_batch(shape)
    run = partial(step, model.train(), given, config, perceptual_loss(config))
    grown, measured = peak_bytes(run), allocated(run)
    return {
        "predicted": predicted,
        "measured": measured,
        "ratio": predicted / measured,
        "process": grown,
    }


def autoencoder() -> AutoencoderKL:
    """A small decoder of random weights."""
    return AutoencoderKL.from_config(AUTOENCODER)


def perceptual_loss(config: RunConfig) -> PerceptualLoss | None:
    """The loss with a random autoencoder and a random VGG16; None where it is off."""
    if config.flow.perceptual.network is None:
        return None
    vae = autoencoder().requires_grad_(False).eval()
    vgg = VggFeatures({name: 0.05 * torch.randn_like(w) for name, w in empty_weights().items()})
    decode = partial(decode_latents, vae)
    return PerceptualLoss(config.flow.perceptual, decode, network=VggMaps(vgg))


def allocated(run: Callable[[], object]) -> int:
    """Peak bytes that PyTorch's allocator handed out during `run`."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        run()
    events = [e for e in profiler.profiler.kineto_results.events() if e.name() == "[memory]"]
    events.sort(key=lambda event: event.start_ns())
    return max(accumulate(event.nbytes() for event in events))


def step(
    model: FluxTransformer2DModel,
    batch: Batch,
    config: RunConfig,
    perceptual: PerceptualLoss | None,
) -> None:
    """Forward and backward pass."""
    dtype = getattr(torch, config.base.dtype)
    batch = replace(batch, prompt_embeds=batch.prompt_embeds.to(dtype))
    with training_step(model, batch, config, perceptual=perceptual) as losses:
        losses.total.mean().backward()


if __name__ == "__main__":
    raise SystemExit(main())
