"""Every use of private names of PyTorch, diffusers, transformers and DeepSpeed.

An upgrade may remove or change any of them without notice, hence one place and one test for each
(tests/regionroute/test_compat.py). Libraries are imported inside the functions: this module is
imported by light ones.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.utils._python_dispatch import TorchDispatchMode
    from torch.utils._pytree import tree_leaves

__all__ = [
    "FakeTensorMode",
    "TorchDispatchMode",
    "attention_operators",
    "gather_again",
    "in_backward_pass",
    "is_partitioned",
    "lerp_all",
    "operator_of",
    "own_part",
    "set_all",
    "skip_shared_memory_op",
    "storage_key",
    "t5_text_map",
    "tree_leaves",
    "uses_default_attention",
    "whole_size",
]

# What `regionroute.planning` traces a training step with; PyTorch has no public counterparts.
_FROM_TORCH = {
    "FakeTensorMode": "torch._subclasses.fake_tensor",
    "TorchDispatchMode": "torch.utils._python_dispatch",
    "tree_leaves": "torch.utils._pytree",
}
# The fused kernels behind `scaled_dot_product_attention`. They return the log-sum-exp, which the
# public function does not.
ATTENTION_OPERATORS = tuple(
    f"_scaled_dot_product_{name}"
    for name in (
        "flash_attention_for_cpu",
        "flash_attention_for_cpu_backward",
        "flash_attention",
        "flash_attention_backward",
        "efficient_attention",
        "efficient_attention_backward",
        "cudnn_attention",
        "cudnn_attention_backward",
    )
)


def __getattr__(name: str) -> Any:
    if name not in _FROM_TORCH:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_FROM_TORCH[name]), name)


# --- PyTorch --------------------------------------------------------------------------------------


def attention_operators() -> Any:
    """The namespace that holds `ATTENTION_OPERATORS`."""
    import torch

    return torch.ops.aten


def in_backward_pass() -> bool:
    """Whether autograd is running a backward pass in this thread.

    torch.utils.checkpoint tells recomputations of different threads apart in this way. A hook
    around the model's forward would not do: the compiler ignores hooks that come and go.
    """
    import torch

    return bool(torch._C._current_graph_task_id() != -1)


def storage_key(storage: torch.UntypedStorage) -> int:
    """A number that two tensors share if they share memory; fake tensors have no address."""
    return int(storage._cdata)


def operator_of(overload: Any) -> Any:
    """The operator ("aten.mm") of an overload ("aten.mm.default"), as flop_registry is keyed."""
    return overload._overloadpacket


def lerp_all(targets: Sequence[Tensor], ends: Sequence[Tensor], weight: float) -> None:
    """Moves each target towards its end, in place, in one kernel for all: targets of any shapes."""
    import torch

    torch._foreach_lerp_(list(targets), list(ends), weight)


def set_all(targets: Sequence[Tensor], values: Sequence[Tensor]) -> None:
    """Copies each value into its target in one kernel for all."""
    import torch

    torch._foreach_copy_(list(targets), list(values))


# --- diffusers and transformers -------------------------------------------------------------------


def uses_default_attention(processor: Any) -> bool:
    """Whether an attention processor of diffusers computes plain attention on one device.

    ``set_attention_backend`` and context parallelism are known to the processor alone.
    """
    return processor._attention_backend is None and processor._parallel_config is None


def t5_text_map(character_map: bytes) -> dict[str, bytes]:
    """The argument of T5TokenizerFast that replaces characters before a text is split."""
    return {"_spm_precompiled_charsmap": character_map}


# --- DeepSpeed's ZeRO-3 parameters ----------------------------------------------------------------


def is_partitioned(parameter: nn.Parameter) -> bool:
    """Whether each process keeps only a part of this parameter."""
    return hasattr(parameter, "ds_tensor")


def own_part(parameter: nn.Parameter) -> Tensor:
    """The part that this process keeps, flat and padded; the parameter's data if it is whole."""
    part: Any = getattr(parameter, "ds_tensor", None)
    return parameter.data if part is None else part.data


def whole_size(parameter: nn.Parameter) -> torch.Size:
    """Shape of the whole parameter, also while it is partitioned."""
    size: torch.Size = getattr(parameter, "ds_shape", parameter.shape)
    return size


def gather_again(parameters: Sequence[nn.Parameter]) -> None:
    """After `own_part` was written: updates the parameters that are kept gathered.

    All processes must call it.
    """
    each: list[Any] = list(parameters)
    gathered = [p for p in each if is_partitioned(p) and p.data.numel() == p.ds_numel]
    if gathered:
        gathered[0].partition(gathered)
        gathered[0].all_gather(gathered)


def skip_shared_memory_op(deepspeed: Any) -> bool:
    """Keeps DeepSpeed from compiling its CPU collective for a minute; gloo does without it.

    Returns:
        Whether this version has the table of operators in which it is switched off.
    """
    table = getattr(getattr(deepspeed, "ops", None), "__compatible_ops__", None)
    if not isinstance(table, dict):
        return False
    table["deepspeed_shm_comm"] = False
    return True
