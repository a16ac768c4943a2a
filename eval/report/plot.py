"""Style match against preservation, a point with its intervals for each method, as inline SVG.

An edit must be good in both: a method in the upper right corner restyles the object and leaves the
rest alone; the floor leaves everything alone, a global restyle nothing.
"""

import itertools
import math
from collections.abc import Sequence
from typing import Any

from markupsafe import Markup

from eval.edits import CEILING, FLOOR
from eval.metrics import CATALOGUE, MetricInfo
from eval.report.tables import format_value
from eval.summary import ALL

MATCH = (
    "rsm",
    "csd",
    "style_match",
    "gram",
    "in_mask_ratio",
    "coverage",
)  # the first that is there
PRESERVATION = ("lpips_bg", "mse_bg", "leak")
WIDTH, HEIGHT = 640, 400
LEFT, RIGHT, TOP, BOTTOM = 78, 150, 18, 52
TICKS = 5
LABEL_HEIGHT = 15


def match_plots(summary: dict[str, Any], colours: dict[str, int]) -> list[dict[str, Any]]:
    """The plots to show: {"svg", "x", "y"}; none where a measure of either kind is missing.

    Args:
        summary: of ``summary.json``.
        colours: number of each method's colour.
    """
    metrics = [CATALOGUE[name] for name in summary["metrics"]]
    x, y = _first(summary, metrics, PRESERVATION), _first(summary, metrics, MATCH)
    if x is None or y is None:
        return []
    return [{"svg": scatter(summary, x, y, colours), "x": x, "y": y}]


def _first(
    summary: dict[str, Any], metrics: Sequence[MetricInfo], names: Sequence[str]
) -> MetricInfo | None:
    there = {info.name: info for info in metrics}
    for name in names:
        if name in there and len(_points(summary, name)) > 1:
            return there[name]
    return None


def _points(summary: dict[str, Any], metric: str) -> dict[str, dict[str, Any]]:
    entries = summary["methods"].items()
    found = {name: entry["slices"].get(ALL, {}).get(metric) for name, entry in entries}
    return {name: estimate for name, estimate in found.items() if estimate and estimate["n"]}


def scatter(
    summary: dict[str, Any], x: MetricInfo, y: MetricInfo, colours: dict[str, int]
) -> Markup:
    """The plot; on both axes better is away from the origin."""
    across, up = _points(summary, x.name), _points(summary, y.name)
    names = [name for name in across if name in up]
    horizontal = _Axis(x, [across[name] for name in names], LEFT, WIDTH - RIGHT)
    vertical = _Axis(y, [up[name] for name in names], HEIGHT - BOTTOM, TOP)
    parts = [_frame(horizontal, vertical)]
    places = [(horizontal(across[n]["mean"]), vertical(up[n]["mean"])) for n in names]
    labels = _apart([place[1] for place in places])
    for name, (px, py), ly in zip(names, places, labels, strict=True):
        ends = [horizontal(v) for v in _ends(across[name])] + [vertical(v) for v in _ends(up[name])]
        colour = f"var(--m{colours[name]})" if name in colours else "var(--muted)"
        shape = _mark(name, px, py)
        parts.append(
            Markup(
                '<g style="--c:{}">'
                '<path class="cross" d="M{:.1f} {:.1f}H{:.1f}M{:.1f} {:.1f}V{:.1f}"/>'
                '{}<path class="lead-line" d="M{:.1f} {:.1f}L{:.1f} {:.1f}"/>'
                '<text x="{:.1f}" y="{:.1f}" dy=".35em">{}</text></g>'
            ).format(
                *(colour, ends[0], py, ends[1], px, ends[2], ends[3], shape),
                *(px, py, WIDTH - RIGHT + 10, ly, WIDTH - RIGHT + 14, ly, name),
            )
        )
    title = f"{y.label} against {x.label}, better is up and to the right"
    return Markup(
        '<svg class="plot" viewBox="0 0 {} {}" role="img" aria-label="{}">{}</svg>'
    ).format(WIDTH, HEIGHT, title, Markup("").join(parts))


