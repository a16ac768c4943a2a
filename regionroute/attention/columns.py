"""Attention output together with a few exact columns of the attention matrix.

Shape legend: B batch, H heads, N all tokens, R chosen query rows, D head width, S supervised
(object, style) pairs of a sample, K tokens of a pair's phrase.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from regionroute.attention.dispatch import choose_backend, flex_attention
from regionroute.attention.kernels import fused_attention
from regionroute.config.choices import Backend

# Logits [B,H,rows,N] that "dense" holds at a time: 256 MB in fp32.
_CHUNK_ELEMENTS = 2**26


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    columns: Tensor,
    *,
    scale: float | None = None,
    rows: slice | None = None,
    mask: Tensor | None = None,
    backend: Backend = "auto",
) -> tuple[Tensor, Tensor]:
    """Scaled dot-product attention and the attention probabilities of chosen keys.

    ``probs[b,h,i,s,k] = exp(q_i·k_j·scale − logsumexp_i)`` with ``j = columns[b,s,k]`` and the
    log-sum-exp over all N keys: the attention that RegionRoute (arXiv:2602.19254) supervises. It
    costs one fused attention: memory grows with N·S and not with N². Gradients are exact through
    both outputs, also through the log-sum-exp, which plain autograd through a fused kernel omits.

    Args:
        query: [B,H,N,D] after QK-norm and rotary embedding; bf16, fp16, fp32 or fp64. Under
            autocast torch >= 2.12 normalises in fp32 while `value` is half precision; query and
            key are then rounded to the value's dtype, as scaled_dot_product_attention does itself
            under autocast, so that `probs` belongs to the attention the model really used.
        key: [B,H,N,D].
        value: [B,H,N,D].
        columns: long [B,S] or [B,S,K] key positions of each sample, -1 = padding.
        scale: factor on the logits, None: 1/sqrt(D).
        rows: query rows of `probs`; None: all.
        mask: bool (True: may attend) or additive, broadcastable to [B,H,N,N], without gradient;
            every row must keep a key.
        backend: "auto" takes the first of cpu, flash, efficient, dense that can run; cudnn,
            xformers and flex (FlexAttention) run only when named. "dense" runs anywhere, in
            chunks of rows.

    Returns:
        ``out`` [B,H,N,D], equal to F.scaled_dot_product_attention, and ``probs`` [B,H,R,S] or
        [B,H,R,S,K] in fp32 (fp64 for fp64 input), 0 at padding.

    Raises:
        UserError: the named backend cannot run here; the message says why.
        ValueError: `columns` or `mask` do not fit.
    """
    wanted = _checked_columns(columns, query)
    if mask is not None and mask.requires_grad:
        raise ValueError("attend gives no gradient to a mask")
    query, key = query.to(value.dtype), key.to(value.dtype)
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    chosen = choose_backend(backend, query, value, mask)
    # Autocast would round the products below back to half precision.
    with torch.autocast(device_type=query.device.type, enabled=False):
        if chosen == "dense":
            out = F.scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=scale)
            lse = _dense_logsumexp(query, key, mask, scale, rows)
        else:
            run = flex_attention if chosen == "flex" else fused_attention
            out, lse = run(query, key, value, mask, scale, chosen)
            lse = lse if rows is None else lse[:, :, rows]
        logits = _column_logits(query, key, wanted, mask, scale, rows)
        probs = (logits - lse[..., None, None]).exp()
    probs = probs.masked_fill(wanted.lt(0)[:, None, None], 0.0)
    return out, probs if columns.ndim == 3 else probs.squeeze(-1)


def attend_among(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    columns: Tensor,
    *,
    text_len: int | None,
    rows: slice | None = None,
    mask: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """As `attend`, but a key's probability is its share among few rivals instead of all keys.

    That is not the model's attention. It is here for comparison: the share among the text tokens,
    and the published code's share among the selected tokens only, where a single token gets the
    constant 1 and no gradient.

    Args:
        query: [B,H,N,D].
        key: [B,H,N,D].
        value: [B,H,N,D].
        columns: long [B,S] or [B,S,K] key positions of each sample, -1 = padding.
        text_len: the first so many keys are the rivals; None: the pair's own K tokens.
        rows: query rows of `probs`; None: all.
        mask: of the attention, as in `attend`; the shares do not see it.

    Returns:
        ``out`` and ``probs`` as `attend` gives them.

    Raises:
        ValueError: `columns` does not fit.
    """
    wanted = _checked_columns(columns, query)
    query, key = query.to(value.dtype), key.to(value.dtype)
    scale = query.shape[-1] ** -0.5
    out = F.scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=scale)
    real = wanted.ge(0)[:, None, None]  # [B,1,1,S,K]
    with torch.autocast(device_type=query.device.type, enabled=False):
        logits = _column_logits(query, key, wanted, None, scale, rows)
        if text_len is not None:
            total = _logits(query, key[:, :, :text_len], scale, rows).logsumexp(-1)[..., None, None]
        else:
            # A pair without any token keeps finite logits: a sum over nothing has no gradient.
            outside = ~real & real.any(-1, keepdim=True)
            total = logits.masked_fill(outside, -torch.inf).logsumexp(-1, keepdim=True)
        probs = (logits - total).exp().masked_fill(~real, 0.0)
    return out, probs if columns.ndim == 3 else probs.squeeze(-1)


def _checked_columns(columns: Tensor, query: Tensor) -> Tensor:
    """The columns as [B,S,K]."""
    if columns.ndim not in (2, 3) or columns.shape[0] != query.shape[0]:
        raise ValueError(
            f"columns must be [B,S] or [B,S,K] with B={query.shape[0]}, got {list(columns.shape)}"
        )
    return columns if columns.ndim == 3 else columns[..., None]


def _wide(tensor: Tensor) -> Tensor:
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def _logits(query: Tensor, key: Tensor, scale: float, rows: slice | None) -> Tensor:
    """[B,H,R,keys], at least fp32."""
    query = query if rows is None else query[:, :, rows]
    return (_wide(query) * scale) @ _wide(key).mT


def _column_logits(
    query: Tensor,
    key: Tensor,
    columns: Tensor,
    mask: Tensor | None,
    scale: float,
    rows: slice | None,
) -> Tensor:
    """Logits [B,H,R,S,K] of the chosen keys; those at padding are any finite number."""
    batch, heads, tokens, width = query.shape
    flat = columns.clamp(min=0).flatten(1)  # [B,S*K]
    picked = key.gather(2, flat[:, None, :, None].expand(-1, heads, -1, width))
    logits = _logits(query, picked, scale, rows)
    if mask is not None:
        bias = mask.expand(batch, heads, tokens, tokens)[:, :, rows or slice(None)]
        bias = bias.gather(3, flat[:, None, None].expand(-1, *bias.shape[1:3], -1))
        logits = _biased(logits, bias)
    return logits.unflatten(-1, columns.shape[1:])


def _biased(logits: Tensor, mask: Tensor) -> Tensor:
    return logits.masked_fill(~mask, -torch.inf) if mask.dtype == torch.bool else logits + mask


def _dense_logsumexp(
    query: Tensor, key: Tensor, mask: Tensor | None, scale: float, rows: slice | None
) -> Tensor:
    """[B,H,R] over all keys, in chunks of rows that the backward pass computes again."""
    batch, heads, tokens, _ = query.shape
    wanted = range(tokens)[rows or slice(None)]
    step = max(1, _CHUNK_ELEMENTS // max(1, batch * heads * tokens))
    if mask is not None:
        mask = mask.expand(batch, heads, tokens, tokens)

    def chunk(part: slice, query: Tensor, key: Tensor) -> Tensor:
        logits = _logits(query, key, scale, part)
        return (logits if mask is None else _biased(logits, mask[:, :, part])).logsumexp(-1)

    parts = [
        slice(piece.start, piece.stop, piece.step)
        for piece in (wanted[start : start + step] for start in range(0, len(wanted), step))
    ]
    if len(parts) == 1:
        return chunk(parts[0], query, key)
    keep: dict[str, Any] = {"use_reentrant": False, "preserve_rng_state": False}
    return torch.cat([checkpoint(chunk, part, query, key, **keep) for part in parts], dim=2)
