"""A training step of the full-size transformer, against stock diffusers and PEFT.

    python bench/train_kontext.py                              # on a GPU of 40 GB or more
    python bench/train_kontext.py --weights nf4 --sizes 512    # a smaller one; needs bitsandbytes
    python bench/train_kontext.py --dry                        # on the CPU: does every line run?

FLUX.1-Kontext's sizes with random weights: time and memory do not depend on the values. Rival in
the same run, on the same frozen weights: the LoRA step of diffusers' training scripts
(`add_adapter`, float32 adapters under bfloat16 autocast, clipping, AdamW), same layers, rank and
images, timed in pairs. `--dry` uses a tiny transformer and sides divided by 16; its numbers mean
nothing and are written only if --result is given. The result goes to
bench/results/train_kontext_cuda.json.
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from _shared import (
    add_result_argument,
    median_ratio,
    paired_seconds,
    peak_bytes,
    provenance,
    quartiles,
)
from diffusers import FluxTransformer2DModel
from diffusers.training_utils import cast_training_params
from peft import LoraConfig
from torch import Tensor, nn

from regionroute.adapters import adapter_parameters, inject
from regionroute.attention import AttentionPlan
from regionroute.config.io import add_config_arguments, load_config
from regionroute.config.run import RunConfig
from regionroute.diffusion.flow import add_noise, predict_velocity, velocity_target
from regionroute.diffusion.flux_kontext import FAMILY as KONTEXT
from regionroute.errors import UserError, command
from regionroute.files import write_json
from regionroute.models.quantize import quantize_blocks
from regionroute.planning.chips import chip_of
from regionroute.planning.remedies import without_supervision
from regionroute.planning.sizes import KONTEXT_PARTS
from regionroute.planning.trace import StepShape, trace_step
from train.planned import planned_step
from train.step import Batch, training_step

STOCK = "diffusers + PEFT LoRA"
VAE_SCALE = 8
DRY: dict[str, Any] = KONTEXT_PARTS["transformer"] | {
    "num_layers": 2,
    "num_single_layers": 2,
    "num_attention_heads": 2,
    "attention_head_dim": 16,
    "joint_attention_dim": 32,
    "pooled_projection_dim": 24,
    "axes_dims_rope": [4, 6, 6],
}


def parser() -> argparse.ArgumentParser:
    """The arguments."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_config_arguments(parser)
    parser.set_defaults(config="configs/kontext.yaml")
    add = parser.add_argument
    add(
        "--sizes",
        type=int,
        nargs="+",
        default=[512, 1024],
        help="sides in pixels (default: 512 1024)",
    )
    add(
        "--weights",
        nargs="+",
        choices=("bf16", "nf4", "fp8"),
        default=["bf16"],
        help="precision of the frozen weights",
    )
    add("--batch", type=int, default=1, help="pairs per step (default: 1)")
    add("--styles", type=int, default=4, help="experts per layer (default: 4)")
    add("--rounds", type=int, default=20, help="measured rounds (default: 20)")
    add("--peak", type=float, help="TFLOP/s of the GPU in bfloat16 (known for common ones)")
    add("--dry", action="store_true", help="tiny sizes on the CPU; no result unless --result")
    add_result_argument(parser, "train_kontext", "cuda")
    return parser


@command
def main(argv: list[str] | None = None) -> int:
    """Time the steps and write the result.

    Raises:
        UserError: no GPU and not --dry, or a package of nf4 or fp8 that is not there.
    """
    arguments = parser()
    args = arguments.parse_intermixed_args(argv)
    if not args.dry and not torch.cuda.is_available():
        raise UserError("the full size needs a GPU; `--dry` runs tiny sizes on the CPU")
    config = load_config(args.config, args.overrides, RunConfig)
    cases = {}
    for weights in args.weights:
        base = frozen_transformer(args, weights)
        for size in args.sizes:
            name = f"{weights}, {size} px"
            print(name)
            side = size // 16 if args.dry else size
            cases[name] = measured(base, config, step_shape(args, side), args)
    shape = {"batch": args.batch, "experts": args.styles, "rank": config.experts.rank}
    result = provenance(("torch", "diffusers", "peft")) | shape | {"dry": args.dry, "cases": cases}
    if not args.dry or args.result != arguments.get_default("result"):
        write_json(args.result, result)
        print(f"{args.result} written")
    return 0


