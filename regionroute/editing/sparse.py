"""Region-sparse sampling: after its first call an edit computes the tokens of its region only.

A routed edit knows its region once the maps are read, and outside of it the velocity is known
exactly (`keep_velocity`). After a *full* call the others compute less: *partial* ones the text and
the region's noisy tokens, *wide* ones its context tokens too, over keys and values of all other
tokens that the latest full call stored (`regionroute.attention.row_cache`); the last, *local* one
attends to the region alone. `schedule` says which comes when.

Shape legend: B rows of a model call (a clause of an image each), h w image tokens, R tokens of a
partial call, N all tokens, C H W latent channels, rows and columns, T text tokens.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from regionroute.adapters import given_rows
from regionroute.attention.row_cache import RowCache
from regionroute.diffusion.flow import predict_rows, predict_velocity

# What a call computes: all tokens; text and the region's noisy tokens; its context tokens too; or
# these, attending to each other alone.
Kind = Literal["full", "partial", "wide", "local"]

THRESHOLD = 0.05  # gates below it count as closed: with a locked background the loss is not visible
RING = 1  # tokens around the region that are computed too: what gates and codec look at
MIN_STEPS = 4  # where the gain is worth the stored rows, see docs/explanation/sparse.md
MIN_TOKENS = 1024  # of the image (512 px): the smallest size at which it was measured to pay
_REFRESH = 0.64  # of the steps: where a full call refreshes the stored rows
_FEW = 8  # steps that are far apart in noise
LIMIT = 0.5  # of the free memory: stored rows may take so much
_MEMORY = Path("/proc/meminfo")
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


def schedule(steps: int) -> list[Kind]:
    """What the call of each step computes.

    Late errors weigh most, and those of stored context rows: a full call refreshes them late, the
    calls after it compute the region's context too, and the last one needs no stored rows. Few
    steps are far apart in noise, so that all of theirs compute the context.
    """
    refresh = round(_REFRESH * steps) if steps >= 6 else 0
    early: Kind = "wide" if steps <= _FEW else "partial"
    kinds: list[Kind] = [early if step < refresh else "wide" for step in range(steps)]
    kinds[-1] = "local"
    kinds[0] = kinds[refresh] = "full"
    return kinds


def pays(steps: int, tokens: int) -> bool:
    """Whether edits are sparse where nothing else is asked for.

    Args:
        steps: number of sampling steps.
        tokens: of the image.
    """
    return steps >= MIN_STEPS and tokens >= MIN_TOKENS


def free_bytes(device: torch.device) -> float:
    """Memory that new tensors may take: of a GPU, else of the host; infinite where unknown."""
    if device.type == "cuda":
        spare = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return float(torch.cuda.mem_get_info(device)[0] + spare)
    lines = _MEMORY.read_text().splitlines() if _MEMORY.exists() else []
    return next((int(x.split()[1]) * 1024.0 for x in lines if "MemAvailable" in x), math.inf)


class SparseCalls:
    """The calls of one sampling, full or partial, each giving the velocity of a step.

    Args:
        transformer: of any family.
        gates: [B,h,w] in [0,1]; partial calls compute where they act.
        steps: number of sampling steps.

    Attributes:
        region: the tokens that partial calls compute.
        kinds: what the call of each step computes; all full where the region is the whole image.
    """

    def __init__(self, transformer: Any, gates: Tensor, steps: int) -> None:
        self.transformer = transformer
        self.region = region_of(gates)
        self.kinds: list[Kind] = ["full"] * steps if self.region.whole else schedule(steps)
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
        cache, kind = self._caches[negative], self.kinds[step]
        given = (noisy, context, prompt_embeds, pooled, sigma, guidance)
        if kind == "full":
            if all(later == "full" for later in self.kinds[step:]):  # nobody will read the rows
                return predict_velocity(self.transformer, *given)
            with cache.full(self.transformer):
                return predict_velocity(self.transformer, *given)
        text, total = prompt_embeds.shape[1], self.region.open[0].numel()
        image = self.region.rows
        if kind != "partial":
            image = torch.cat([image, image + total], dim=1)
        rows = torch.cat([_every(text, image), image + text], dim=1)
        keys = None
        if kind == "local":
            keys = rows.new_zeros(len(rows), text + 2 * total, dtype=torch.bool)
            keys.scatter_(1, rows, True)
        with (
            given_rows(self.transformer, rows, text),
            cache.partial(self.transformer, rows, text, keys),
        ):
            return predict_rows(self.transformer, *given, image)


def _every(count: int, like: Tensor) -> Tensor:
    """Positions 0, 1, ... for each row of `like` [B,·]: [B,count]."""
    return torch.arange(count, device=like.device).expand(len(like), -1)
