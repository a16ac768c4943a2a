"""Are output, columns and gradients of every attention kernel those of the dense softmax?

    python bench/gpu_kernels.py                # on a GPU, FLUX.1-Kontext's heads at 512 px
    python bench/gpu_kernels.py --dry          # on the CPU, small

Every kernel of `regionroute.attention.attend` that runs here, with and without a mask, in
bfloat16 (on a GPU also float16), against a dense softmax in float32 on the same values. The
yardstick is that softmax in the kernel's own precision: an error of at most twice its error passes.
A kernel that cannot run here is listed with the reason. The result goes to
bench/results/gpu_kernels.json, on a GPU to gpu_kernels_cuda.json.
"""

import argparse
from collections.abc import Callable
from typing import Any

import torch
from _shared import add_result_argument, provenance
from torch import Tensor

from regionroute.attention import attend
from regionroute.config.choices import BACKENDS
from regionroute.errors import UserError
from regionroute.files import write_json

SHAPE, DRY = (1, 24, 2560, 128), (1, 2, 96, 16)
FLOOR = 1e-4  # relative: a log-sum-exp of float32, whatever the precision of the inputs
PARTS = ("output", "columns", "gradient of the query", "of the key", "of the value")


def main() -> int:
    """Check every kernel and write the result; 1 if one of them is wrong."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--dry", action="store_true", help="small, on the CPU")
    cuda = torch.cuda.is_available()
    add_result_argument(parser, "gpu_kernels", "cuda" if cuda else "cpu")
    args = parser.parse_args()
    device = "cuda" if cuda and not args.dry else "cpu"
    dtypes = (torch.bfloat16, torch.float16) if device == "cuda" else (torch.bfloat16,)
    rows = [
        checked(name, dtype, masked, DRY if args.dry else SHAPE, device)
        for dtype in dtypes
        for masked in (False, True)
        for name in BACKENDS
        if name != "auto"
    ]
    for row in rows:
        print(f"{row['kernel']:<10}{row['dtype']:<10}{'masked' if row['masked'] else '':<8}"
              f"{row.get('refused') or row['errors']}")  # fmt: skip
    write_json(
        args.result, provenance(("torch",)) | {"shape": DRY if args.dry else SHAPE, "kernels": rows}
    )
    return int(any(row.get("passes") is False for row in rows))


def checked(
    name: str, dtype: torch.dtype, masked: bool, shape: tuple[int, int, int, int], device: str
) -> dict[str, Any]:
    """Errors of one kernel, relative to the norm of what is right."""
    generator = torch.Generator(device).manual_seed(0)
    values = torch.randn(3, *shape, generator=generator, device=device).to(dtype)
    tokens = shape[2]
    columns = torch.tensor([[[5, 6]]], device=device)
    rows = slice(tokens // 5, tokens // 5 * 3)
    mask = None
    if masked:
        mask = torch.ones(1, 1, 1, tokens, dtype=torch.bool, device=device)
        mask[..., 7:20] = False
    weights = torch.randn(shape, generator=generator, device=device)
    row: dict[str, Any] = {"kernel": name, "dtype": str(dtype)[6:], "masked": masked}

    def run(inputs: Tensor, backend: str) -> list[Tensor]:
        query, key, value = (x.detach().requires_grad_() for x in inputs)
        out, probs = attend(query, key, value, columns, rows=rows, mask=mask, backend=backend)
        ((out.float() * weights).sum() + 100 * probs.log().mean()).backward()
        return [out, probs, query.grad, key.grad, value.grad]

    try:
        found = run(values, name)
    except (UserError, RuntimeError) as reason:
        return row | {"refused": str(reason).splitlines()[0]}
    right, rounded = run(values.float(), "dense"), run(values, "dense")
    error: Callable[[Tensor, Tensor], float] = lambda a, b: float(  # noqa: E731
        (a.float() - b.float()).norm().detach() / b.float().norm().detach()
    )
    errors = {part: error(a, b) for part, a, b in zip(PARTS, found, right, strict=True)}
    limits = {part: error(a, b) for part, a, b in zip(PARTS, rounded, right, strict=True)}
    passes = all(errors[part] <= 2 * limits[part] + FLOOR for part in PARTS)
    return row | {"errors": errors, "errors of the dense softmax": limits, "passes": passes}


if __name__ == "__main__":
    raise SystemExit(main())
