"""The cost of exact style-token columns on top of attention: time and memory, both passes.

    python bench/attention.py               # all shapes that fit this machine
    python bench/attention.py --shapes nano --rounds 50

Rivals in the same run: `F.scaled_dot_product_attention` alone (no columns), the dense softmax with
its columns selected, and the published code's scheme (a softmax over the selected tokens only;
rewritten without its Python loops: cheaper, but no gradient for one-token styles). Both fixes of
the backward pass are compared, and every other kernel that runs here.
The result goes to bench/results/attention.json, on a GPU to attention_cuda.json.
"""

import argparse
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from _shared import (
    add_result_argument,
    median_ratio,
    paired_seconds,
    peak_bytes,
    provenance,
    quartiles,
)
from torch import Tensor

from regionroute.attention import attend, attend_among, kernels
from regionroute.errors import UserError
from regionroute.files import write_json

# batch, heads, text + target + context tokens, head width, pairs, dtype
SHAPES: dict[str, tuple[int, int, tuple[int, int, int], int, int, torch.dtype]] = {
    "nano": (16, 6, (32, 64, 64), 32, 1, torch.float32),
    "small": (1, 8, (128, 1024, 1024), 64, 1, torch.float32),
    "small, bf16": (1, 8, (128, 1024, 1024), 64, 1, torch.bfloat16),
    "small, 4 pairs": (1, 8, (128, 1024, 1024), 64, 4, torch.float32),
    "flux": (1, 24, (512, 4096, 4096), 128, 1, torch.bfloat16),
    "flux, 4 pairs": (1, 24, (512, 4096, 4096), 128, 4, torch.bfloat16),
}
RIVAL = "scaled_dot_product_attention"
Run = Callable[..., tuple[Tensor, Tensor | None]]


def dense(
    query: Tensor, key: Tensor, value: Tensor, columns: Tensor, rows: slice
) -> tuple[Tensor, Tensor]:
    """The full attention matrix, as diffusers' attention stores keep it."""
    matrix = (query @ key.mT * query.shape[-1] ** -0.5).softmax(-1)
    index = columns.flatten(1)[:, None, None].expand(-1, *matrix.shape[1:3], -1)
    probs = matrix.gather(-1, index)[:, :, rows].float()
    return matrix @ value, probs.unflatten(-1, columns.shape[1:])


def plain(
    query: Tensor, key: Tensor, value: Tensor, columns: Tensor, rows: slice
) -> tuple[Tensor, None]:
    """No columns."""
    return F.scaled_dot_product_attention(query, key, value), None


def padded(*args: Any, **options: Any) -> tuple[Tensor, Tensor]:
    """`attend` with the other fix of its backward pass."""
    return attend(*args, **options)


def methods() -> dict[str, Run]:
    """All methods; a kernel that cannot run here is dropped later."""
    named = {
        f"attend ({name})": partial(attend, backend=name) for name in ("cudnn", "xformers", "flex")
    }
    return {
        RIVAL: plain,
        "attend": attend,
        "attend, padded repair": padded,
        "dense softmax": dense,
        "selected tokens only": partial(attend_among, text_len=None),
        **named,
    }


def main() -> int:
    """Measure every shape and write the result."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    cuda = torch.cuda.is_available()
    usual = [name for name in SHAPES if cuda or not name.startswith("flux")]
    parser.add_argument("--shapes", nargs="+", choices=list(SHAPES), default=usual)
    parser.add_argument("--rounds", type=int, default=15, help="measured rounds per shape")
    add_result_argument(parser, "attention", "cuda" if cuda else "cpu")
    args = parser.parse_args()
    result = provenance(("torch",)) | {"shapes": {}}
    for name in args.shapes:
        result["shapes"][name] = measure(name, args.rounds, "cuda" if cuda else "cpu")
    write_json(args.result, result)
    print(f"{args.result} written")
    return 0


def measure(name: str, rounds: int, device: str) -> dict[str, Any]:
    """Time, ratio to plain attention and to the dense softmax, and memory of every method."""
    batch, heads, parts, width, pairs, dtype = SHAPES[name]
    tokens = sum(parts)
    torch.manual_seed(0)
    inputs = torch.randn(3, batch, tokens, heads, width, dtype=dtype, device=device).transpose(2, 3)
    columns = torch.arange(5, 5 + 2 * pairs, device=device).view(1, pairs, 2).expand(batch, -1, -1)
    rows = slice(parts[0], parts[0] + parts[1])
    weights = torch.randn(batch, heads, tokens, width, dtype=dtype, device=device)
    runs = {}
    print(f"{name}: B {batch}, H {heads}, N {tokens}, D {width}, S {pairs}, {dtype}, {device}")
    for method, run in methods().items():
        call = partial(step, run, inputs, columns, rows, weights)
        if run is padded:
            call = partial(with_padding, call)
        try:
            call()
        except (UserError, torch.OutOfMemoryError) as reason:
            print(f"  {method}: left out, {reason}")
            continue
        runs[method] = call
    seconds = paired_seconds(runs, rounds)
    table = {}
    for method, run in runs.items():
        row = {"seconds": quartiles(seconds[method]), "bytes": peak_bytes(run)}
        row["over plain"] = median_ratio(seconds, method, RIVAL)
        if "dense softmax" in runs:
            row["over dense"] = median_ratio(seconds, method, "dense softmax")
        table[method] = row
        dense_ratio = f", {row['over dense']:.2f} x dense" if "over dense" in row else ""
        memory = f", {row['bytes'] / 2**20:.0f} MB" if row["bytes"] is not None else ""
        print(
            f"  {method:<30} {1e3 * row['seconds'][1]:8.1f} ms, {row['over plain']:.2f} x plain"
            f"{dense_ratio}{memory}"
        )
    return table


def step(run: Run, inputs: Tensor, columns: Tensor, rows: slice, weights: Tensor) -> None:
    """One forward and backward pass, with a loss on the output and, if there, on the columns."""
    query, key, value = (x.detach().requires_grad_() for x in inputs)
    out, probs = run(query, key, value, columns, rows=rows)
    loss = (out * weights).sum()
    if probs is not None:
        loss = loss + probs.log().mean()
    loss.backward()


def with_padding(run: Callable[[], None]) -> None:
    """Run with the padded repair in every precision."""
    before = kernels.needs_padding
    kernels.needs_padding = lambda dtype: True
    try:
        run()
    finally:
        kernels.needs_padding = before


if __name__ == "__main__":
    raise SystemExit(main())