def frozen_transformer(args: argparse.Namespace, weights: str) -> FluxTransformer2DModel:
    """The base in bfloat16, or its blocks' linear layers in fewer bits, with random weights."""
    device = "cpu" if args.dry else "cuda"
    with torch.device("meta"):
        model = FluxTransformer2DModel.from_config(settings_of(args))
    nn.Module.to(model, torch.bfloat16)  # diffusers' own warns of a cast
    # Weights to be quantized need not fit the GPU before.
    model.to_empty(device=device if weights == "bf16" else "cpu").requires_grad_(False)
    generator = torch.Generator(model.device).manual_seed(0)
    for name, parameter in model.named_parameters():
        if parameter.ndim > 1:
            parameter.data.normal_(std=parameter.shape[-1] ** -0.5, generator=generator)
        else:
            parameter.data.fill_(0.0 if name.endswith("bias") else 1.0)
    return model if weights == "bf16" else in_few_bits(model, weights, device)


def in_few_bits(model: FluxTransformer2DModel, kind: Any, device: str) -> FluxTransformer2DModel:
    """Replaces the blocks' linear layers by those of `quantize_blocks`.

    Raises:
        UserError: the package it needs is not there.
    """
    quantize_blocks(model, kind, device)
    nn.Module.to(model, device)
    return model


def twin(model: FluxTransformer2DModel) -> FluxTransformer2DModel:
    """Another model around the same frozen tensors, so that two adapted ones need them once."""
    frozen = [*model.parameters(), *model.buffers()]
    return copy.deepcopy(model, {id(tensor): tensor for tensor in frozen})


def settings_of(args: argparse.Namespace) -> dict[str, Any]:
    """The transformer's configuration."""
    return DRY if args.dry else KONTEXT_PARTS["transformer"]


def step_shape(args: argparse.Namespace, size: int) -> StepShape:
    """Sizes of a step on square images."""
    settings = settings_of(args)
    side = 2 * round(size / (2 * VAE_SCALE))
    return StepShape(
        batch=args.batch,
        latent=(settings["in_channels"] // 4, side, side),
        text=(32 if args.dry else 512, settings["joint_attention_dim"]),
        pooled=settings["pooled_projection_dim"],
        experts=args.styles,
    )


def measured(
    base: FluxTransformer2DModel, config: RunConfig, shape: StepShape, args: argparse.Namespace
) -> dict[str, Any]:
    """Time, memory and share of the peak of each way to make a step."""
    batch = made_up_batch(shape).to(base.device)
    ours = our_model(twin(base), config, shape.experts)
    mine = torch.optim.AdamW(adapter_parameters(ours), lr=config.optim.lr)
    stock = stock_model(twin(base), config)
    theirs = [p for p in stock.parameters() if p.requires_grad]
    rival = torch.optim.AdamW(theirs, lr=config.optim.lr)
    run = partial(our_step, ours, batch, mine)
    steps: dict[str, Callable[[], None]] = {
        STOCK: partial(stock_step, stock, batch, rival, theirs, config),
        "ours, without supervision": partial(run, without_supervision(config)),
        "ours, supervised": partial(run, config),
    }
    seconds = paired_seconds(steps, args.rounds)
    settings = settings_of(args)
    plans = {
        name: trace_step(settings, changed, shape, planned_step)
        for name, changed in (
            ("ours, without supervision", without_supervision(config)),
            ("ours, supervised", config),
        )
    }
    flops = plans["ours, without supervision"].flops
    peak = args.peak or known_peak()
    table: dict[str, Any] = {"tokens": shape.tokens, "teraflop a step": flops / 1e12}
    for name, call in steps.items():
        middle = quartiles(seconds[name])
        ratio = median_ratio(seconds, STOCK, name)
        table[name] = {
            "seconds": middle,
            "speed over stock": ratio,
            "bytes over weights": peak_bytes(call),
            # The step also makes its gradients, which the trace has from the beginning.
            "planned bytes over weights": plans[name].activations + 4 * plans[name].trainable
            if name in plans
            else None,
            "share of peak": None if peak is None else flops / (middle[1] * peak * 1e12),
        }
        print(f"  {name:<28} {middle[1]:.3f} s, {ratio:.3f} x the speed of {STOCK}")
    return table


def known_peak() -> float | None:
    """TFLOP/s of this GPU, None if its name is not in the table (or there is none)."""
    if not torch.cuda.is_available():
        return None
    found = chip_of(torch.cuda.get_device_name())
    return found.teraflops if found else None


def our_model(
    model: FluxTransformer2DModel, config: RunConfig, styles: int
) -> FluxTransformer2DModel:
    """The base with experts."""
    experts = config.experts
    inject(model, experts.targets, styles, experts.rank, experts.alpha, experts.dropout)
    return _training(model, config)


def stock_model(model: FluxTransformer2DModel, config: RunConfig) -> FluxTransformer2DModel:
    """The base with one LoRA of the same rank, as diffusers' training scripts make it."""
    experts = config.experts
    targets = experts.targets
    suffixes = KONTEXT.targets[targets] if isinstance(targets, str) else targets
    model.add_adapter(
        LoraConfig(
            r=experts.rank, lora_alpha=experts.alpha, init_lora_weights="gaussian",
            target_modules=list(suffixes),
        )
    )  # fmt: skip
    cast_training_params(model, dtype=torch.float32)
    return _training(model, config)


def _training(model: FluxTransformer2DModel, config: RunConfig) -> FluxTransformer2DModel:
    if config.train.gradient_checkpointing:
        model.enable_gradient_checkpointing()
    return model.train()


def our_step(
    model: FluxTransformer2DModel,
    batch: Batch,
    optimizer: torch.optim.Optimizer,
    config: RunConfig,
) -> None:
    """One optimizer step as `train/trainer.py` makes it, without DeepSpeed."""
    with training_step(model, batch, config) as losses:
        losses.total.mean().backward()
    nn.utils.clip_grad_norm_(adapter_parameters(model), config.optim.clip)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)


