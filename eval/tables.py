"""The summary as text: numbers as people read them, Markdown tables."""

from collections.abc import Sequence
from typing import Any

from eval.edits import CEILING, FLOOR
from eval.metrics import CATALOGUE, MetricInfo
from eval.stats import LEVEL
from eval.summary import ALL, edit_methods


def format_value(info: MetricInfo, value: float | None) -> str:
    """A number as tables show it: shares in percent, "–" for none."""
    if value is None:
        return "–"
    if info.unit == "share":
        return f"{100 * value:.1f} %"
    return f"{value:.3f}" if info.unit == "fraction" else f"{value:.4f}"


def format_difference(info: MetricInfo, value: float | None) -> str:
    """A difference with its sign; between shares it is in percentage points."""
    if value is None:
        return "–"
    sign = "+" if value > 0 else "−" if value < 0 else "±"
    if info.unit == "share":
        return f"{sign}{100 * abs(value):.1f} pts"
    return sign + format_value(info, abs(value))


def format_difference_interval(info: MetricInfo, entry: dict[str, Any]) -> str:
    """The interval of a difference, its unit named once; empty where there is none."""
    if entry["low"] is None:
        return ""
    low, high = (format_difference(info, entry[key]) for key in ("low", "high"))
    return f"{low.removesuffix(' pts')} … {high}"


def format_interval(info: MetricInfo, estimate: dict[str, Any]) -> str:
    """The interval of an estimate, empty where there is none or both ends read the same."""
    low, high = (format_value(info, estimate[key]) for key in ("low", "high"))
    return f"{low} … {high}" if low != high else ""


def markdown(summary: dict[str, Any]) -> str:
    """The summary as Markdown tables."""
    metrics = [CATALOGUE[name] for name in summary["metrics"]]
    parts = [
        "# Scores",
        f"{summary['manifest']['samples']} samples of `{summary['manifest']['path']}`, split "
        f"`{summary['manifest']['split']}`. Means with {LEVEL:.0%} bootstrap intervals. `floor` "
        "is the unedited picture, `ceiling` the target itself.",
        main_table(summary, metrics),
    ]
    for pair in summary["pairs"]:
        parts += [
            f"## {pair['a']} minus {pair['b']}, on the same samples",
            _pair_table(pair, metrics),
        ]
    for method in edit_methods(summary["methods"]):
        parts += [f"## {method} by slice", _slice_table(summary, method, metrics)]
    parts += ["## Definitions", _definitions(summary, metrics)]
    parts += _failure_lines(summary)
    return "\n\n".join(parts) + "\n"


def main_table(summary: dict[str, Any], metrics: Sequence[MetricInfo]) -> str:
    """Methods by metrics over all samples, as a Markdown table."""
    rows = []
    for method, entry in summary["methods"].items():
        estimates = entry["slices"].get(ALL, {})
        cells = [_cell(info, estimates[info.name]) for info in metrics]
        rows.append([method, f"{entry['n_scored']}/{entry['n_samples']}", *cells])
    return _grid(["method", "scored", *_headings(metrics)], rows)


def _pair_table(pair: dict[str, Any], metrics: Sequence[MetricInfo]) -> str:
    rows = []
    for info in metrics:
        entry = pair["slices"][ALL][info.name]
        if not entry["n"]:
            continue
        rows.append(
            [
                f"{info.label} {info.arrow}",
                format_difference(info, entry["difference"]),
                format_difference_interval(info, entry),
                f"{100 * entry['win_rate']:.0f} %",
                str(entry["n"]),
            ]
        )
    return _grid(["metric", "difference", "interval", "wins", "n"], rows)


def _slice_table(summary: dict[str, Any], method: str, metrics: Sequence[MetricInfo]) -> str:
    rows = []
    for name, count in summary["slices"].items():
        estimates = summary["methods"][method]["slices"][name]
        cells = [format_value(info, estimates[info.name]["mean"]) for info in metrics]
        rows.append([name, str(count), *cells])
    return _grid(["slice", "samples", *_headings(metrics)], rows)


def _definitions(summary: dict[str, Any], metrics: Sequence[MetricInfo]) -> str:
    lines = []
    for info in metrics:
        encoder = summary["metrics"][info.name].get("encoder")
        network = (
            f" Network: {encoder['encoder']}, weights {encoder['weights']}." if encoder else ""
        )
        lines.append(f"- **{info.label}** (`{info.name}`): {info.definition}.{network}")
    lines += [f"- not computed: `{name}`: {why}" for name, why in summary["skipped"].items()]
    return "\n".join(lines)


def _failure_lines(summary: dict[str, Any]) -> list[str]:
    lines = [
        f"- {method}, {failure['id']}: {failure['error']}"
        for method, entry in summary["methods"].items()
        if method not in (FLOOR, CEILING)
        for failure in entry["failures"]
    ]
    return ["## Failures", "\n".join(lines)] if lines else []


def _cell(info: MetricInfo, estimate: dict[str, Any]) -> str:
    interval = format_interval(info, estimate)
    return format_value(info, estimate["mean"]) + (f" ({interval})" if interval else "")


def _headings(metrics: Sequence[MetricInfo]) -> list[str]:
    return [f"{info.label} {info.arrow}" for info in metrics]


def _grid(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [headings, ["---"] * len(headings), *rows]
    cells = [[cell.replace("|", "\\|") for cell in line] for line in lines]
    return "\n".join("| " + " | ".join(line) + " |" for line in cells)
