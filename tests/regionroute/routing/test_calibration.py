"""Forward selection, intervals and tables, on maps whose quality is known."""

import json

import numpy as np
import pytest
import torch

from regionroute.config.sites import AttentionSite
from regionroute.routing.calibration import (
    Row,
    Scores,
    choose,
    comparison,
    comparison_table,
    estimate,
    head_table,
    spec_of,
)

SITES = [
    AttentionSite(f"double.{block}.{tokens}:{head}", f"double.{block}", tokens, (head,), word)
    for block in (0, 1)
    for tokens in ("target", "context")
    for head in (0, 1)
    for word in ("style", "object")
]


def halves(grid=8):
    """A mask, its upper and lower half, and a site that looks at the corner instead."""
    mask = torch.zeros(grid, grid)
    mask[2:6, 2:6] = 1
    upper, lower, corner = (torch.zeros(grid, grid) for _ in range(3))
    upper[2:4, 2:6], lower[4:6, 2:6], corner[:2, :2] = 1, 1, 1
    return mask, upper, lower, corner


def test_places_are_chosen_that_complement_each_other():
    pictures, masks = [], []
    for number in range(6):
        mask, upper, lower, corner = halves(8 + 2 * (number % 2))  # grids may differ
        pictures.append(torch.stack([corner, 1e-6 * upper, lower, upper + 0.2]))
        masks.append(mask)
    pictures[0][2] += 0.1  # of the halves the upper one is slightly better: first
    assert choose(pictures, masks, top=4) == [1, 2]
    assert choose(pictures, masks, top=1) == [1]
    single = [picture[:1] for picture in pictures]
    assert choose(single, masks, top=3) == [0]  # there is no other


def test_a_gain_by_chance_is_not_enough():
    mask, upper, lower, _ = halves()
    # The second site helps in one picture of eight and harms nowhere: no more than luck.
    lucky = [torch.stack([upper, lower if n == 0 else upper]) for n in range(8)]
    assert choose(lucky, [mask] * 8, top=2) == [0]
    assert choose(lucky[:1], [mask], top=2) == [0, 1]


def test_an_interval_covers_the_mean_and_shrinks_with_more_pictures():
    rng = np.random.default_rng(0)
    few, many = rng.random(20), rng.random(2000)
    for values in (few, many):
        found = estimate(values)
        assert found.low < found.mean < found.high
        assert found.mean == pytest.approx(values.mean())
    assert estimate(many).high - estimate(many).low < (estimate(few).high - estimate(few).low) / 5
    assert estimate(few) == estimate(few)
    assert str(estimate(np.full(3, 0.5))) == "0.50 [0.50, 0.50]"


@pytest.mark.parametrize("count", [1, 2, 79, 3000])
def test_the_interval_is_the_percentile_bootstrap_written_out(count):
    values = np.random.default_rng(3).random(count)
    draws = np.random.default_rng(0).integers(0, count, (2000, count))
    low, high = np.quantile(values[draws].mean(1), [0.025, 0.975])
    found = estimate(values)
    assert (found.mean, found.low, found.high) == pytest.approx((values.mean(), low, high), 1e-12)


def test_rows_are_compared_picture_by_picture():
    base = np.linspace(0, 0.9, 10)
    choice = Row("the choice", ["double.0"], base + 0.1, base)
    other = Row("another", ["all"], base, base)
    first, second = comparison(choice, [other])
    assert "gain" not in first
    assert second["gain"] == pytest.approx({"mean": 0.1, "low": 0.1, "high": 0.1})
    assert second["iou"]["high"] - second["iou"]["low"] > 0.2  # though the pictures differ widely
    json.dumps([first, second])
    lines = comparison_table(choice, [other])
    assert lines[2].startswith("another")
    assert lines[2].endswith("0.10 [0.10, 0.10]")


def test_heads_are_ranked_on_one_half_and_shown_on_the_other():
    on = np.array([True, True, False, False])
    iou = np.full((len(SITES), 4), 0.1)
    share = np.zeros_like(iou)
    iou[5, :2], iou[5, 2:] = 0.9, 0.4
    iou[10, 2:] = 1.0  # better where it is not looked at
    share[3] = 0.5
    scores = Scores(SITES, iou, share)
    assert scores.ranking(on)[:2] == [5, 3]
    assert scores.ranking(on, "style")[0] == 0
    assert scores.row("best", 5).name == f"best ({spec_of(SITES[5])})"
    assert spec_of(SITES[5]) == "double.0.context:0@object"
    np.testing.assert_allclose(scores.average("lot").iou, iou.mean(0))
    table = head_table({"base": scores}, on)
    assert len(table) == 5
    [line] = [one for one in table if "object  context" in one]
    assert "0.40  double.0:0" in line
