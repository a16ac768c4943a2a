"""How much faster an edit is when most of its calls compute its region only.

    python bench/region_sparse.py                     # FLUX.1-Kontext and FLUX.2-klein-4B
    python bench/region_sparse.py --base flux2-klein-4b --resolution 512 --rounds 3
    python bench/region_sparse.py --device cuda --dtype bfloat16 --blocks 19 38

True width and token counts, random weights, and as many blocks as fit: a call's time is linear in
the number of blocks, so the time of the whole model is composed from a model with one single block
and one without blocks; ``--blocks`` measures a model of any size instead. A whole sampling is
composed of its measured calls: dense, ``steps + 1`` calls as without sparse sampling (one reads the
map); sparse, those of `schedule` (the first reads the map as well). Times on the CPU are the
process's CPU time. Speed says nothing about quality, see region_sparse_quality.py.
The result goes to bench/results/region_sparse.json, on a GPU to region_sparse_cuda.json.
"""

import argparse
import functools
import gc
import math
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from _shared import add_result_argument, paired_seconds, provenance
from diffusers import Flux2Transformer2DModel, FluxTransformer2DModel
from torch import Tensor

from regionroute.config.choices import SPARSE_QUALITIES
from regionroute.diffusion.flow import predict_velocity
from regionroute.editing.sparse import LAST_RING, BranchCalls, Kind, Region, region_of, schedule
from regionroute.files import write_json

# The published configurations; blocks are (double, single).
BASES: dict[str, tuple[Any, dict[str, Any], tuple[int, int], int]] = {
    "flux1-kontext-12b": (
        FluxTransformer2DModel,
        {
            "in_channels": 64, "attention_head_dim": 128, "num_attention_heads": 24,
            "joint_attention_dim": 4096, "pooled_projection_dim": 768, "guidance_embeds": True,
        },
        (19, 38),
        512,
    ),
    "flux2-klein-4b": (
        Flux2Transformer2DModel,
        {
            "in_channels": 128, "attention_head_dim": 128, "num_attention_heads": 24,
            "joint_attention_dim": 7680, "mlp_ratio": 3.0, "guidance_embeds": False,
        },
        (5, 20),
        512,
    ),
}  # fmt: skip
DRY = {
    "attention_head_dim": 16, "num_attention_heads": 2, "joint_attention_dim": 32,
}  # fmt: skip
AREAS = (0.05, 0.1, 0.2, 0.4, 1.0)
STEPS = (28, 4)
KINDS: tuple[Kind, ...] = ("full", "partial", "wide", "local")


def model(kind: Any, settings: dict[str, Any], blocks: tuple[int, int], like: Tensor) -> Any:
    """A frozen transformer with small random weights."""
    double, single = blocks
    with torch.device("meta"):
        found = kind(num_layers=double, num_single_layers=single, **settings)
    found = found.to(like.dtype).to_empty(device=like.device)
    generator = torch.Generator(like.device).manual_seed(0)
    for parameter in found.parameters():
        parameter.data.normal_(0, 0.02, generator=generator)
    return found.eval().requires_grad_(False)


def square(area: float, grid: int) -> Tensor:
    """A gate [h,w] that is 1 on a square of about that share of the tokens, 0 elsewhere."""
    side = max(1, round(math.sqrt(area) * grid))
    gate = torch.zeros(grid, grid)
    start = (grid - side) // 2
    gate[start : start + side, start : start + side] = 1
    return gate


def calls(
    transformer: Any, settings: dict[str, Any], grid: int, text: int, like: Tensor
) -> dict[str, Callable[[], object]]:
    """The dense call, the full call that stores, and the other kinds for each area."""
    channels = settings["in_channels"] // 4
    noisy = torch.randn(1, channels, 2 * grid, 2 * grid).to(like)
    embeds = torch.randn(1, text, settings["joint_attention_dim"]).to(like)
    pooled = torch.randn(1, settings.get("pooled_projection_dim", 0)).to(like)
    given = (noisy, torch.randn_like(noisy), embeds, pooled, torch.tensor([0.7]), 2.5)
    found: dict[str, Callable[[], object]] = {
        "dense": lambda: predict_velocity(transformer, *given)
    }
    if not transformer.transformer_blocks and not transformer.single_transformer_blocks:
        return found
    sparse = BranchCalls(transformer, square(AREAS[0], grid).to(like.device), len(KINDS))
    sparse.kinds = list(KINDS)
    for kind in KINDS:
        for area in AREAS[:1] if kind == "full" else AREAS[:-1]:
            gate = square(area, grid).to(like.device)
            both = region_of(gate), region_of(gate, ring=LAST_RING)

            def run(both: tuple[Region, Region] = both, step: int = KINDS.index(kind)) -> object:
                sparse.region, sparse.last = both
                return sparse.predict(step, *given)

            found[kind if kind == "full" else f"{kind} {area:.0%}"] = run
    return found


