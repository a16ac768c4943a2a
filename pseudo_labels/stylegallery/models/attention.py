"""Records attention layers, and computes attention to single regions.

Shape legend: B images, H heads, N cells of a layer's grid, n cells of a region, d head width.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

Masking = Literal["exclude", "multiply"]
# Queries, keys and values [B, H, N, d] to the result of attention, of the same shape.
Attend = Callable[[Tensor, Tensor, Tensor], Tensor]


@dataclass
class Recorded:
    """One entry per layer, in the order of execution.

    Attributes:
        queries: [B, H, N, d].
        keys: [B, H, N, d].
        values: [B, H, N, d].
        outputs: results of attention before the output projection, [B, H, N, d]; missing for the
            last layer if the pass ended there.
    """

    queries: list[Tensor] = field(default_factory=list)
    keys: list[Tensor] = field(default_factory=list)
    values: list[Tensor] = field(default_factory=list)
    outputs: list[Tensor] = field(default_factory=list)


def self_attention_layers(unet: Any) -> list[Any]:
    """All self-attention modules of a `UNet2DConditionModel`, in the order of execution."""
    stages = [*unet.down_blocks, *([unet.mid_block] if unet.mid_block else []), *unet.up_blocks]
    return [
        module
        for stage in stages
        for name, module in stage.named_modules()
        if name.rpartition(".")[2] == "attn1"
    ]


class Complete(Exception):
    """Everything is recorded: stops the rest of the forward pass."""


class UNetProcessor:
    """Self-attention of images, which has no mask, as in diffusers' `AttnProcessor2_0`, recorded.

    Args:
        attend: computes and records attention.
    """

    def __init__(self, attend: Attend) -> None:
        self._attend = attend

    def __call__(self, attn: Any, hidden_states: Tensor, *args: Any, **options: Any) -> Tensor:
        """One self-attention layer on [B, N, C]."""
        query, key, value = (
            linear(hidden_states).unflatten(-1, (attn.heads, -1)).transpose(1, 2)
            for linear in (attn.to_q, attn.to_k, attn.to_v)
        )
        output = self._attend(query, key, value)
        merged = attn.to_out[1](attn.to_out[0](output.transpose(1, 2).flatten(2)))
        residual = hidden_states if attn.residual_connection else 0
        result: Tensor = (merged + residual) / attn.rescale_output_factor
        return result


@contextmanager
def recording(
    layers: Sequence[Any],
    inputs_only: bool = False,
    make: Callable[[Any, Attend], Any] = lambda _layer, attend: UNetProcessor(attend),
) -> Iterator[Recorded]:
    """Sets recording processors on layers and restores the former ones afterwards.

    A forward pass inside the block stops silently after the last layer, so it must be the last
    statement of the block.

    Args:
        layers: attention modules in the order of execution.
        inputs_only: do not compute the output of the last layer.
        make: makes the processor of a layer.
    """
    record = Recorded()
    before = [layer.processor for layer in layers]

    def attend(last: bool, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        record.queries.append(query)
        record.keys.append(key)
        record.values.append(value)
        if last and inputs_only:
            raise Complete
        record.outputs.append(F.scaled_dot_product_attention(query, key, value))
        if last:
            raise Complete
        return record.outputs[-1]

    try:
        for layer in layers:
            layer.set_processor(make(layer, partial(attend, layer is layers[-1])))
        yield record
    except Complete:
        pass
    finally:
        for layer, processor in zip(layers, before, strict=True):
            layer.set_processor(processor)


def region_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    temperature: float = 1.0,
    masking: Masking = "exclude",
    total: int | None = None,
) -> Tensor:
    """Attention of some queries to the keys of one region, with fused kernels.

    Args:
        query: [B, H, m, d].
        key: the region's keys [B, H, n, d].
        value: its values [B, H, n, d].
        temperature: factor on the logits, in addition to 1/√d.
        masking: "exclude": keys outside the region get no weight, as if masked by −∞. "multiply":
            as in the published code, which sets keys and values outside to zero and so gives
            each of them the weight exp(0). They are equal, so one zero key with the logit
            log(total − n) represents them exactly.
        total: number of keys of the image, for "multiply".

    Returns:
        [B, H, m, d].
    """
    scale = temperature / math.sqrt(query.shape[-1])
    outside = 0 if total is None or masking == "exclude" else total - key.shape[-2]
    if not outside:
        return F.scaled_dot_product_attention(query, key, value, scale=scale)
    key, value = F.pad(key, (0, 0, 0, 1)), F.pad(value, (0, 0, 0, 1))
    bias = torch.zeros(1, 1, 1, key.shape[-2], dtype=query.dtype, device=query.device)
    bias[..., -1] = math.log(outside)
    bias = bias.expand(1, 1, query.shape[-2], -1)
    return F.scaled_dot_product_attention(query, key, value, attn_mask=bias, scale=scale)
