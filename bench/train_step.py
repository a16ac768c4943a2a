"""The cost of attention supervision in a training step, everything else equal.

    python bench/train_step.py                                   # nano, configs/nano.yaml
    python bench/train_step.py --config configs/kontext.yaml base.name=/models/kontext   # on a GPU

Rivals in the same run: the same step with both supervision weights at 0, and with the columns taken
from an explicit dense softmax. A step is forward, loss, backward and AdamW on one synthetic batch;
encoding and loading are not included.
The result goes to bench/results/train_step.json, on a GPU to train_step_cuda.json.
"""

import argparse
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any
from unittest.mock import patch

import torch
from _shared import (
    add_result_argument,
    median_ratio,
    paired_seconds,
    peak_bytes,
    provenance,
    quartiles,
)
from torch import Tensor

from regionroute.adapters import adapter_parameters, inject
from regionroute.attention import AttentionPlan, recorder
from regionroute.attention.columns import attend
from regionroute.config.io import add_config_arguments, load_config
from regionroute.config.run import RunConfig
from regionroute.files import write_json
from regionroute.models.backbone import Backbone
from regionroute.models.loading import load_base
from train.step import Batch, training_step

STYLES = 4
RIVAL = "unsupervised"


def main() -> int:
    """Time the steps and write the result."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_config_arguments(parser)
    parser.set_defaults(config="configs/nano.yaml")
    parser.add_argument("--rounds", type=int, default=30, help="measured rounds")
    parser.add_argument("--batch", type=int, help="pairs per step (default: train.global_batch)")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    add_result_argument(parser, "train_step", device)
    args = parser.parse_intermixed_args()
    config = load_config(args.config, args.overrides, RunConfig)
    unsupervised = load_config(
        args.config, [*args.overrides, "supervision.focus=0", "supervision.cover=0"], RunConfig
    )
    every = load_config(args.config, [*args.overrides, "supervision.layers=all"], RunConfig)
    backbone = load_base(config.base.name, getattr(torch, config.base.dtype), device)
    inject(
        backbone.transformer, config.experts.targets, STYLES, config.experts.rank,
        config.experts.alpha,
    )  # fmt: skip
    backbone.transformer.to(device).train()
    if config.train.gradient_checkpointing:
        backbone.transformer.enable_gradient_checkpointing()
    batch = made_up_batch(backbone, args.batch or config.train.global_batch, device)
    optimizer = torch.optim.AdamW(adapter_parameters(backbone.transformer), lr=config.optim.lr)

    run = partial(step, backbone, batch, optimizer)
    steps: dict[str, Callable[[], None]] = {
        RIVAL: partial(run, unsupervised),
        f"supervised ({layers(config)})": partial(run, config),
        "supervised (all blocks)": partial(run, every),
        "supervised (all blocks), dense columns": partial(run, every, dense_columns),
    }
    seconds = paired_seconds(steps, args.rounds)
    table: dict[str, Any] = {}
    for name, call in steps.items():
        ratio = median_ratio(seconds, name, RIVAL)
        table[name] = {
            "seconds": quartiles(seconds[name]),
            "over unsupervised": ratio,
            "bytes": peak_bytes(call),
        }
        print(f"{name:<60} {table[name]['seconds'][1]:.3f} s, {ratio:.3f} x unsupervised")
    shape = {"batch": len(batch.ids), "tokens": batch.plan.image_len, "text": batch.plan.text_len}
    result = provenance() | {"base": backbone.name, "shape": shape, "steps": table}
    write_json(args.result, result)
    print(f"{args.result} written")
    return 0


def layers(config: RunConfig) -> str:
    """The supervised blocks in words."""
    chosen = config.supervision.layers
    return "all blocks" if chosen == "all" else ", ".join(map(str, chosen))


def made_up_batch(backbone: Backbone, size: int, device: str) -> Batch:
    """Random latents and text of the base's own shapes, one object an image."""
    generator = torch.Generator().manual_seed(0)
    side = backbone.settings.resolution
    context = backbone.encode_images(torch.rand(size, 3, side, side, generator=generator))
    embeds, pooled = backbone.encode_prompts(["make the dog in pixel-art style"] * size)
    rows, columns = context.shape[-2] // 2, context.shape[-1] // 2
    mask = torch.zeros(size, 1, rows, columns)
    mask[..., : rows // 2, : columns // 2] = 1
    plan = AttentionPlan(
        token_index=torch.tensor([5, 6]).expand(size, 1, 2).contiguous(),
        masks=mask,
        valid=torch.ones(size, 1, dtype=torch.bool),
        text_len=embeds.shape[1],
        image_len=rows * columns,
    )

    def noise() -> Tensor:
        return torch.randn(context.shape, generator=generator)

    batch = Batch(
        ids=tuple(map(str, range(size))),
        target=noise(),
        context=context.float().cpu(),
        noise=noise(),
        sigma=torch.rand(size, generator=generator).clamp(min=0.1),
        prompt_embeds=embeds,
        pooled=pooled,
        expert_ids=torch.arange(size) % STYLES,
        plan=plan,
        inside=torch.nn.functional.interpolate(mask, scale_factor=2.0),
    )
    return batch.to(torch.device(device))


def step(
    backbone: Backbone,
    batch: Batch,
    optimizer: torch.optim.Optimizer,
    config: RunConfig,
    patched: Callable[[], AbstractContextManager[Any]] = nullcontext,
) -> None:
    """One optimizer step."""
    with patched(), training_step(backbone.transformer, batch, config) as losses:
        losses.total.mean().backward()
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)


def dense_columns() -> AbstractContextManager[Any]:
    """The recorder with the log-sum-exp of an explicit softmax."""
    return patch.object(recorder, "attend", partial(attend, backend="dense"))


if __name__ == "__main__":
    raise SystemExit(main())
