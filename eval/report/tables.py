"""The summary as text: numbers as people read them, Markdown tables."""

import csv
import io
from collections.abc import Sequence
from typing import Any

from eval.edits import CEILING, FLOOR
from eval.metrics import CATALOGUE, MetricInfo
from eval.metrics.catalogue import SCORE_NOTE
from eval.summary import ALL, edit_methods
from regionroute.data.stats import LEVEL
from regionroute.markdown import table

SET_LABELS = {"fid": "FID", "artfid": "ArtFID"}


def format_value(info: MetricInfo, value: float | None) -> str:
    """A number as tables show it: shares in percent, "–" for none."""
    if value is None:
        return "–"
    if info.unit == "share":
        return f"{100 * value:.1f} %"
    if info.unit == "pixels":
        return f"{value:.2f} px"
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
        "is the unedited image, `ceiling` the target itself.",
        main_table(summary, metrics),
        SCORE_NOTE,
    ]
    for pair in summary["pairs"]:
        parts += [
            f"## {pair['a']} minus {pair['b']}, on the same samples",
            _pair_table(pair, metrics),
        ]
    for method in edit_methods(summary["methods"]):
        parts += [f"## {method} by slice", _slice_table(summary, method, metrics)]
    parts += _set_lines(summary)
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
    return table(["method", "scored", *_headings(metrics)], rows)


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
    return table(["metric", "difference", "interval", "wins", "n"], rows)


def _slice_table(summary: dict[str, Any], method: str, metrics: Sequence[MetricInfo]) -> str:
    rows = []
    for name, count in summary["slices"].items():
        estimates = summary["methods"][method]["slices"][name]
        cells = [format_value(info, estimates[info.name]["mean"]) for info in metrics]
        rows.append([name, str(count), *cells])
    return table(["slice", "samples", *_headings(metrics)], rows)


def _definitions(summary: dict[str, Any], metrics: Sequence[MetricInfo]) -> str:
    lines = []
    for info in metrics:
        encoder = summary["metrics"][info.name].get("encoder")
        network = (
            f" Network: {encoder['encoder']}, weights {encoder['weights']}." if encoder else ""
        )
        definition = summary["metrics"][info.name]["definition"]
        lines.append(f"- **{info.label}** (`{info.name}`): {definition}.{network}")
    lines.append(f"- sizes: {summary['size_rule']}.")
    if "judge" in summary:
        lines += _judge_lines(summary["judge"])
    lines += [f"- not computed: `{name}`: {why}" for name, why in summary["skipped"].items()]
    return "\n".join(lines)


def _judge_lines(judge: dict[str, Any]) -> list[str]:
    """Who was asked, how, and how many answers were unclear."""
    config = judge["config"]
    counts = ", ".join(
        f"{name} {entry['unparsable']} of {entry['answers']}"
        for name, entry in judge["answers"].items()
    )
    return [
        f"- judge: {judge['encoder']}, weights {judge['weights']}, temperature "
        f"{config['temperature']:g}, seed {config['seed']}; unclear answers: {counts or 'none'}"
        "; prompts in `summary.json`, every answer in `judge.jsonl`."
    ]


