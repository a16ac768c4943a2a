"""Region-sparse sampling: after its first call an edit computes the tokens of its region only.

A routed edit knows its region once the maps are read, and outside of it the velocity is known
exactly (`keep_velocity`). So most steps are *partial* calls: text tokens and the noisy tokens of
the region, over keys and values of all other tokens that the latest *full* call stored
(`regionroute.attention.row_cache`). A few full calls refresh what is stored.

Shape legend: B rows of a model call (a clause of an image each), h w image tokens, R tokens of a
partial call, C H W latent channels, rows and columns, T text tokens.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from regionroute.attention.row_cache import RowCache
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


class SparseCalls:
    """The calls of one sampling, full or partial, each giving the velocity of a step.

    Args:
        transformer: of any family.
        gates: [B,h,w] in [0,1]; partial calls compute where they act.
        steps: number of sampling steps.

    Attributes:
        region: the tokens that partial calls compute.
        full: steps that are full calls; all of them where the region is the whole image.
    """

    def __init__(self, transformer: Any, gates: Tensor, steps: int) -> None:
        self.transformer = transformer
        self.region = region_of(gates)
        self.full = frozenset(range(steps)) if self.region.whole else full_steps(steps)
        self._caches = {False: RowCache(), True: RowCache()}  # with the prompt, without

    def reuse(self, cache: RowCache | None) -> None:
        """Takes what an earlier full call with the prompt stored."""
        if cache is not None:
            self._caches[False] = cache

    def predict(
        self,
        step: int,
        noisy: Tensor,
        context: Tensor,
        prompt_embeds: Tensor,
        pooled: Tensor,
        sigma: Tensor,
        guidance: float,
        *,
        negative: bool = False,
    ) -> Tensor:
        """The velocity [B,C,H,W] of a step; 0 outside the region where the call is partial.

        Args: as of `predict_velocity`, and
            step: from 0.
            negative: the call without a prompt, of classifier-free guidance.
        """
        cache = self._caches[negative]
        given = (noisy, context, prompt_embeds, pooled, sigma, guidance)
        if step in self.full:
            if self.region.whole:
                return predict_velocity(self.transformer, *given)
            with cache.full(self.transformer):
                return predict_velocity(self.transformer, *given)
        image, text = self.region.rows, prompt_embeds.shape[1]
        every = torch.arange(text, device=image.device).expand(len(image), -1)
        with cache.partial(self.transformer, torch.cat([every, image + text], dim=1), text):
            return predict_rows(self.transformer, *given, image)
