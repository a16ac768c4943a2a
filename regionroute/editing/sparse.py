"""Region-sparse sampling: after its first call an edit computes the tokens of its region only.

A routed edit knows its region once the maps are read, and outside of it the velocity is known
exactly (`keep_velocity`). After a *full* call the others compute less: *partial* ones the text and
the region's noisy tokens, *wide* ones its context tokens too, over keys and values of all other
tokens that the latest full call stored (`regionroute.attention.row_cache`); the last, *local* one
attends to the region alone. `schedule` says which comes when.

Shape legend: B branches of a job (a pair of an image each), h w image tokens, R tokens of a region,
N all tokens, C H W latent channels, rows and columns, T text tokens.
"""

from __future__ import annotations

import functools
import logging
import math
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from regionroute.attention.row_cache import RowCache, row_cache_bytes
from regionroute.config.choices import SparseQuality
from regionroute.diffusion.flow import predict_rows, predict_velocity
from regionroute.editing.request import EditOptions
from regionroute.errors import UserError
from regionroute.models.backbone import Backbone

# What a call computes: all tokens; text and the region's noisy tokens; its context tokens too; or
# these, attending to each other alone.
Kind = Literal["full", "partial", "wide", "local"]

THRESHOLD = 0.05  # gates below it count as closed: with a locked background the loss is not visible
RING = 1  # tokens around the region that are computed too: what gates and codec look at
LAST_RING = 4  # of the last call, which attends to these tokens alone: chosen by the photos
MIN_STEPS = 4  # where the gain is worth the stored rows, see docs/explanation/sparse.md
MIN_TOKENS = 1024  # of the image (512 px): the smallest size at which it was measured to pay
_REFRESH = 0.64  # of the steps: where a full call refreshes the stored rows
_MORE = (0.36, 0.86)  # where others do, for high quality
_FEW = 8  # steps that are far apart in noise
MOST_AT_ONCE = 2**31  # images, where the memory is unknown
LIMIT = 0.5  # of the memory besides the networks: stored rows may take so much
_MEMORY = Path("/proc/meminfo")
_CONTAINER = Path("/sys/fs/cgroup/memory.max")  # its limit, or "max"
_BUCKETS = 32  # sizes of partial calls that a compiled model meets, at most


@dataclass(frozen=True, eq=False)
class Region:
    """The tokens that partial calls compute.

    Attributes:
        open: bool [h,w].
        rows: their positions among the h·w target tokens, long [R]; the last may be repeated.
    """

    open: Tensor
    rows: Tensor

    @property
    def empty(self) -> bool:
        """No token."""
        return not len(self.rows)

    @property
    def whole(self) -> bool:
        """All tokens: nothing to gain."""
        return len(self.rows) == self.open.numel()