def _ends(estimate: dict[str, Any]) -> tuple[float, float]:
    low, high = estimate["low"], estimate["high"]
    return (estimate["mean"],) * 2 if low is None else (low, high)


class _Axis:
    """Values to places; the better end is at `stop`."""

    def __init__(
        self, info: MetricInfo, estimates: Sequence[dict[str, Any]], start: int, stop: int
    ) -> None:
        values = [value for estimate in estimates for value in _ends(estimate)]
        low, high = min(values), max(values)
        margin = 0.06 * (high - low) or max(abs(high), 1e-6) * 0.1
        self.low, self.high = low - margin, high + margin
        self.info, self.start, self.stop = info, start, stop

    def __call__(self, value: float) -> float:
        part = (value - self.low) / (self.high - self.low)
        part = part if self.info.better == "higher" else 1 - part
        return self.start + part * (self.stop - self.start)

    def ticks(self) -> list[float]:
        """Round numbers inside the range."""
        rough = (self.high - self.low) / TICKS
        power = 10.0 ** math.floor(math.log10(rough))
        step = next(power * n for n in (1, 2, 5, 10) if power * n >= rough)
        first = math.ceil(self.low / step)
        values = [n * step for n in range(first, math.floor(self.high / step) + 1)]
        # Below what a share or a distance can be there is margin, but no tick.
        return [value for value in values if value >= 0 or self.low < -step]


def _frame(x: _Axis, y: _Axis) -> Markup:
    """Grid, numbers and the axes' names."""
    parts = []
    for value in x.ticks():
        place, text = x(value), _short(x.info, value)
        parts.append(
            Markup('<path class="grid-line" d="M{:.1f} {}V{}"/><text x="{:.1f}" y="{}" '
                   'text-anchor="middle">{}</text>').format(
                place, TOP, HEIGHT - BOTTOM, place, HEIGHT - BOTTOM + 17, text
            )
        )  # fmt: skip
    for value in y.ticks():
        place, text = y(value), _short(y.info, value)
        parts.append(
            Markup('<path class="grid-line" d="M{} {:.1f}H{}"/><text x="{}" y="{:.1f}" dy=".35em" '
                   'text-anchor="end">{}</text>').format(
                LEFT, place, WIDTH - RIGHT, LEFT - 8, place, text
            )
        )  # fmt: skip
    middle = (TOP + HEIGHT - BOTTOM) / 2
    parts.append(
        Markup('<text class="axis" x="{}" y="{}" text-anchor="middle">{} → better</text>'
               '<text class="axis" transform="translate(16 {}) rotate(-90)" text-anchor="middle">'
               "{} → better</text>").format(
            (LEFT + WIDTH - RIGHT) / 2, HEIGHT - 12, x.info.label, middle, y.info.label
        )
    )  # fmt: skip
    return Markup("").join(parts)


def _short(info: MetricInfo, value: float) -> str:
    """A tick's number; as few digits as it needs."""
    if info.unit == "share":
        return f"{100 * value:g} %"
    return f"{value:g}" if info.unit != "pixels" else format_value(info, value)


def _mark(name: str, x: float, y: float) -> Markup:
    """A dot for a method, a square for the references."""
    if name in (FLOOR, CEILING):
        return Markup('<rect x="{:.1f}" y="{:.1f}" width="9" height="9"/>').format(x - 4.5, y - 4.5)
    return Markup('<circle cx="{:.1f}" cy="{:.1f}" r="5.5"/>').format(x, y)


def _apart(places: Sequence[float]) -> list[float]:
    """Heights for the labels: near their points, but not over each other."""
    order = sorted(range(len(places)), key=lambda number: places[number])
    found = list(places)
    for before, after in itertools.pairwise(order):
        found[after] = max(found[after], found[before] + LABEL_HEIGHT)
    # Pushed below the frame: move everything up again from the last.
    limit = float(HEIGHT - BOTTOM)
    for number in reversed(order):
        found[number] = min(found[number], limit)
        limit = found[number] - LABEL_HEIGHT
    return found
