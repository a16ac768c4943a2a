"""Batches of one bucket each: shapes, fairness, and independence of who computes them."""

from collections import Counter

import numpy as np
import pytest

from train.data.order import BatchOrder, BlockShuffle, SampleOrder, members_of

BUCKETS = [0] * 3 + [1] * 50 + [2] * 11
NAMES = ["24x40", "32x32", "40x24"]


def test_a_batch_is_of_one_bucket_and_all_samples_come_equally_often():
    order, counts, buckets = BatchOrder(BUCKETS, NAMES, 8, 0), Counter(), []
    for step in range(800):
        numbers = order.batch(step)
        assert len(numbers) == 8
        assert len({BUCKETS[number] for number in numbers}) == 1
        counts.update(numbers)
        buckets.append(BUCKETS[numbers[0]])
    assert set(counts) == set(range(64))
    assert max(counts.values()) - min(counts.values()) <= 3
    # Over every hundred steps each bucket has its share: the small one does not come in a lump.
    shares = np.array([np.bincount(buckets[i : i + 100], minlength=3) for i in range(0, 800, 100)])
    np.testing.assert_allclose(shares, np.full((8, 3), [3, 50, 11]) * 100 / 64, atol=3)
    assert len({tuple(buckets[i : i + 8]) for i in range(0, 800, 8)}) > 5  # drawn, not in turns


def test_any_step_can_be_asked_for_first():
    order = BatchOrder(BUCKETS, NAMES, 8, 0)
    batches = [order.batch(step) for step in range(60)]
    for step in (59, 0, 17, 41):
        assert BatchOrder(BUCKETS, NAMES, 8, 0).batch(step) == batches[step]
    assert [BatchOrder(BUCKETS, NAMES, 8, 1).batch(step) for step in range(60)] != batches


def test_the_order_in_which_buckets_were_met_changes_nothing():
    order = BatchOrder(BUCKETS, NAMES, 4, 0)
    other = BatchOrder([2 - bucket for bucket in BUCKETS], NAMES[::-1], 4, 0)
    assert [order.batch(step) for step in range(40)] == [other.batch(step) for step in range(40)]


def test_a_single_bucket_is_the_plain_order():
    order, plain = BatchOrder([0] * 7, ["64x64"], 4, 3), SampleOrder(7, 3)
    assert [n for step in range(20) for n in order.batch(step)] == [plain[i] for i in range(80)]


@pytest.mark.parametrize("batch", [1, 5, 64, 200])
def test_batches_larger_than_a_bucket(batch):
    order = BatchOrder(BUCKETS, NAMES, batch, 0)
    counts = Counter(n for step in range(6400 // batch) for n in order.batch(step))
    assert len(counts) == 64
    assert max(counts.values()) < 1.5 * min(counts.values()) + batch


def test_shares_of_every_world_make_up_the_same_batch():
    order = BatchOrder(BUCKETS, NAMES, 8, 0)
    for step in range(30):
        whole = order.batch(step)
        for world, accumulation in ((1, 1), (1, 4), (2, 1), (2, 2), (8, 1)):
            shares = [
                members_of(rank, world, micro, accumulation, 8)
                for micro in range(accumulation)
                for rank in range(world)
            ]
            assert [whole[i] for share in shares for i in share] == whole


@pytest.mark.parametrize("count", [1, 7, 64, 100, 203])
@pytest.mark.parametrize("lanes", [1, 2, 4, 8])
def test_blocks_give_every_sample_once_an_epoch(count, lanes):
    order = SampleOrder(count, 3, shuffle=BlockShuffle(6, 2, lanes), global_batch=8)
    epochs = [[order[epoch * count + place] for place in range(count)] for epoch in range(3)]
    assert all(sorted(epoch) == list(range(count)) for epoch in epochs)
    assert count < 3 or epochs[0] != epochs[1]


def test_a_window_of_blocks_holds_few_neighbourhoods():
    block, window = 10, 4
    order = SampleOrder(1000, 0, shuffle=BlockShuffle(block, window), global_batch=8)
    epoch = np.array([order[place] for place in range(1000)])
    for first in range(0, 1000, block * window):
        part = epoch[first : first + block * window]
        assert len(np.unique(part // block)) == window
        assert (np.diff(part) == 1).mean() < 0.3  # and they are mixed


def test_lanes_read_different_blocks():
    """Two nodes with half of each batch: a block is read by one of them, but for the seams."""
    count, batch, world = 960, 8, 2
    shuffle = BlockShuffle(16, 3, lanes=world)
    order = BatchOrder([0] * count, ["64x64"], batch, 5, shuffle)
    read = [set(), set()]
    for step in range(count // batch):
        numbers = order.batch(step)
        for rank in range(world):
            read[rank] |= {numbers[m] // 16 for m in members_of(rank, world, 0, 1, batch)}
    assert read[0] | read[1] == set(range(60))
    assert len(read[0] & read[1]) <= 3


def test_blocks_change_nothing_unless_they_are_asked_for():
    plain, none = BatchOrder(BUCKETS, NAMES, 8, 0), BatchOrder(BUCKETS, NAMES, 8, 0, None)
    assert [plain.batch(step) for step in range(20)] == [none.batch(step) for step in range(20)]
    blocks = BatchOrder(BUCKETS, NAMES, 8, 0, BlockShuffle(4, 2))
    later = BatchOrder(BUCKETS, NAMES, 8, 0, BlockShuffle(4, 2))
    assert [later.batch(step) for step in (17, 3)] == [blocks.batch(step) for step in (17, 3)]
