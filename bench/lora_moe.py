"""The cost of routed experts against one PEFT LoRA on the same layers, and merged against the base.

    python bench/lora_moe.py                      # all shapes that fit this machine
    python bench/lora_moe.py --shapes nano --rounds 50

16 experts of rank 8, top-2, selected in each layer by a style embedding, with and without a shared
expert; one style for the batch, and a different style per sample ("mixed"). Rivals in the same run:
PEFT's LoRA of rank 8, and the base alone. "sampling" is a forward pass without gradients under a
persistent route, as in an edit; "first" enters the route each time, so that gating and gathering
are included; "training" is forward and backward.
The result goes to bench/results/lora_moe.json, on a GPU to lora_moe_cuda.json.
"""

import argparse
import copy
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from typing import Any

import torch
from _shared import add_result_argument, median_ratio, paired_seconds, provenance, quartiles
from peft import LoraConfig, inject_adapter_in_model
from torch import Tensor, nn

from regionroute.adapters import (
    RouteContext,
    SimilarityRouter,
    adapter_layers,
    inject,
    merge,
    routed,
    target_names,
)
from regionroute.diffusion.latents import image_ids
from regionroute.files import write_json
from regionroute.models.loading import load_base

EXPERTS, TOP_K, RANK, STYLE_DIM = 16, 2, 8, 3072
PEFT, BASE = "PEFT LoRA, rank 8", "base"
# batch, tokens, width in and out, dtype of one layer; "nano" is the whole transformer
LAYERS: dict[str, tuple[int, int, int, int, torch.dtype]] = {
    "layer 3072": (1, 512, 3072, 3072, torch.float32),
    "layer 3072, 4 samples": (4, 128, 3072, 3072, torch.float32),
    "layer 3072 to 12288, bf16": (1, 256, 3072, 12288, torch.bfloat16),
    "flux layer": (1, 8704, 3072, 3072, torch.bfloat16),
    "flux layer, 4 samples": (4, 8704, 3072, 3072, torch.bfloat16),
    "flux layer to 12288": (1, 8704, 3072, 12288, torch.bfloat16),
}
NANO = {"nano": 16, "nano, 1 picture": 1}  # batch
Run = Callable[[], Tensor]


def main() -> int:
    """Measure every shape and write the result."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    cuda = torch.cuda.is_available()
    names = [*NANO, *LAYERS]
    usual = [name for name in names if cuda or not name.startswith("flux")]
    parser.add_argument("--shapes", nargs="+", choices=names, default=usual)
    parser.add_argument("--rounds", type=int, default=15, help="measured rounds per shape")
    device = "cuda" if cuda else "cpu"
    add_result_argument(parser, "lora_moe", device)
    args = parser.parse_args()
    settings = {"experts": EXPERTS, "top_k": TOP_K, "rank": RANK, "style_dim": STYLE_DIM}
    result = provenance(("torch", "diffusers", "peft")) | {"settings": settings, "shapes": {}}
    for name in args.shapes:
        torch.manual_seed(0)
        workload = nano(NANO[name], device) if name in NANO else layer(*LAYERS[name], device)
        result["shapes"][name] = measure(name, *workload, rounds=args.rounds)
    write_json(args.result, result)
    print(f"{args.result} written")
    return 0


def nano(batch: int, device: str) -> tuple[nn.Module, dict[str, Tensor], int]:
    """The embedded base's transformer, an input of its own size, and the batch."""
    backbone = load_base("nano", device=device)
    config, side = backbone.transformer.config, backbone.settings.resolution // 8
    text = backbone.settings.max_text_length
    ids = torch.cat([image_ids(side, side, frame) for frame in (0, 1)])
    inputs = {
        "hidden_states": torch.randn(batch, len(ids), config.in_channels),
        "encoder_hidden_states": torch.randn(batch, text, config.joint_attention_dim),
        "pooled_projections": torch.randn(batch, config.pooled_projection_dim),
        "timestep": torch.rand(batch),
        "img_ids": ids,
        "txt_ids": torch.zeros(text, 3),
    }
    return backbone.transformer, {name: x.to(device) for name, x in inputs.items()}, batch


def layer(
    batch: int, tokens: int, inputs: int, outputs: int, dtype: torch.dtype, device: str
) -> tuple[nn.Module, dict[str, Tensor], int]:
    """One linear layer of a FLUX-like width, its input, and the batch."""
    module = nn.Sequential()
    module.add_module("to_q", nn.Linear(inputs, outputs, dtype=dtype, device=device))
    return module, {"input": torch.randn(batch, tokens, inputs, dtype=dtype, device=device)}, batch