def composed(
    times: dict[tuple[int, int], dict[str, float]], blocks: tuple[int, int]
) -> dict[str, float]:
    """Seconds of each call of the whole model, from those outside the blocks and of a single block.

    Double blocks do as many operations as single ones in both bases and are counted as such. What
    is outside of the blocks is measured for the dense call and counted for all.
    """
    rest = times[0, 0]["dense"]
    return {name: rest + sum(blocks) * (time - rest) for name, time in times[0, 1].items()}


def ratios(seconds: dict[str, float], kinds: Callable[[int], list[Kind]]) -> dict[str, Any]:
    """Dense over sparse time of whole samplings, by number of steps and area."""
    table: dict[str, dict[str, float]] = {}
    for steps in STEPS:
        dense = (steps + 1) * seconds["dense"]
        table[str(steps)] = {
            f"{area:.0%}": dense
            / sum(seconds[k if k == "full" else f"{k} {area:.0%}"] for k in kinds(steps))
            for area in AREAS[:-1]
        }
        # The whole image as region: dense calls, of which the first reads the map.
        table[str(steps)]["100%"] = dense / (steps * seconds["dense"])
    return table


@torch.no_grad()
def main() -> None:
    """Measures, prints a table, writes the result."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--base", choices=BASES, action="append", help="one of the bases (all)")
    parser.add_argument("--resolution", type=int, action="append", help="pixels (1024 and 512)")
    parser.add_argument("--rounds", type=int, default=3, help="measured calls of each (3)")
    parser.add_argument("--device", default="cpu", help="cpu or cuda (cpu)")
    parser.add_argument("--dtype", default="bfloat16", help="float32 or bfloat16 (bfloat16)")
    parser.add_argument(
        "--blocks", type=int, nargs=2, metavar=("DOUBLE", "SINGLE"),
        help="measure a model of so many blocks in place of composing its time",
    )  # fmt: skip
    parser.add_argument(
        "--dry", action="store_true", help="narrow models and 128 px: does every line run?"
    )
    known, _ = parser.parse_known_args()
    add_result_argument(parser, "region_sparse", known.device)
    arguments = parser.parse_args()
    like = torch.empty(0, device=arguments.device, dtype=getattr(torch, arguments.dtype))
    # Other processes on the machine change the wall time, not the CPU time.
    clock = time.process_time if arguments.device == "cpu" else time.perf_counter
    rows = []
    for base in arguments.base or BASES:
        kind, settings, blocks, text = BASES[base]
        if arguments.dry:
            rope = (4, 4, 8) if kind is FluxTransformer2DModel else (4, 4, 4, 4)
            settings = settings | DRY | {"axes_dims_rope": rope}
        for resolution in arguments.resolution or ((128,) if arguments.dry else (1024, 512)):
            grid = resolution // 16
            sizes = [tuple(arguments.blocks)] if arguments.blocks else [(0, 0), (0, 1)]
            times = {}
            for size in sizes:
                transformer = model(kind, settings, size, like)
                methods = calls(transformer, settings, grid, text, like)
                for warm in calls(transformer, settings, 8, text, like).values():
                    warm()
                seconds = paired_seconds(methods, arguments.rounds, clock, warm=False)
                times[size] = {name: statistics.median(values) for name, values in seconds.items()}
                del transformer, methods
                gc.collect()
            whole = times[sizes[0]] if arguments.blocks else composed(times, blocks)
            row = {
                "base": base,
                "resolution": resolution,
                "tokens": [text, grid * grid, grid * grid],
                "dtype": arguments.dtype,
                "measured_blocks": [list(size) for size in sizes],
                "whole_model_blocks": list(arguments.blocks or blocks),
                "seconds_per_call": {name: round(value, 4) for name, value in whole.items()},
                "call_ratio": {n: whole["dense"] / v for n, v in whole.items() if n != "dense"},
                "sampling_ratio": ratios(whole, schedule),
                "quality_ratio": {
                    quality: ratios(whole, functools.partial(schedule, quality=quality))
                    for quality in SPARSE_QUALITIES
                },
            }
            rows.append(row)
            result = provenance(("torch", "diffusers")) | {"rounds": arguments.rounds, "rows": rows}
            write_json(arguments.result, result)
            print(f"{base} {resolution} px", row["call_ratio"], row["sampling_ratio"], flush=True)


if __name__ == "__main__":
    main()
