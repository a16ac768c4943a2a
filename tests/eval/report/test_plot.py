import itertools
import re

import pytest

from eval.metrics import CATALOGUE
from eval.report.plot import match_plots


def summary(**methods):
    """Methods by {metric: (mean, low, high)}."""
    names = list(dict.fromkeys(name for values in methods.values() for name in values))

    def estimate(values, name):
        mean, low, high = values.get(name) or (None, None, None)
        return {"mean": mean, "low": low, "high": high, "n": int(mean is not None)}

    return {
        "metrics": dict.fromkeys(names),
        "methods": {
            method: {"slices": {"all": {name: estimate(values, name) for name in names}}}
            for method, values in methods.items()
        },
    }


def marks(svg):
    """Place of each method's mark, by its label."""
    groups = re.findall(r"<g .*?</g>", svg)
    found = {}
    for group in groups:
        name = re.search(r">([^<]+)</text>", group)[1]
        dot = re.search(r'cx="([-\d.]+)" cy="([-\d.]+)"', group)
        square = re.search(r'rect x="([-\d.]+)" y="([-\d.]+)"', group)
        x, y = (dot or square).groups()
        shift = 0 if dot else 4.5
        found[name] = (float(x) + shift, float(y) + shift)
    return found


def test_better_is_up_and_to_the_right():
    made = summary(
        floor={"rsm": (0.5, 0.48, 0.52), "lpips_bg": (0.0, 0.0, 0.0)},
        ours={"rsm": (0.6, 0.58, 0.62), "lpips_bg": (0.1, 0.08, 0.12)},
        wild={"rsm": (0.7, 0.69, 0.71), "lpips_bg": (0.6, 0.5, 0.7)},
        ceiling={"rsm": (0.62, 0.6, 0.64), "lpips_bg": (0.0, 0.0, 0.0)},
    )
    (plot,) = match_plots(made, {"ours": 0, "wild": 1})
    assert (plot["x"], plot["y"]) == (CATALOGUE["lpips_bg"], CATALOGUE["rsm"])
    found = marks(plot["svg"])
    assert found["floor"][0] == found["ceiling"][0] > found["ours"][0] > found["wild"][0]
    assert found["wild"][1] < found["ceiling"][1] < found["ours"][1] < found["floor"][1]
    # Proportional: .5 of the axis between floor and wild is five times .1.
    steps = [found["floor"][0] - found[name][0] for name in ("ours", "wild")]
    assert steps[1] / steps[0] == pytest.approx(6, rel=0.01)
    assert 'aria-label="Style match (RSM) against Background LPIPS' in plot["svg"]
    heights = sorted(float(y) for y in re.findall(r'<text x="504.0" y="([\d.]+)"', plot["svg"]))
    assert all(b - a >= 15 for a, b in itertools.pairwise(heights))


def test_the_first_measures_that_are_there_are_taken():
    made = summary(
        floor={"in_mask_ratio": (1, 1, 1), "mse_bg": (0, 0, 0)},
        ours={"in_mask_ratio": (0.3, None, None), "mse_bg": (0.1, None, None)},
    )
    (plot,) = match_plots(made, {"ours": 0})
    assert (plot["x"].name, plot["y"].name) == ("mse_bg", "in_mask_ratio")
    found = marks(plot["svg"])
    assert found["ours"][1] < found["floor"][1]  # less error left is up
    assert match_plots(summary(floor={"mse_bg": (0, 0, 0)}, ours={"mse_bg": (1, 1, 1)}), {}) == []


def test_names_are_escaped_and_equal_values_drawn():
    bad = "<script>"
    made = summary(
        **{bad: {"coverage": (0.5, 0.5, 0.5), "leak": (0, 0, 0)}},
        floor={"coverage": (0.5, 0.5, 0.5), "leak": (0, 0, 0)},
    )
    (plot,) = match_plots(made, {bad: 0})
    assert bad not in plot["svg"]
    assert "&lt;script&gt;" in plot["svg"]
    assert "nan" not in plot["svg"]