def measure(
    name: str, base: nn.Module, inputs: dict[str, Tensor], batch: int, *, rounds: int
) -> dict[str, Any]:
    """Seconds, and ratios to PEFT's LoRA and to the base, per method and use."""
    device = next(iter(inputs.values())).device
    targets: Any = "styleexpert" if "hidden_states" in inputs else ["to_q"]
    styles = torch.randn(batch, STYLE_DIM, device=device)
    routes = {"": RouteContext(style_emb=styles[:1].expand(batch, -1))}
    if batch > 1:
        routes[", mixed"] = RouteContext(style_emb=styles)
    plain = {BASE: base, PEFT: peft(base, target_names(base, targets))}
    adapted = {
        f"routed, k=2{' + shared' if shared else ''}{kind}": (experts(base, targets, shared), route)
        for shared in (0, RANK)
        for kind, route in routes.items()
    }
    plain["merged"] = merged(experts(base, targets, RANK))
    uses: dict[str, dict[str, Callable[[], object]]] = {"sampling": {}, "first": {}, "training": {}}
    with ExitStack() as routes_in_force:
        for method, model in plain.items():
            uses["sampling"][method] = partial(forward, model, inputs)
            if method != "merged":  # the base's code, with nothing to train
                uses["first"][method] = partial(forward, model, inputs)
        uses["training"][PEFT] = partial(train, plain[PEFT], inputs)
        for method, (model, route) in adapted.items():
            uses["first"][method] = partial(under, route, model, forward, inputs)
            uses["training"][method] = partial(under, route, model, train, inputs)
            routes_in_force.enter_context(routed(model, route))
            uses["sampling"][method] = partial(forward, model, inputs)
        return {
            use: table(f"{name}, {use}", methods, rounds, training=use == "training")
            for use, methods in uses.items()
        }


def table(
    title: str, methods: dict[str, Callable[[], object]], rounds: int, *, training: bool
) -> dict[str, Any]:
    """Time methods and print a line of each."""
    seconds = paired_seconds(methods, rounds)
    rows: dict[str, Any] = {}
    print(title)
    for method in methods:
        row: dict[str, Any] = {"seconds": quartiles(seconds[method])}
        row["over PEFT"] = median_ratio(seconds, method, PEFT)
        if not training:
            row["over base"] = median_ratio(seconds, method, BASE)
        rows[method] = row
        over_base = "" if training else f", {row['over base']:.3f} x base"
        print(
            f"  {method:<32} {1e3 * row['seconds'][1]:9.3f} ms, "
            f"{row['over PEFT']:.3f} x PEFT{over_base}"
        )
    return rows


def peft(base: nn.Module, names: list[str]) -> nn.Module:
    """A copy with PEFT's LoRA of rank 8 on the named layers."""
    config = LoraConfig(r=RANK, lora_alpha=RANK, target_modules=names, init_lora_weights=False)
    return inject_adapter_in_model(config, copy.deepcopy(base).requires_grad_(False))


def experts(base: nn.Module, targets: Any, shared_rank: int) -> nn.Module:
    """A copy with routed experts on the same layers, none of them zero."""
    model = copy.deepcopy(base)
    inject(
        model, targets, EXPERTS, RANK, 2.0 * RANK, shared_rank=shared_rank,
        router=lambda: SimilarityRouter(STYLE_DIM, EXPERTS, TOP_K),
    )  # fmt: skip
    for made in adapter_layers(model).values():
        nn.init.normal_(made.lora_B, std=0.02)
        if shared_rank:
            nn.init.normal_(made.shared_B, std=0.02)
    return model


def merged(model: nn.Module) -> nn.Module:
    """The model with two experts merged into its weights."""
    merge(model, [0.6, 0.4] + [0.0] * (EXPERTS - 2))
    return model


@torch.no_grad()
def forward(model: nn.Module, inputs: dict[str, Tensor]) -> None:
    """One pass without gradients."""
    model(**inputs)


def train(model: nn.Module, inputs: dict[str, Tensor]) -> None:
    """One pass and its gradients."""
    for parameter in model.parameters():
        parameter.grad = None
    out = model(**inputs)
    out = out if isinstance(out, Tensor) else out[0]
    out.float().square().mean().backward()


def under(
    route: RouteContext,
    model: nn.Module,
    run: Callable[[nn.Module, dict[str, Tensor]], None],
    inputs: dict[str, Tensor],
) -> None:
    """Run inside a route context entered for this call only."""
    with routed(model, route):
        run(model, inputs)


if __name__ == "__main__":
    raise SystemExit(main())
