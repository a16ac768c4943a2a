import itertools
import math

import pytest
import torch

from regionroute.adapters import Routing
from regionroute.adapters.router_stats import (
    chosen_experts,
    expert_entropy,
    expert_histogram,
    load_balance,
    routing_overlap,
)


def routing(index, logits=None):
    index = torch.tensor(index)
    return Routing(index, torch.ones(index.shape), logits)


def test_choices_of_all_layers():
    chosen = chosen_experts({"a": routing([[0, 1], [2, 3]]), "b": routing([[1, 0]])}, 2)
    assert chosen.tolist() == [[[0, 1], [1, 0]], [[2, 3], [1, 0]]]


def test_histogram_and_entropy():
    chosen = torch.tensor([[[0, 1], [2, 0]], [[2, 3], [2, 0]]])
    histogram = expert_histogram(chosen, 4)
    assert histogram.tolist() == [[0.25] * 4, [0.5, 0, 0.5, 0]]
    assert expert_entropy(histogram).tolist() == pytest.approx([1.0, 0.5])
    assert expert_entropy(torch.tensor([[0.0, 1.0]])).tolist() == [0.0]
    assert expert_entropy(torch.ones(3, 1)).tolist() == [0.0] * 3


def test_overlap_of_two_layers():
    chosen = torch.tensor([[[0, 1], [0, 1]], [[1, 0], [0, 2]], [[2, 3], [0, 1]]])
    within, between = routing_overlap(chosen, torch.tensor([7, 7, 9]))
    assert within == pytest.approx((1 + 1 / 3) / 2)
    assert between == pytest.approx(((0 + 1) / 2 + (0 + 1 / 3) / 2) / 2)
    none, _ = routing_overlap(chosen[:2], torch.tensor([0, 1]))
    assert math.isnan(none)


def test_overlap_at_chance():
    """All pairs of two of sixteen experts, against the spec's closed form."""
    sets = torch.tensor(list(itertools.combinations(range(16), 2)))
    _, different = routing_overlap(sets[:, None], torch.arange(120))
    chance = (120 * different * 119 + 120) / 120**2  # a set may also meet itself
    assert chance == pytest.approx(28 / 120 / 3 + 1 / 120, abs=1e-6)


def test_load_balance_by_hand():
    even = torch.zeros(4, 4)
    index = [[0, 1], [2, 3], [1, 0], [3, 2]]
    assert float(load_balance({"a": routing(index, even)})) == pytest.approx(1.0)
    taken = torch.tensor([[50.0, 0, 0, 0]]).expand(4, -1)
    assert float(load_balance({"a": routing([[0]] * 4, taken)})) == pytest.approx(4.0)
    both = {"a": routing(index, even), "b": routing([[0]] * 4, taken)}
    assert float(load_balance(both)) == pytest.approx(2.5)


def test_load_balance_pulls_the_favourite_down():
    logits = torch.tensor([[1.0, 0, 0], [1.0, 0, 0]], requires_grad=True)
    load_balance({"a": routing([[0], [0]], logits)}).backward()
    assert (logits.grad[:, 0] > 0).all()  # a step against it lowers the favourite
    assert (logits.grad[:, 1:] < 0).all()


def test_load_balance_needs_logits():
    with pytest.raises(ValueError, match="needs a learned router"):
        load_balance({})
    with pytest.raises(ValueError, match="routers with logits"):
        load_balance({"a": routing([[0]])})
