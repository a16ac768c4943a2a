"""Counts the memory and the operations of code that runs on fake tensors.

Fake tensors have a shape, a type and a device but no data. Every operation reports the storages it
makes, so that a peak is that of the operations themselves and not of a formula. What an allocator
or a kernel needs besides is not in it.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import flop_registry

from regionroute.compat import (
    FakeTensorMode,
    TorchDispatchMode,
    operator_of,
    storage_key,
    tree_leaves,
)


class MemoryCounter(TorchDispatchMode):
    """Follows the storages that operations make, and their matrix products.

    Attributes:
        now: bytes alive, of those made inside the mode or given to `add`.
        peak: the most that `now` has been.
        flops: so far, as `torch.utils.flop_counter` counts them.
        operations: how many were dispatched.
    """

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = self.flops = self.operations = 0
        self._sizes: dict[int, int] = {}

    def add(self, tensor: Tensor) -> None:
        """Counts a tensor's storage until nobody holds it; once, however many tensors share it."""
        storage = tensor.untyped_storage()
        key = storage_key(storage)
        if key in self._sizes:
            return
        self._sizes[key] = storage.nbytes()
        self.now += self._sizes[key]
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._drop, key).atexit = False

    def _drop(self, key: int) -> None:
        self.now -= self._sizes.pop(key)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        self.operations += 1
        count = flop_registry.get(operator_of(func))
        if count is not None:
            self.flops += count(*args, **kwargs, out_val=out)
        for tensor in tree_leaves(out):
            if isinstance(tensor, Tensor):
                self.add(tensor)
        return out


def fake_tensors() -> FakeTensorMode:
    """A context in which new tensors have no data; real ones from outside may take part."""
    return FakeTensorMode(allow_non_fake_inputs=True)


@contextmanager
def counted(dtype: torch.dtype) -> Iterator[MemoryCounter]:
    """Makes fake tensors inside and counts them, floating ones of `dtype` by default."""
    counter = MemoryCounter()
    with fake_tensors(), default_dtype(dtype), counter:
        yield counter


@contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    """The type that new weights have inside."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)
