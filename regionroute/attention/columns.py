"""Attention output together with a few exact columns of the attention matrix.

Shape legend: B batch, H heads, N all tokens, R chosen query rows, D head width, S supervised
(object, style) pairs of a sample, K tokens of a pair's phrase.
"""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

Norm = Literal["full", "text", "selected"]
NORMS: tuple[Norm, ...] = ("full", "text", "selected")

# Logits [B,H,rows,N] held at a time when `query_chunk` is not given: 256 MB in fp32.
_CHUNK_ELEMENTS = 2**26


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    columns: Tensor,
    *,
    scale: float | None = None,
    rows: slice | None = None,
    norm: Norm = "full",
    text_len: int | None = None,
    query_chunk: int | None = None,
) -> tuple[Tensor, Tensor]:
    """Scaled dot-product attention and the attention probabilities of chosen keys.

    ``probs[b,h,i,s,k] = exp(q_i·k_j·scale − logsumexp)`` with ``j = columns[b,s,k]`` and the
    log-sum-exp over all N keys (RegionRoute spec §4). Gradients are exact through both outputs.

    Args:
        query: [B,H,N,D] after QK-norm and rotary embedding. Under autocast torch >= 2.12
            normalises in fp32 while `value` is half precision; query and key are then rounded to
            the value's dtype, as scaled_dot_product_attention does itself under autocast, so that
            `probs` belongs to the attention the model really used.
        key: [B,H,N,D].
        value: [B,H,N,D].
        columns: long [B,S,K] key positions of each sample, -1 = padding.
        scale: factor on the logits, None: 1/sqrt(D).
        rows: query rows wanted in `probs`, None: all.
        norm: which keys share the softmax: "full" all (the attention itself), "text" the first
            `text_len`, "selected" the pair's own K tokens. The last is the published code's
            scheme, kept for comparison only: a single token gets the constant 1, no gradient.
        text_len: number of leading text keys, needed for ``norm="text"``.
        query_chunk: rows handled at a time, None: by memory. Several chunks are recomputed in
            the backward pass, so memory grows with the chunk and not with R·N.

    Returns:
        ``out`` [B,H,N,D], bit-identical to F.scaled_dot_product_attention, and ``probs``
        [B,H,R,S,K] in fp32 (fp64 for fp64 input), 0 at padding.

    Raises:
        ValueError: `columns` does not fit the batch, unknown `norm`, or "text" without `text_len`.
    """
    if columns.ndim != 3 or columns.shape[0] != query.shape[0]:
        raise ValueError(
            f"columns must be [B,S,K] with B={query.shape[0]}, got {list(columns.shape)}"
        )
    if norm not in NORMS:
        raise ValueError(f"norm must be one of {', '.join(NORMS)}, got {norm!r}")
    if norm == "text" and text_len is None:
        raise ValueError('norm="text" needs text_len')
    query, key = query.to(value.dtype), key.to(value.dtype)
    out = F.scaled_dot_product_attention(query, key, value, scale=scale)

    wide = torch.promote_types(value.dtype, torch.float32)
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    picked_rows = query if rows is None else query[:, :, rows]
    # Autocast would round these products back to half precision.
    with torch.autocast(device_type=query.device.type, enabled=False):
        probs = _column_probs(
            picked_rows.to(wide) * scale,
            key.to(wide),
            columns,
            None if norm == "selected" else slice(text_len if norm == "text" else None),
            query_chunk,
        )
    return out, probs


def _column_probs(
    query: Tensor, key: Tensor, columns: Tensor, competitors: slice | None, query_chunk: int | None
) -> Tensor:
    """Probabilities [B,H,R,S,K] of scaled `query` [B,H,R,D], in chunks of rows."""
    batch, heads, rows, width = query.shape
    flat = columns.clamp(min=0).reshape(batch, 1, -1, 1).expand(-1, heads, -1, width)
    picked = key.gather(2, flat)  # [B,H,S*K,D]
    rivals = None if competitors is None else key[:, :, competitors]
    real = columns.ge(0)[:, None, None]  # [B,1,1,S,K]
    if query_chunk is None:
        query_chunk = max(1, _CHUNK_ELEMENTS // max(1, batch * heads * key.shape[2]))
    if query_chunk >= rows:
        return _chunk_probs(query, picked, rivals, real)
    return torch.cat(
        [
            checkpoint(
                _chunk_probs, chunk, picked, rivals, real,
                use_reentrant=False, preserve_rng_state=False,
            )
            for chunk in query.split(query_chunk, dim=2)
        ],
        dim=2,
    )  # fmt: skip


def _chunk_probs(query: Tensor, picked: Tensor, rivals: Tensor | None, real: Tensor) -> Tensor:
    """Probabilities [B,H,r,S,K] of the `picked` keys among the `rivals`, None: the pair's own."""
    logits = (query @ picked.mT).unflatten(-1, real.shape[-2:])
    if rivals is not None:
        total = (query @ rivals.mT).logsumexp(-1)[..., None, None]
    else:
        # A pair without any token keeps finite logits: a sum over nothing has no gradient.
        outside = ~real & real.any(-1, keepdim=True)
        total = logits.masked_fill(outside, -torch.inf).logsumexp(-1, keepdim=True)
    return (logits - total).exp().masked_fill(~real, 0.0)
