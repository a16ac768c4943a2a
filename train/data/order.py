"""The order of samples: which of them make up each global batch, whoever computes them.

It depends on the seed, the step and the number of samples in each bucket alone, and any step can
be asked for at once, so that a run continues anywhere and with any number of processes.
"""

from __future__ import annotations

import hashlib
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor


def seeded(*parts: int | str) -> torch.Generator:
    """A generator whose stream depends on nothing but `parts`."""
    digest = hashlib.sha256("/".join(map(str, parts)).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)


@dataclass(frozen=True)
class BlockShuffle:
    """A shuffle in two levels, whose neighbours lie in few files of a streamed cache.

    The order of blocks is drawn, then that of the samples in each window of blocks.

    Attributes:
        block: neighbouring samples of the manifest that stay together.
        window: blocks that are mixed with each other.
        lanes: equal parts of each global batch; each reads a part of the epoch of its own, so
            that nodes with a share of the batch read different blocks. Divides the global batch.
    """

    block: int
    window: int = 8
    lanes: int = 1

    def permutation(self, count: int, generator: torch.Generator) -> Tensor:
        """An epoch's order of samples, [count] int64."""
        parts = torch.arange(count).split(self.block)
        order = torch.randperm(len(parts), generator=generator).tolist()
        drawn = []
        for first in range(0, len(order), self.window):
            together = torch.cat([parts[number] for number in order[first : first + self.window]])
            drawn.append(together[torch.randperm(len(together), generator=generator)])
        return torch.cat(drawn)

    def place(self, position: int, count: int, global_batch: int) -> int:
        """Where in the permutation a position of the epoch is: lanes are equal parts of both."""
        width = global_batch // self.lanes
        turn, within = divmod(position, global_batch)
        lane, within = divmod(within, width)
        full, rest = divmod(count, global_batch)
        return lane * full * width + min(rest, lane * width) + turn * width + within


class SampleOrder:
    """An endless sequence of sample numbers: one permutation after another.

    Batch k is the slice [k·G, (k+1)·G) of it, so an epoch may end inside a batch.

    Args:
        count: how many samples.
        seed: of the permutations.
        name: distinguishes several orders of one run.
        shuffle: in two levels; None: all samples at once.
        global_batch: G, which the lanes of `shuffle` are parts of.
    """

    def __init__(
        self,
        count: int,
        seed: int,
        *name: str,
        shuffle: BlockShuffle | None = None,
        global_batch: int = 1,
    ) -> None:
        self.count, self.seed, self.name = count, seed, name
        self.shuffle, self.global_batch = shuffle, global_batch
        self._permutation = lru_cache(maxsize=2)(self._draw)  # a batch spans two epochs at most

    def __getitem__(self, position: int) -> int:
        epoch, place = divmod(position, self.count)
        if self.shuffle:
            place = self.shuffle.place(place, self.count, self.global_batch)
        return int(self._permutation(epoch)[place])

    def _draw(self, epoch: int) -> Tensor:
        generator = seeded("order", self.seed, *self.name, epoch)
        if self.shuffle:
            return self.shuffle.permutation(self.count, generator)
        return torch.randperm(self.count, generator=generator)


class BatchOrder:
    """Global batches, each of one bucket, so that any share of it has one shape.

    Every bucket is a `SampleOrder` of its own, cut into batches; what does not fill a batch goes
    into the bucket's next one. An epoch is as many batches of each bucket as its samples have
    filled since the last one, in drawn order: over time every sample comes equally often. All
    processes compute images of one size at a time, so none waits for one with larger images. With
    a single bucket this is `SampleOrder` itself.

    Args:
        buckets: number of each sample's bucket.
        names: of the buckets; their order changes nothing.
        global_batch: G, samples a batch.
        seed: of every draw.
        shuffle: of each bucket, in two levels; None: all its samples at once.
    """

    def __init__(
        self,
        buckets: Sequence[int] | np.ndarray,
        names: Sequence[str],
        global_batch: int,
        seed: int,
        shuffle: BlockShuffle | None = None,
    ) -> None:
        self.global_batch, self.seed = global_batch, seed
        numbers = np.asarray(buckets)
        groups = {name: np.flatnonzero(numbers == i) for i, name in enumerate(names)}
        self._members = [groups[name] for name in sorted(groups) if len(groups[name])]
        own = [(name,) for name in sorted(groups) if len(groups[name])]
        self._orders = [
            SampleOrder(
                len(members),
                seed,
                *(name if len(own) > 1 else ()),
                shuffle=shuffle,
                global_batch=global_batch,
            )
            for members, name in zip(self._members, own, strict=True)
        ]
        self._sizes = np.array([len(members) for members in self._members], dtype=np.int64)
        self._epoch = lru_cache(maxsize=2)(self._draw)

    def batch(self, step: int) -> list[int]:
        """Sample numbers of the global batch of a step (counted from 0), G of them."""
        bucket, turn = self._place(step)
        first = turn * self.global_batch
        order, members = self._orders[bucket], self._members[bucket]
        return [int(members[order[first + place]]) for place in range(self.global_batch)]

    def _place(self, step: int) -> tuple[int, int]:
        """The bucket of a step, and how many batches of it came before."""
        if len(self._members) == 1:
            return 0, step
        # The epoch in which the step falls: the last one with no more than `step` batches before.
        last = (step + len(self._members)) * self.global_batch // int(self._sizes.sum()) + 1
        epoch = bisect_right(range(last + 1), step, key=lambda e: int(self._filled(e).sum())) - 1
        before = self._filled(epoch)
        buckets = self._epoch(epoch)
        place = step - int(before.sum())
        bucket = int(buckets[place])
        return bucket, int(before[bucket]) + int((buckets[:place] == bucket).sum())

    def _filled(self, epochs: int) -> np.ndarray:
        """Batches that each bucket has filled after some epochs."""
        return epochs * self._sizes // self.global_batch

    def _draw(self, epoch: int) -> np.ndarray:
        """The buckets of an epoch's batches, in the order in which they come."""
        counts = self._filled(epoch + 1) - self._filled(epoch)
        buckets = np.repeat(np.arange(len(counts)), counts)
        order = torch.randperm(len(buckets), generator=seeded("buckets", self.seed, epoch))
        return buckets[order.numpy()]


def members_of(rank: int, world: int, micro: int, accumulation: int, global_batch: int) -> range:
    """Places in the global batch that one process handles in one micro-batch.

    Raises:
        ValueError: the batch cannot be shared evenly.
    """
    size, rest = divmod(global_batch, world * accumulation)
    if rest:
        raise ValueError(f"{global_batch} samples for {world} processes x {accumulation} passes")
    first = (micro * world + rank) * size
    return range(first, first + size)
