"""The contents of the report, as plain values for the template."""

from collections.abc import Sequence
from typing import Any

from markupsafe import Markup

from eval.edits import CEILING, FLOOR
from eval.metrics import CATALOGUE, MetricInfo
from eval.report.plot import match_plots
from eval.report.tables import (
    format_difference,
    format_difference_interval,
    format_interval,
    format_value,
    set_table,
)
from eval.summary import ALL, RELATIVE, edit_methods

View = dict[str, Any]

CODEC = "codec"
REFERENCES = {
    FLOOR: "the unedited image",
    CEILING: "the target itself",
    CODEC: "through the autoencoder and back, no edit",
}
CARD_METRICS = (
    *("success", "in_mask_ratio", "coverage", "mse_bg", "leak", "lpips_bg", "drift_shift"),
    *("attention_iou", "rsm", "style_match", "q1", "q2"),
)
MAX_CARDS = 9
COLOURS = 6  # --m0 … --m5 in report.css
VERDICTS = {
    "better": "clearly better in",
    "worse": "clearly worse in",
    "unclear": "not clearly different in",
    "equal": "equal in",
}
METHOD = Markup('<span class="m" style="--c:var(--m{})">{}</span>')


def numbers_view(summary: View, codec: View | None) -> View:
    """Cards, tables, comparisons and explanations of a summary.

    Args:
        summary: of ``summary.json``.
        codec: of ``eval/codec.py``, shown as one more reference row.
    """
    metrics = [CATALOGUE[name] for name in summary["metrics"]]
    methods = edit_methods(summary["methods"])
    colours = {name: number % COLOURS for number, name in enumerate(methods)}
    shown = [info for info in metrics if _any_value(summary, methods, info)]
    return {
        "methods": [{"name": name, "colour": colours[name]} for name in methods],
        "metrics": shown,
        "sentences": _sentences(summary, methods, shown),
        "cards": [_card(summary, methods, info) for info in _card_metrics(shown)],
        "rows": _rows(summary, methods, shown, codec),
        "plots": match_plots(summary, colours),
        "sets": set_table(summary),
        "pairs": [_pair(pair, shown) for pair in summary["pairs"] if pair["a"] == methods[-1]],
        "other_pairs": [
            _pair(pair, shown) for pair in summary["pairs"] if pair["a"] != methods[-1]
        ],
        "slices": _slices(summary, methods, shown),
        "remarks": [
            f"{name}: {count} of {summary['methods'][name]['n_samples']} edits: {kind}."
            for name in methods
            for kind, count in summary["methods"][name]["remarks"].items()
        ],
        "failures": [
            {"method": name, **failure}
            for name in methods
            for failure in summary["methods"][name]["failures"]
        ],
    }


def _any_value(summary: View, methods: Sequence[str], info: MetricInfo) -> bool:
    return any(_estimate(summary, name, info)["n"] for name in methods)


def _estimate(summary: View, method: str, info: MetricInfo, part: str = ALL) -> View:
    found: View = summary["methods"][method]["slices"][part][info.name]
    return found


def _card_metrics(shown: Sequence[MetricInfo]) -> list[MetricInfo]:
    by_name = {info.name: info for info in shown}
    return [by_name[name] for name in CARD_METRICS if name in by_name][:MAX_CARDS]


def _sentences(summary: View, methods: Sequence[str], shown: Sequence[MetricInfo]) -> list[Markup]:
    """The result in words: the last method, then how it compares with each other one."""
    main = methods[-1]
    estimates = {info.name: _estimate(summary, main, info) for info in shown}
    means = {
        name: format_value(CATALOGUE[name], entry["mean"])
        for name, entry in estimates.items()
        if entry["n"]
    }
    count = summary["methods"][main]["n_scored"]
    if not count:
        return [Markup("None of the edits of {} could be scored.").format(_chip(methods, main))]
    said = []
    if "in_mask_ratio" in means:
        text = Markup(
            "On {} images, {} has a residual error of <b>{}</b> on the named object and a success "
            "rate of <b>{}</b>."
        )
        said.append(
            text.format(count, _chip(methods, main), means["in_mask_ratio"], means["success"])
        )
    if "leak" in means:
        text = Markup("<b>{}</b> of the background pixels change visibly.")
        said.append(text.format(means["leak"]))
    if "attention_iou" in means:
        text = Markup(
            "The attention of its style word overlaps the object with an IoU of <b>{}</b>."
        )
        said.append(text.format(means["attention_iou"]))
    pairs = [pair for pair in summary["pairs"] if pair["a"] == main]
    return said + [_comparison(pair, _card_metrics(shown), methods) for pair in pairs]


def _comparison(pair: View, shown: Sequence[MetricInfo], methods: Sequence[str]) -> Markup:
    verdicts: dict[str, list[str]] = {key: [] for key in VERDICTS}
    for info in shown:
        entry = pair["slices"][ALL][info.name]
        if entry["n"]:
            verdicts[verdict(info, entry)].append(info.label[0].lower() + info.label[1:])
    said = [
        Markup("{} <b>{}</b>").format(VERDICTS[key], ", ".join(labels))
        for key, labels in verdicts.items()
        if labels
    ]
    return Markup("Against {} on the same images, {} is {}.").format(
        _chip(methods, pair["b"]),
        _chip(methods, pair["a"]),
        Markup("; ").join(said) or "not comparable",
    )


