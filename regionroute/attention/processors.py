"""Attention processors that take the place of the blocks' own for a while.

A block's processor projects, attends and projects back. Ours leave the projections to the family
and differ in the attention alone.
"""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import Tensor

from regionroute.compat import uses_default_attention
from regionroute.diffusion.family import Attention, Family, Processor


class BlockProcessor(ABC):
    """The family's attention step by step.

    Args:
        family: of the transformer.
    """

    def __init__(self, family: Family) -> None:
        self.family = family

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        image_rotary_emb: Any = None,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """As diffusers calls a processor; a double block gives the text apart: it goes first."""
        query, key, value, rest = self.family.project(attn, hidden_states, encoder_hidden_states)
        out = self.attention(query, key, value, attention_mask, image_rotary_emb)
        return self.family.finish(attn, out.flatten(2, 3).to(query.dtype), rest)

    @abstractmethod
    def attention(
        self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, rotary: Any
    ) -> Tensor:
        """From [B,N,H,D] each, before the rotary embedding, to [B,N,H,D]."""


class _Joined:
    """A processor for blocks that take all tokens together and have no text argument."""

    def __init__(self, processor: BlockProcessor) -> None:
        self.processor = processor

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        image_rotary_emb: Any = None,
    ) -> Tensor | tuple[Tensor, Tensor]:
        return self.processor(attn, hidden_states, None, attention_mask, image_rotary_emb)


def called_as(stock: Processor, processor: BlockProcessor) -> Processor:
    """The processor, to be called as a block calls its stock one: by the arguments' places."""
    apart = "encoder_hidden_states" in inspect.signature(type(stock).__call__).parameters
    return processor if apart else _Joined(processor)


@contextmanager
def replaced(
    blocks: Mapping[str, Attention], family: Family, make: Callable[[str], BlockProcessor]
) -> Iterator[None]:
    """Swaps the processors of blocks, and puts their own back at the exit.

    Args:
        blocks: their attention modules by name.
        family: of the transformer.
        make: the processor of a block, by its name.

    Raises:
        ValueError: see `stock_processor`.
    """
    stock = {name: stock_processor(name, attn, family) for name, attn in blocks.items()}
    try:
        for name, attn in blocks.items():
            attn.set_processor(called_as(stock[name], make(name)))
        yield
    finally:
        for name, processor in stock.items():
            blocks[name].set_processor(processor)


def stock_processor(name: str, attn: Any, family: Family) -> Processor:
    """The block's own processor.

    Raises:
        ValueError: processors that replace it would not compute the same.
    """
    processor: Processor = attn.get_processor()
    if type(processor) not in family.processors:
        raise ValueError(f"{name}: cannot record with a {type(processor).__name__}")
    if attn.fused_projections:
        raise ValueError(f"{name}: cannot record fused projections, call unfuse_qkv_projections()")
    if not uses_default_attention(processor):
        raise ValueError(f"{name}: cannot record another attention backend than PyTorch's own")
    return processor
