"""Keys and values of all tokens, kept between calls, so that a call computes some of them anew.

A *full* call stores, in every block, the keys (after the rotary embedding) and values of all N
tokens. A *partial* call gives the transformer a few tokens only. Norms, projections and
feed-forward layers work token by token, so nothing changes there; attention takes its queries from
the given tokens and its keys and values from all N: fresh rows where there are any, stored ones
elsewhere. With every token given, a partial call equals a full one.

Shape legend: B batch, H heads, N all tokens [text, noisy target, context], R tokens of a partial
call, D head width.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from regionroute.attention.processors import BlockProcessor, replaced
from regionroute.attention.recorder import Core
from regionroute.diffusion.families import find_transformer
from regionroute.diffusion.family import Family


def row_cache_bytes(config: Mapping[str, Any], tokens: int, itemsize: int) -> int:
    """Memory of the keys and values of one call.

    Args:
        config: of the transformer.
        tokens: N, those of a padded batch or of several branches counted together.
        itemsize: bytes of a value.
    """
    blocks = config["num_layers"] + config["num_single_layers"]
    width = config["num_attention_heads"] * config["attention_head_dim"]
    return int(2 * blocks * width * tokens * itemsize)


@dataclass(eq=False)
class _Stored:
    """What a block keeps: keys and values [B,H,N,D]."""

    key: Tensor
    value: Tensor


class RowCache:
    """Stored keys and values of one sequence of calls with the same tokens.

    Classifier-free guidance makes two such sequences, each with a cache of its own.
    """

    def __init__(self) -> None:
        self._stored: dict[str, _Stored] = {}
        self._rotary: tuple[Tensor, Tensor] | None = None
        self._rows: Tensor | None = None
        self._kept: Tensor | None = None

    @property
    def nbytes(self) -> int:
        """Memory of the stored keys and values."""
        return sum(x.key.nbytes + x.value.nbytes for x in self._stored.values())

    def split(self) -> list[RowCache]:
        """Empties this cache; each sample of the latest full call gets a cache of its own."""
        assert self._stored, "nothing was stored"
        samples = len(next(iter(self._stored.values())).key)
        parts = [RowCache() for _ in range(samples)]
        for part in parts:
            part._rotary = self._rotary
        while self._stored:
            name, kept = self._stored.popitem()
            for sample, part in enumerate(parts):
                own = slice(sample, sample + 1)
                key, value = kept.key[own], kept.value[own]
                # A view would keep the memory of all samples when its own rows are refreshed.
                alone = samples == 1
                part._stored[name] = kept if alone else _Stored(key.clone(), value.clone())
        return parts

    @contextmanager
    def full(
        self, transformer: nn.Module, cores: Mapping[str, Core] | None = None
    ) -> Iterator[None]:
        """Stores the keys and values of the call inside; it must be given all tokens.

        Args:
            transformer: of any family, bare, compiled or wrapped.
            cores: attention of single blocks by their names, see
                `AttentionRecorder.cores`: a call can be recorded and stored at once.

        Raises:
            ValueError: a model that computes attention in another way, see
                `AttentionRecorder.recording`.
        """
        self._rows = None
        with self._processors(transformer, cores or {}):
            yield

    @contextmanager
    def partial(
        self, transformer: nn.Module, rows: Tensor, keys: Tensor | None = None
    ) -> Iterator[None]:
        """The call inside is given the tokens `rows`, the text's first.

        Args:
            transformer: as in `full`.
            rows: positions of the given tokens among all N, long [B,R]; equal positions are
                padding and must belong to equal tokens.
            keys: which tokens are attended to, bool [B,N], the given ones among them; None: all.

        Raises:
            RuntimeError: nothing was stored before.
        """
        if not self._stored:
            raise RuntimeError("a partial call needs a full one before it")
        assert self._rotary is not None
        self._rows, self._kept = rows, keys
        cos, sin = self._rotary
        # [B,R,1,D]: each sample has its own tokens, where the model knows one list for all.
        self._angles = cos[rows][:, :, None], sin[rows][:, :, None]
        with self._processors(transformer, {}):
            yield

    def _processors(
        self, transformer: nn.Module, cores: Mapping[str, Core]
    ) -> AbstractContextManager[None]:
        module, family = find_transformer(transformer)

        def make(name: str) -> _CachedProcessor:
            return _CachedProcessor(family, self, name, cores.get(name, _plain))

        return replaced(family.blocks(module), family, make)

    def attend(
        self, name: str, core: Core, query: Tensor, key: Tensor, value: Tensor, rotary: Any
    ) -> Tensor:
        """Attention [B,·,H,D] of a block's tokens before the rotary embedding, [B,·,H,D] each."""
        if self._rows is None:
            self._rotary = rotary
            angles = tuple(x[None, :, None] for x in rotary)
            query, key = rotate(query, *angles), rotate(key, *angles)
            # Contiguous per head: the layout in which attention reads and partial calls write.
            keep = (key.transpose(1, 2).contiguous(), value.transpose(1, 2).contiguous())
            self._stored[name] = _Stored(*keep)
            return core(query, key, value)
        query, key = rotate(query, *self._angles), rotate(key, *self._angles)
        stored = self._stored[name]
        for sample, rows in enumerate(self._rows):
            stored.key[sample].index_copy_(1, rows, key[sample].transpose(0, 1))
            stored.value[sample].index_copy_(1, rows, value[sample].transpose(0, 1))
        query = query.transpose(1, 2)
        if self._kept is None:
            out = F.scaled_dot_product_attention(query, stored.key, stored.value)
            return out.transpose(1, 2)
        parts = [
            F.scaled_dot_product_attention(q[None], k[None, :, kept], v[None, :, kept])
            for q, k, v, kept in zip(query, stored.key, stored.value, self._kept, strict=True)
        ]
        return torch.cat(parts).transpose(1, 2)


def rotate(states: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary embedding of interleaved pairs, as diffusers' `apply_rotary_emb` computes it.

    Args:
        states: [B,·,H,D].
        cos: broadcastable to it.
        sin: broadcastable to it.
    """
    real, imaginary = states.unflatten(-1, (-1, 2)).unbind(-1)
    turned = torch.stack([-imaginary, real], dim=-1).flatten(3)
    return (states.float() * cos + turned.float() * sin).to(states.dtype)


def _plain(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    query, key, value = (x.transpose(1, 2) for x in (query, key, value))
    return F.scaled_dot_product_attention(query, key, value).transpose(1, 2)


class _CachedProcessor(BlockProcessor):
    """Hands the attention to the cache."""

    def __init__(self, family: Family, cache: RowCache, name: str, core: Core) -> None:
        super().__init__(family)
        self.cache, self.name, self.core = cache, name, core

    # As in the recorder: the compiler sees nothing of what differs between blocks and calls.
    @torch.compiler.disable(reason="keys are stored aside: compile without fullgraph=True")
    def attention(
        self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, rotary: Any
    ) -> Tensor:
        """See `BlockProcessor`.

        Raises:
            ValueError: there is a mask.
        """
        if mask is not None:
            raise ValueError("attention masks do not go with stored keys")
        return self.cache.attend(self.name, self.core, query, key, value, rotary)
