"""How fast a run is for the chip it has, and how much memory it takes."""

from __future__ import annotations

import resource
import sys
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch

from regionroute.planning.chips import chip_of

if TYPE_CHECKING:
    from regionroute.config.run import RunConfig
    from train.step import Batch

GIB = 2**30
CPU = torch.device("cpu")


@dataclass(frozen=True)
class Speed:
    """Speed and memory that a process measures while it trains.

    Attributes:
        device: where it computes.
        operations: floating-point ones of a process in an optimizer step; None: not counted.
        peak: operations a second of which the chip is capable; None: the chip is not known.
    """

    device: torch.device = CPU
    operations: float | None = None
    peak: float | None = None

    def measure(self, steps: float) -> dict[str, float]:
        """Memory and share of the peak.

        Args:
            steps: optimizer steps a second.

        Returns:
            "memory_gib": the most that was ever taken, of the GPU or of the process, and
            "peak_share" in [0,1] where operations and chip are known.
        """
        numbers = {"memory_gib": most_memory(self.device) / GIB}
        if self.operations and self.peak:
            numbers["peak_share"] = self.operations * steps / self.peak
        return numbers

    @staticmethod
    def shown(numbers: dict[str, float]) -> dict[str, str]:
        """The same for the progress bar."""
        text = {"mem": f"{numbers['memory_gib']:.1f}GiB"}
        if "peak_share" in numbers:
            text["peak"] = f"{numbers['peak_share']:.0%}"
        return text


def most_memory(device: torch.device) -> int:
    """Bytes: the peak of PyTorch's allocator on a GPU, else of the whole process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    unit = 1 if sys.platform == "darwin" else 1024  # of ru_maxrss: bytes there, kilobytes here
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def speed_of(
    config: RunConfig, transformer: Any, batch: Batch, device: torch.device, vae: Any = None
) -> Speed:
    """Counts the operations of a step where the chip's peak is known, which takes seconds.

    Counted as by `regionroute plan`, recomputation included: the share is the plan's ``--share``.

    Args:
        config: the run's.
        transformer: the adapted one.
        batch: one micro-batch of this process.
        device: where it computes.
        vae: the base's, which a perceptual loss decodes with.
    """
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else ""
    chip = chip_of(name)
    if chip is None:
        return Speed(device)
    operations = count_operations(config, transformer, batch, vae) * config.train.accumulation
    return Speed(device, operations, chip.teraflops * 1e12)


def count_operations(config: RunConfig, transformer: Any, batch: Batch, vae: Any = None) -> int:
    """Floating-point operations of one forward and backward pass, by `planning.trace`."""
    from regionroute.adapters import adapter_layers
    from regionroute.diffusion.families import find_transformer
    from regionroute.planning.trace import StepShape, trace_step
    from train.planned import planned_step

    model, _ = find_transformer(transformer)
    settings: Any = model.config
    layer = next(iter(adapter_layers(transformer).values()))
    _, channels, height, width = batch.target.shape
    _, tokens, states = batch.prompt_embeds.shape
    shape = StepShape(
        batch=len(batch.ids),
        latent=(channels, height, width),
        text=(tokens, states),
        pooled=int(batch.pooled.shape[1]),
        experts=layer.num_experts,
        style_dim=None if batch.style_emb is None else int(batch.style_emb.shape[1]),
    )
    named = dict(settings) | {"_class_name": type(model).__name__}
    autoencoder = None if vae is None else partial(type(vae).from_config, vae.config)
    return trace_step(named, config, shape, planned_step, autoencoder).flops