def _chip(methods: Sequence[str], name: str) -> Markup:
    """A method's name in its colour."""
    return METHOD.format(methods.index(name) % COLOURS, name)


def verdict(info: MetricInfo, entry: View) -> str:
    """How a compares with b: better, worse, equal, or unclear when the interval holds zero."""
    low, high = entry["low"], entry["high"]
    if low == high == 0:
        return "equal"
    if low is None or low <= 0 <= high:
        return "unclear"
    return "better" if (low > 0) == (info.better == "higher") else "worse"


def _card(summary: View, methods: Sequence[str], info: MetricInfo) -> View:
    """One metric with a bar for each method; shares on a scale to 100 %."""
    estimates = {name: _estimate(summary, name, info) for name in methods}
    tops = [entry["high"] or entry["mean"] or 0 for entry in estimates.values()]
    floor, ceiling = (_estimate(summary, name, info)["mean"] for name in (FLOOR, CEILING))
    top = max([*tops, floor or 0, ceiling or 0]) or 1.0 if info.unit == "value" else 1.0
    bars = []
    for number, (name, entry) in enumerate(estimates.items()):
        bars.append(
            {
                "name": name,
                "colour": number % COLOURS,
                "text": format_value(info, entry["mean"]),
                "width": _percent(entry["mean"], top),
                "low": _percent(entry["low"], top),
                "high": _percent(entry["high"], top),
            }
        )
    references = [
        f"{name} {format_value(info, value)}"
        for name, value in ((FLOOR, floor), (CEILING, ceiling))
        if value is not None
    ]
    return {"info": info, "bars": bars, "references": " · ".join(references)}


def _percent(value: float | None, top: float) -> float | None:
    return None if value is None else round(100 * min(1.0, max(0.0, value / top)), 2)


def _rows(
    summary: View, methods: Sequence[str], shown: Sequence[MetricInfo], codec: View | None
) -> list[View]:
    """The main table: floor, methods, codec, ceiling."""
    rows = []
    for name in summary["methods"]:
        entry = summary["methods"][name]
        rows.append(
            {
                "name": name,
                "colour": methods.index(name) % COLOURS if name in methods else None,
                "note": REFERENCES.get(name),
                "scored": f"{entry['n_scored']} / {entry['n_samples']}",
                "cells": [_main_cell(info, entry["slices"][ALL]) for info in shown],
            }
        )
    if codec:
        estimates = codec["slices"][ALL]
        cells = [_main_cell(info, estimates) for info in shown]
        count = f"{codec['samples']} / {codec['samples']}"
        row = {"name": CODEC, "colour": None, "note": REFERENCES[CODEC], "scored": count}
        rows.insert(len(rows) - 1, {**row, "cells": cells})
    if len(methods) > 1:
        for column, info in enumerate(shown):
            _mark_best([row["cells"][column] for row in rows if row["colour"] is not None], info)
    return rows


def _main_cell(info: MetricInfo, estimates: View) -> View:
    """A cell; the ratio of means, which is steadier, is given next to the mean of ratios."""
    cell = {**_cell(info, estimates.get(info.name)), "note": ""}
    relative = estimates.get(RELATIVE)
    if info.name == "in_mask_ratio" and relative and relative["n"]:
        cell["note"] = f"ratio of means {format_value(info, relative['mean'])}"
    return cell


def _cell(info: MetricInfo, estimate: View | None) -> View:
    if not estimate or not estimate["n"]:
        return {"text": "–", "interval": "", "mean": None, "best": False, "invalid": 0}
    return {
        "text": format_value(info, estimate["mean"]),
        "interval": format_interval(info, estimate),
        "mean": estimate["mean"],
        "best": False,
        "invalid": estimate["n_invalid"],
    }


def _mark_best(cells: Sequence[View], info: MetricInfo) -> None:
    means = [cell["mean"] for cell in cells if cell["mean"] is not None]
    if not means:
        return
    best = max(means) if info.better == "higher" else min(means)
    for cell in cells:
        cell["best"] = cell["mean"] == best


def _pair(pair: View, shown: Sequence[MetricInfo]) -> View:
    rows = []
    for info in shown:
        entry = pair["slices"][ALL][info.name]
        if not entry["n"]:
            continue
        rows.append(
            {
                "info": info,
                "difference": format_difference(info, entry["difference"]),
                "interval": format_difference_interval(info, entry),
                "wins": f"{100 * entry['win_rate']:.0f} %",
                "n": entry["n"],
                "verdict": verdict(info, entry),
            }
        )
    return {"a": pair["a"], "b": pair["b"], "rows": rows}


def _slices(summary: View, methods: Sequence[str], shown: Sequence[MetricInfo]) -> list[View]:
    """For each metric the table of slices by methods."""
    blocks = []
    for info in shown:
        rows = []
        for part, count in summary["slices"].items():
            kind, _, label = part.rpartition(":")
            cells = [_cell(info, _estimate(summary, name, info, part)) for name in methods]
            if len(methods) > 1:
                _mark_best(cells, info)
            rows.append({"kind": kind, "label": label, "count": count, "cells": cells})
        blocks.append({"info": info, "rows": rows})
    return blocks
