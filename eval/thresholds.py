"""Conditions on the means that make the command fail, for use in continuous integration."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from eval.metrics import CATALOGUE, MetricInfo
from eval.report.tables import format_value
from eval.summary import ALL, edit_methods
from regionroute.errors import UserError, nearest

_COMPARISONS = {
    ">=": lambda value, limit: value >= limit,
    "<=": lambda value, limit: value <= limit,
    ">": lambda value, limit: value > limit,
    "<": lambda value, limit: value < limit,
}
_FORM = re.compile(r"\s*(?:(.+):)?\s*([a-z0-9_]+)\s*(>=|<=|>|<)\s*([-+0-9.eE]+)\s*")


@dataclass(frozen=True)
class Threshold:
    """A condition that fails the command when a metric's mean meets it.

    Attributes:
        method: whose mean, None for every method's.
        metric: its name.
        sign: one of > >= < <=.
        limit: in the unit of summary.json (shares in [0,1]).
        text: as given.
    """

    method: str | None
    metric: str
    sign: str
    limit: float
    text: str


def parse_thresholds(
    items: Iterable[str], methods: Sequence[str], metrics: Sequence[str]
) -> list[Threshold]:
    """``[METHOD:]METRIC>NUMBER`` of every --fail-if.

    Args:
        items: as given.
        methods: names of the edits' methods.
        metrics: names of the metrics that were asked for.

    Raises:
        UserError: not of this form, or an unknown method or metric.
    """
    found = []
    for item in items:
        parts = _FORM.fullmatch(item)
        try:
            limit = float(parts[4]) if parts else None
        except ValueError:
            limit = None
        if parts is None or limit is None:
            raise UserError(f'--fail-if "{item}": write [METHOD:]METRIC>NUMBER, as "lpips_bg>0.1"')
        method, metric = parts[1] and parts[1].strip(), parts[2]
        if method is not None and method not in methods:
            raise UserError(f'--fail-if "{item}": no such method, there are {", ".join(methods)}')
        if metric not in metrics:
            close = nearest(metric, metrics)
            raise UserError(
                f'--fail-if "{item}": {metric!r} is not among the metrics asked for, the nearest '
                f"is {close!r}"
            )
        found.append(Threshold(method, metric, parts[3], limit, item))
    return found


def violations(thresholds: Iterable[Threshold], summary: dict[str, Any]) -> list[str]:
    """One sentence for each condition that a method meets, or whose value is not known."""
    said = []
    for threshold in thresholds:
        for method in edit_methods(summary["methods"]):
            if threshold.method not in (None, method):
                continue
            value = _mean(summary, method, threshold.metric)
            if value is None:
                said.append(f'{method}: "{threshold.text}" cannot be checked, there is no value')
            elif _COMPARISONS[threshold.sign](value, threshold.limit):
                said.append(f'{method}: "{threshold.text}", it is {_shown(threshold, value)}')
    return said


def _mean(summary: dict[str, Any], method: str, metric: str) -> float | None:
    if metric not in CATALOGUE:
        entry = summary.get("sets", {}).get("methods", {}).get(method, {}).get(metric)
        return None if entry is None else entry["value"]
    estimate = summary["methods"][method]["slices"].get(ALL, {}).get(metric)
    return None if estimate is None else estimate["mean"]


def _shown(threshold: Threshold, value: float) -> str:
    info: MetricInfo | None = CATALOGUE.get(threshold.metric)
    return f"{value:.4f}" if info is None else format_value(info, value)
