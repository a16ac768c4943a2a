"""Precision of LoRA files: rounding, and what it changes."""

from collections.abc import Mapping

import torch
from torch import Tensor

from regionroute.errors import UserError

FILE_DTYPES = {  # by their names in `experts.dtype`
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "float8": torch.float8_e4m3fn,
}
_SIDE_A, _SIDE_B = ".lora_A.weight", ".lora_B.weight"


def rounded(state: Mapping[str, Tensor], dtype: torch.dtype, source: str) -> dict[str, Tensor]:
    """Tensors in the precision of a file.

    Args:
        state: tensors by key.
        dtype: of the file, see `FILE_DTYPES`.
        source: names the state in errors, such as its file.

    Raises:
        UserError: a value beyond the type's range, which would become infinite, or NaN or 448 in
            float8 (by the version of torch).
    """
    largest = torch.finfo(dtype).max
    for key, tensor in state.items():
        size = tensor.abs().max().item()
        if largest < size < float("inf"):
            raise UserError(
                f'{source}: "{key}" holds {size:g} and {_name(dtype)} ends at {largest:g}: '
                "choose a wider type (experts.dtype, or --dtype of `experts compress`)"
            )
    return {key: tensor.to(dtype) for key, tensor in state.items()}


def computable(tensor: Tensor) -> Tensor:
    """Float8 as float16, which holds the same values and can be computed with; else as it is."""
    narrow = tensor.is_floating_point() and tensor.dtype.itemsize == 1
    return tensor.to(torch.float16) if narrow else tensor


def change(before: Mapping[str, Tensor], after: Mapping[str, Tensor]) -> float:
    """How far the products B A of two LoRAs differ.

    Args:
        before: "….lora_A.weight" [r,in] and "….lora_B.weight" [out,r] a layer.
        after: the same layers, of any rank.

    Returns:
        Frobenius norm of the difference over that of `before`, all layers together; 0 where
        `before` is 0.
    """
    total = difference = 0.0
    for key in before:
        if not key.endswith(_SIDE_A):
            continue
        other = key.removesuffix(_SIDE_A) + _SIDE_B
        a, b = before[key].double(), before[other].double()
        total += _squared(a, b)
        joined = torch.cat([a, after[key].double()]), torch.cat([b, -after[other].double()], 1)
        difference += _squared(*joined)
    return (max(difference, 0.0) / total) ** 0.5 if total else 0.0


def _squared(a: Tensor, b: Tensor) -> float:
    """Squared Frobenius norm of B A, without the product."""
    return float(((a @ a.T) * (b.T @ b)).sum())


def _name(dtype: torch.dtype) -> str:
    names = {value: name for name, value in FILE_DTYPES.items()}
    return names.get(dtype, str(dtype).removeprefix("torch."))