def stock_step(
    model: FluxTransformer2DModel,
    batch: Batch,
    optimizer: torch.optim.Optimizer,
    parameters: list[nn.Parameter],
    config: RunConfig,
) -> None:
    """One optimizer step of a stock LoRA training in mixed precision."""
    with torch.autocast(model.device.type, dtype=torch.bfloat16):
        velocity = predict_velocity(
            model, add_noise(batch.target, batch.noise, batch.sigma), batch.context,
            batch.prompt_embeds, batch.pooled, batch.sigma, config.flow.guidance,
        )  # fmt: skip
    wanted = velocity_target(batch.target, batch.noise)
    (velocity.float() - wanted.float()).square().mean().backward()
    nn.utils.clip_grad_norm_(parameters, config.optim.clip)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)


def made_up_batch(shape: StepShape) -> Batch:
    """Random latents and text, one object an image."""
    generator = torch.Generator().manual_seed(0)
    size, (_, height, width) = shape.batch, shape.latent

    def noise(*sizes: int) -> Tensor:
        return torch.randn(*sizes, generator=generator)

    mask = torch.zeros(size, 1, height // 2, width // 2)
    mask[..., : height // 4 or 1, : width // 4 or 1] = 1
    plan = AttentionPlan(
        token_index=torch.tensor([5, 6]).expand(size, 1, 2).contiguous(),
        masks=mask,
        valid=torch.ones(size, 1, dtype=torch.bool),
        text_len=shape.text[0],
        image_len=shape.image_tokens,
    )
    return Batch(
        ids=tuple(map(str, range(size))),
        target=noise(size, *shape.latent),
        context=noise(size, *shape.latent),
        noise=noise(size, *shape.latent),
        sigma=torch.rand(size, generator=generator).clamp(min=0.1),
        prompt_embeds=noise(size, *shape.text).bfloat16(),
        pooled=noise(size, shape.pooled).bfloat16(),
        expert_ids=torch.arange(size) % shape.experts,
        plan=plan,
        inside=nn.functional.interpolate(mask, scale_factor=2.0),
    )


if __name__ == "__main__":
    raise SystemExit(main())
