"""What the page of attention maps says and shows, as plain values for the template."""

from collections.abc import Sequence
from pathlib import Path

from tqdm import tqdm

from eval.metrics import CATALOGUE, MAP_METRICS
from eval.report.images import heat_gradient, outlined
from eval.report.page import View, figure, map_overlay, missing, read_source
from eval.report.tables import (
    format_difference,
    format_difference_interval,
    format_interval,
    format_value,
)
from eval.report.view import COLOURS, verdict
from eval.scoring import Row
from eval.summary import ALL, edit_methods, group_by_slice
from regionroute.data.images import read_image
from regionroute.data.stats import describe

IOU, SHARE = (CATALOGUE[name] for name in MAP_METRICS)


def maps_view(
    summary: View, rows: Sequence[Row], chosen: Sequence[Sequence[Row]], root: Path
) -> View:
    """Everything the template ``maps.html.j2`` needs.

    Args:
        summary: of :func:`eval.summary.summarise`.
        rows: of every sample and method.
        chosen: the samples to show, each as the rows of its edits.
        root: folder the rows' file names are relative to.
    """
    methods = edit_methods(summary["methods"])
    even = _even_shares(rows, methods[0])
    return {
        "methods": [{"name": n, "colour": i % COLOURS} for i, n in enumerate(methods)],
        "metrics": [IOU, SHARE],
        "table": [_slice_row(summary, methods, part, even.get(part)) for part in summary["slices"]],
        "pairs": [_pair(pair) for pair in summary["pairs"]],
        "gallery": [_sample(root, group) for group in tqdm(chosen, desc="images", unit="sample")],
        "legend": heat_gradient(),
        "lines": [_line(summary, name) for name in methods],
    }


def _even_shares(rows: Sequence[Row], method: str) -> dict[str, float]:
    """{slice: mean share of the image that is object}: what even attention would give."""
    parts = group_by_slice(row for row in rows if row["method"] == method and not row["error"])
    means = {part: describe([row["mask_share"] for row in own]) for part, own in parts.items()}
    return {part: entry.mean for part, entry in means.items() if entry.mean is not None}


def _slice_row(summary: View, methods: Sequence[str], part: str, even: float | None) -> View:
    kind, _, label = part.rpartition(":")
    cells = []
    for info in (IOU, SHARE):
        estimates = [summary["methods"][name]["slices"][part][info.name] for name in methods]
        means = [entry["mean"] for entry in estimates if entry["n"]]
        cells += [
            {
                "text": format_value(info, entry["mean"]),
                "interval": format_interval(info, entry),
                "count": entry["n"] if entry["n"] < summary["slices"][part] else None,
                "best": len(methods) > 1 and entry["n"] > 0 and entry["mean"] == max(means),
            }
            for entry in estimates
        ]
    return {
        "kind": kind,
        "label": label,
        "count": summary["slices"][part],
        "even": format_value(SHARE, even),
        "cells": cells,
    }


def _pair(pair: View) -> View:
    """The differences of two methods on the same samples, in words and numbers."""
    parts = []
    for info in (IOU, SHARE):
        entry = pair["slices"][ALL][info.name]
        if entry["n"]:
            parts.append(
                {
                    "label": info.label,
                    "difference": format_difference(info, entry["difference"]),
                    "interval": format_difference_interval(info, entry),
                    "verdict": verdict(info, entry),
                    "n": entry["n"],
                }
            )
    return {"a": pair["a"], "b": pair["b"], "parts": parts}


def _sample(root: Path, group: Sequence[Row]) -> View:
    """One sample of the gallery: its image, then each method's edit and map with numbers."""
    first = group[0]
    measured = [row for row in group if not row["error"]]
    return {
        "id": first["id"],
        "prompt": first["prompt"],
        "objects": first["objects"],
        "styles": list(dict.fromkeys(first["styles"])),
        "flags": first["flags"],
        "even": format_value(SHARE, measured[0]["mask_share"] if measured else None),
        "source": [
            figure("image", None, lambda: read_image(root / first["files"]["source"])),
            figure("object", None, lambda: outlined(*read_source(root, first["files"]))),
        ],
        "edits": [_edit(root, row, number % COLOURS) for number, row in enumerate(group)],
    }


def _edit(root: Path, row: Row, colour: int) -> View:
    name, files = row["method"], row["files"]
    values = row.get("metrics", {})
    if row["error"]:
        figures = [missing("edit", colour, row["error"])]
    else:
        figures = [figure("edit", colour, lambda: read_image(root / files["edit"]))]
        if row["map_problem"] or "map" not in files:
            problem = row["map_problem"] or f"{row['id']}.map.png is not in the folder of edits"
            figures.append(missing("map", colour, problem))
        else:
            figures.append(figure("map", colour, lambda: map_overlay(root, row, contour=True)))
    return {
        "name": name,
        "colour": colour,
        "figures": figures,
        "iou": format_value(IOU, values.get(IOU.name)),
        "share": format_value(SHARE, values.get(SHARE.name)),
    }


def _line(summary: View, method: str) -> str:
    """A method's means as one line for the terminal."""
    estimates = summary["methods"][method]["slices"][ALL]
    iou, share = (format_value(info, estimates[info.name]["mean"]) for info in (IOU, SHARE))
    count = estimates[IOU.name]["n"]
    return f"{method}: attention IoU {iou}, {share} of the attention on the object (maps: {count})"