def set_table(summary: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Headings and rows of the measures of whole sets, empty rows where there are none."""
    methods = summary.get("sets", {}).get("methods", {})
    names = list(dict.fromkeys(name for entry in methods.values() for name in entry))
    rows = []
    for method, entry in methods.items():
        values = [entry[name]["value"] if name in entry else None for name in names]
        cells = ["–" if value is None else f"{value:.3f}" for value in values]
        counts = next(iter(entry.values()), {"n": 0, "n_reference": 0})
        rows.append([method, str(counts["n"]), str(counts["n_reference"]), *cells])
    headings = ["method", "edits", "style images", *(f"{SET_LABELS[name]} ↓" for name in names)]
    return headings, rows


def _set_lines(summary: dict[str, Any]) -> list[str]:
    headings, rows = set_table(summary)
    if not rows:
        return []
    definitions = summary["sets"]["definitions"]
    lines = [f"- **{SET_LABELS[name]}**: {text}." for name, text in definitions.items()]
    return ["## Metrics of whole sets", table(headings, rows), "\n".join(lines)]


def latex(summary: dict[str, Any]) -> str:
    """The main table for a paper: booktabs, each mean with its interval below it in small print."""
    metrics = [
        info
        for name in summary["metrics"]
        if any(_mean_of(entry, name) is not None for entry in summary["methods"].values())
        for info in [CATALOGUE[name]]
    ]
    lines = [
        "% needs \\usepackage{booktabs}; means with 95 % bootstrap intervals",
        "\\begin{tabular}{l" + "r" * len(metrics) + "}",
        "\\toprule",
        " & ".join(["method", *(_tex(f"{info.label} {info.arrow}") for info in metrics)]) + r" \\",
        "\\midrule",
    ]
    for method, entry in summary["methods"].items():
        estimates = entry["slices"].get(ALL, {})
        cells = [_tex(format_value(info, estimates[info.name]["mean"])) for info in metrics]
        small = [format_interval(info, estimates[info.name]) for info in metrics]
        lines.append(" & ".join([_tex(method), *cells]) + r" \\")
        if any(small):
            tiny = [f"{{\\scriptsize {_tex(text)}}}" if text else "" for text in small]
            lines.append(" & ".join(["", *tiny]) + r" \\[2pt]")
    return "\n".join([*lines, "\\bottomrule", "\\end{tabular}"]) + "\n"


def _mean_of(entry: dict[str, Any], metric: str) -> float | None:
    mean: float | None = entry["slices"].get(ALL, {}).get(metric, {}).get("mean")
    return mean


def _tex(text: str) -> str:
    """Text with LaTeX's own characters made harmless and our signs in its words."""
    signs = {
        "\\": r"\textbackslash{}",
        "{": r"\{",
        "}": r"\}",
        **{sign: f"\\{sign}" for sign in "&%$#_"},
        "~": r"\textasciitilde{}",
        "^": r"\textasciicircum{}",
        "↑": r"$\uparrow$",
        "↓": r"$\downarrow$",
        "…": r"\,--\,",
        "–": "--",
        "−": "$-$",
    }
    return "".join(signs.get(letter, letter) for letter in text)


def csv_rows(rows: Sequence[dict[str, Any]], metrics: Sequence[str]) -> str:
    """One line a sample and method, numbers as they are, for spreadsheets."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    words = ["id", "method", "objects", "styles", "flags", "mask_share", "error", "remarks"]
    writer.writerow([*words, *metrics])
    for row in rows:
        values = row.get("metrics") or {}
        writer.writerow(
            [
                row["id"],
                row["method"],
                *("; ".join(row[name]) for name in ("objects", "styles", "flags")),
                row.get("mask_share", ""),
                row["error"] or "",
                "; ".join(remark["text"] for remark in row.get("remarks", [])),
                *("" if values.get(name) is None else values[name] for name in metrics),
            ]
        )
    return file.getvalue()


def _failure_lines(summary: dict[str, Any]) -> list[str]:
    """What could not be scored, and what was scored with a remark, counted."""
    lines = [
        f"- {method}, {failure['id']}: {failure['error']}"
        for method, entry in summary["methods"].items()
        if method not in (FLOOR, CEILING)
        for failure in entry["failures"]
    ]
    remarks = [
        f"- {method}: {kind}: {count} of {entry['n_samples']}"
        for method, entry in summary["methods"].items()
        for kind, count in entry["remarks"].items()
    ]
    parts = ["## Failures", "\n".join(lines)] if lines else []
    return parts + (["## Remarks", "\n".join(remarks)] if remarks else [])


def _cell(info: MetricInfo, estimate: dict[str, Any]) -> str:
    interval = format_interval(info, estimate)
    return format_value(info, estimate["mean"]) + (f" ({interval})" if interval else "")


def _headings(metrics: Sequence[MetricInfo]) -> list[str]:
    return [f"{info.label} {info.arrow}" for info in metrics]