def region_of(gate: Tensor, ring: int = RING) -> Region:
    """The tokens where a gate acts, and those around them.

    Args:
        gate: [h,w] in [0,1]; below `THRESHOLD` it counts as closed.
        ring: tokens added on each side.
    """
    size = 2 * ring + 1
    wanted = F.max_pool2d(gate[None].float(), size, stride=1, padding=ring)[0] >= THRESHOLD
    rows = wanted.flatten().nonzero()[:, 0]
    step = max(1, wanted.numel() // _BUCKETS)
    padded = min(wanted.numel(), math.ceil(len(rows) / step) * step)
    return Region(wanted, torch.cat([rows, rows[-1:].expand(padded - len(rows))]))


def schedule(steps: int, quality: SparseQuality = "balanced") -> list[Kind]:
    """What the call of each step computes.

    Late errors weigh most, and those of stored context rows: a full call refreshes them late, the
    calls after it compute the region's context too, and the last one needs no stored rows. Few
    steps are far apart in noise, so that all of theirs compute the context.

    Args:
        steps: number of sampling steps.
        quality: "fast" computes the context in full calls and the last one only; "high" makes
            the last call of few steps full, and two more of many.
    """
    few = steps <= _FEW
    refresh = round(_REFRESH * steps) if steps >= 6 else 0
    early: Kind = "wide" if few else "partial"
    kinds: list[Kind] = [early if step < refresh else "wide" for step in range(steps)]
    if quality == "fast":
        kinds = ["partial"] * steps
    kinds[-1] = "full" if quality == "high" and few else "local"
    kinds[0] = kinds[refresh] = "full"
    for share in _MORE if quality == "high" and not few else ():
        kinds[round(share * steps)] = "full"
    return kinds


def pays(steps: int, tokens: int) -> bool:
    """Whether edits are sparse where nothing else is asked for.

    Args:
        steps: number of sampling steps.
        tokens: of the image.
    """
    return steps >= MIN_STEPS and tokens >= MIN_TOKENS


class BranchCalls:
    """The calls of one branch, full or partial, each giving the velocity of a step.

    Args:
        transformer: of any family.
        gate: [h,w] in [0,1]; partial calls compute where it acts.
        steps: number of sampling steps.
        quality: see `schedule`.

    Attributes:
        region: the tokens that partial calls compute.
        last: those of local ones, which attend to nothing else.
        kinds: what the call of each step computes; all full where the region is the whole image.
    """

    def __init__(
        self, transformer: Any, gate: Tensor, steps: int, quality: SparseQuality = "balanced"
    ) -> None:
        self.transformer = transformer
        self.region = region_of(gate)
        self.last = region_of(gate, ring=LAST_RING)
        whole = self.region.whole
        self.kinds: list[Kind] = ["full"] * steps if whole else schedule(steps, quality)
        self._caches = {False: RowCache(), True: RowCache()}  # with the prompt, without

    def reuse(self, cache: RowCache) -> None:
        """Takes what an earlier full call with the prompt stored."""
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
        """The velocity [1,C,H,W] of a step; 0 outside the region where the call is partial.

        Args: as of `predict_velocity`, for one image, and
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
        text, total = prompt_embeds.shape[1], self.region.open.numel()
        image = (self.last if kind == "local" else self.region).rows
        if kind != "partial":
            image = torch.cat([image, image + total])
        rows = torch.cat([torch.arange(text, device=image.device), image + text])[None]
        keys = None
        if kind == "local":
            keys = rows.new_zeros(1, text + 2 * total, dtype=torch.bool).scatter_(1, rows, True)
        with cache.partial(self.transformer, rows, keys):
            return predict_rows(self.transformer, *given, image[None])


class SparseCalls:
    """The calls of all branches of a job, each branch by itself, with a region of its own.

    Args:
        transformer: of any family.
        gates: [B,h,w] in [0,1].
        steps: number of sampling steps.
        quality: see `schedule`.
        route: context of a branch's calls, by its number: routes the experts of one of several
            branches. None: that in force is right.

    Attributes:
        branches: B.
        open: where any call computes, bool [B,h,w].
    """

    def __init__(
        self,
        transformer: Any,
        gates: Tensor,
        steps: int,
        quality: SparseQuality = "balanced",
        route: Callable[[int], AbstractContextManager[None]] | None = None,
    ) -> None:
        self.branches = [BranchCalls(transformer, gate, steps, quality) for gate in gates]
        self.open = torch.stack([branch.region.open for branch in self.branches])
        self._route = route or (lambda _: nullcontext())

    @property
    def partial(self) -> list[bool]:
        """Whether calls of a branch compute a part; not where it has all tokens or none."""
        return [not (one.region.whole or one.region.empty) for one in self.branches]

    def reuse(self, cache: RowCache | None) -> None:
        """Takes what an earlier full call with the prompts stored, for all branches at once."""
        if cache is None:
            return
        for branch, own in zip(self.branches, cache.split(), strict=True):
            branch.reuse(own)

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
        """The velocity [B,C,H,W] of a step, 0 where nothing was computed; see `BranchCalls`."""
        found = torch.zeros_like(noisy)
        for number, branch in enumerate(self.branches):
            if branch.region.empty:
                continue
            one = slice(number, number + 1)
            with self._route(number):
                found[one] = branch.predict(
                    step, noisy[one], context[one], prompt_embeds[one], pooled[one], sigma[one],
                    guidance, negative=negative,
                )  # fmt: skip
        return found


def images_at_once(
    backbone: Backbone,
    options: EditOptions,
    size: tuple[int, int],
    pairs: int,
    given: bool,
    share: float,
) -> tuple[int, str | None]:
    """How many images to sample sparsely at once, 0: densely; and the reason if memory is.

    It depends on one image, the options and the machine, neither on the other images nor on what
    else takes memory now, so that the same edit has the same result again.

    Args:
        backbone: the base.
        options: fully resolved.
        size: (height, width) of the images.
        pairs: (object, style) pairs of an image.
        given: its regions are given, not predicted.
        share: of the machine's memory that is this process's, see `EngineSettings.memory_share`.

    Raises:
        UserError: sparse sampling is asked for and cannot be.
    """
    assert options.steps is not None
    assert options.guidance is not None
    if options.mode == "plain" and not (given and options.lock_background):
        if options.sparse:
            raise UserError(
                "sparse: without a region map and a locked background a plain edit has no region; "
                "give both, or use mode routed"
            )
        return 0, None
    tokens = math.prod(backbone.fit_size(*size)) // (2 * backbone.vae_scale) ** 2
    wanted = options.sparse
    if wanted is None:  # a plain edit's background is not known, so that it may differ visibly
        locked = options.mode == "routed" and bool(options.lock_background)
        wanted = locked and pays(options.steps, tokens)
    if not wanted:
        return 0, None
    calls = 1 if backbone.negative(options.guidance) is None else 2
    stored = row_cache_bytes(
        backbone.transformer.config,
        pairs * calls * (backbone.text_length + 2 * tokens),
        backbone.transformer.dtype.itemsize,
    )
    room = LIMIT * share * free_bytes(backbone)
    if stored <= room:
        return (MOST_AT_ONCE if math.isinf(room) else int(room // stored)), None
    needed = (
        f"sparse sampling of one image stores {stored / 2**30:.1f} GiB, and "
        f"{room / 2**30:.1f} GiB are set aside for it"
    )
    if options.sparse:
        raise UserError(
            f"{needed}: leave sparse out, or use a lower resolution, fewer objects or fewer workers"
        )
    _warn_once(f"{needed}: every token is computed in every step instead")
    return 0, needed


def free_bytes(backbone: Backbone) -> float:
    """The memory of the GPU, host or container, less the networks; infinite where unknown.

    What else takes memory does not count: the choice must not depend on it.
    """
    if backbone.device.type == "cuda":
        total = float(torch.cuda.mem_get_info(backbone.device)[1])
    else:
        lines = _MEMORY.read_text().splitlines() if _MEMORY.exists() else []
        sizes = (int(x.split()[1]) * 1024.0 for x in lines if x.startswith("MemTotal"))
        total = next(sizes, math.inf)
        limit = _CONTAINER.read_text().strip() if _CONTAINER.exists() else "max"
        total = min(total, float(limit)) if limit.isdigit() else total
    # With model offloading the transformer alone is there while sampling.
    there = [backbone.transformer] if backbone.execution_device else backbone.networks()
    return max(0.0, total - sum(x.nbytes for network in there for x in network.parameters()))


@functools.cache
def _warn_once(text: str) -> None:
    logging.getLogger(__name__).warning(text)
