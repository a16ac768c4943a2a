"""Region-sparse sampling: after its first call an edit computes the tokens of its region only.

A routed edit knows its region once the maps are read, and outside of it the velocity is known
exactly (`keep_velocity`). So most steps are *partial* calls: text tokens and the noisy tokens of
the region, over keys and values of all other tokens that the latest *full* call stored
(`regionroute.attention.row_cache`). A few full calls refresh what is stored.

Shape legend: B rows of a model call (a clause of an image each), h w image tokens, R tokens of a
partial call, C H W latent channels, rows and columns, T text tokens.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from regionroute.attention.row_cache import Core, RowCache
from regionroute.diffusion.flow import predict_rows, predict_velocity

THRESHOLD = 0.05  # gates below it count as closed: with a locked background the loss is not visible
RING = 1  # tokens around the region that are computed too: what gates and codec look at
# Where full calls refresh the stored rows, as shares of the steps: late ones matter most.
_REFRESH = (0.64, 0.89)
_BUCKETS = 32  # sizes of partial calls that a compiled model meets, at most


@dataclass(frozen=True, eq=False)
class Region:
    """The tokens that partial calls compute.

    Attributes:
        open: bool [B,h,w].
        rows: their positions among the h·w target tokens, long [B,R]; rows with fewer tokens
            repeat their last one.
    """

    open: Tensor
    rows: Tensor

    @property
    def empty(self) -> bool:
        """No token of any row."""
        return not bool(self.open.any())

    @property
    def whole(self) -> bool:
        """All tokens of some row: nothing to gain for the batch."""
        return self.rows.shape[1] == self.open[0].numel()


def region_of(gates: Tensor, threshold: float = THRESHOLD, ring: int = RING) -> Region:
    """The tokens where gates act, and those around them.

    Args:
        gates: [B,h,w] in [0,1].
        threshold: smaller gates count as closed.
        ring: tokens added on each side.
    """
    wide = F.max_pool2d(gates[:, None].float(), 2 * ring + 1, stride=1, padding=ring)[:, 0]
    wanted = wide >= threshold
    flat, total = wanted.flatten(1), wanted[0].numel()
    most = int(flat.sum(1).max())
    step = max(1, total // _BUCKETS)
    size = min(total, -(-most // step) * step)
    # A stable sort puts the open tokens first, in their order.
    order = flat.to(torch.uint8).argsort(dim=1, descending=True, stable=True)[:, :size]
    counts = flat.sum(1, keepdim=True)
    place = torch.arange(size, device=gates.device).expand(len(gates), -1)
    rows = order.gather(1, place.minimum((counts - 1).clamp(min=0)))
    return Region(wanted, rows)


def full_steps(steps: int) -> frozenset[int]:
    """Which of the steps are full calls: the first, and late ones that refresh the stored rows."""
    if steps < 6:
        return frozenset({0, steps - 1})
    return frozenset({0, *(round(share * steps) for share in _REFRESH)})


@dataclass(eq=False)
class SparseCalls:
    """The calls of one sampling: full ones and partial ones, each with the velocity it predicts.

    Attributes:
        transformer: of any family.
        region: what partial calls compute.
        full: steps that are full calls.
        cache: of the prompt's calls.
        negative: of the calls without a prompt, where guidance needs them.
    """

    transformer: Any
    region: Region
    full: frozenset[int]
    cache: RowCache = field(default_factory=RowCache)
    negative: RowCache = field(default_factory=RowCache)
    step: int = 0

    def predict(
        self,
        noisy: Tensor,
        context: Tensor,
        prompt_embeds: Tensor,
        pooled: Tensor,
        sigma: Tensor,
        guidance: float,
        *,
        cache: RowCache | None = None,
        cores: Mapping[str, Core] | None = None,
    ) -> Tensor:
        """The velocity [B,C,H,W] of step `step`; 0 outside the region where the call is partial.

        Args: as of `predict_velocity`.
            cache: None: that of the prompt.
            cores: attention that is recorded, see `RowCache.full`.
        """
        cache = self.cache if cache is None else cache
        given = (noisy, context, prompt_embeds, pooled, sigma, guidance)
        if self.step in self.full:
            with cache.full(self.transformer, cores):
                return predict_velocity(self.transformer, *given)
        image, text = self.region.rows, prompt_embeds.shape[1]
        every = torch.arange(text, device=image.device).expand(len(image), -1)
        with cache.partial(self.transformer, torch.cat([every, image + text], dim=1), text):
            return predict_rows(self.transformer, *given, image)
