"""From rows to the summary: means with intervals by slice, paired differences, failures."""

import itertools
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from eval.edits import CEILING, FLOOR
from eval.metrics import CATALOGUE
from eval.scoring import Row
from regionroute.data.stats import LEVEL, RESAMPLES, describe, paired, ratio_of_means

SCHEMA_VERSION = 1
ALL = "all"
RELATIVE = "in_mask_relative"
RELATIVE_DEFINITION = (
    "mean in_mask_error / mean in_mask_error of the unedited image, over the same samples"
)


SMALL_AREA = 0.05  # of the image, as everywhere in the project


def slices_of(row: Row) -> list[str]:
    """The slices a row belongs to: ``all``, ``size:…``, ``count:…``, ``flag:…``, ``style:…``.

    Size is that of all its objects together and known of scored rows; the count is "several" for
    more than one region or a word that names several things.
    """
    sizes = []
    if row.get("mask_share") is not None:
        sizes = ["size:small" if row["mask_share"] < SMALL_AREA else "size:large"]
    several = len(row["styles"]) > 1 or "several" in row["flags"]
    count = "count:several" if several else "count:one"
    flags = [f"flag:{flag}" for flag in row["flags"]]
    styles = [f"style:{style}" for style in dict.fromkeys(row["styles"])]
    return [ALL, *sizes, count, *flags, *styles]


def group_by_slice(rows: Iterable[Row]) -> dict[str, list[Row]]:
    """{slice: its rows}: ``all`` first, then sizes, counts, flags and styles, each by name."""
    groups: dict[str, list[Row]] = {}
    for row in rows:
        for name in slices_of(row):
            groups.setdefault(name, []).append(row)
    rank = {ALL: 0, "size": 1, "count": 2, "flag": 3, "style": 4}
    names = sorted(groups, key=lambda name: (rank[name.split(":", 1)[0]], name))
    return {name: groups[name] for name in names}


def summarise(rows: Sequence[Row], metrics: Sequence[str], seed: int = 0) -> dict[str, Any]:
    """The numbers of the summary, from rows alone.

    Args:
        rows: of :class:`eval.scoring.Scorer`.
        metrics: names of the metrics in the rows.
        seed: of the bootstrap.

    Returns:
        ``slices`` {slice: samples}, ``methods`` {method: counts, failures, slices}, ``pairs``.
    """
    table = _Table(rows, metrics)
    methods = {}
    for method in table.methods:
        own = [row for row in rows if row["method"] == method]
        failures = [{"id": row["id"], "error": row["error"]} for row in own if row["error"]]
        methods[method] = {
            "n_samples": len(own),
            "n_scored": len(own) - len(failures),
            "n_failed": len(failures),
            "failures": failures,
            "remarks": _remark_counts(own),
            "slices": {name: table.estimates(method, name, seed) for name in table.slices},
        }
    pairs = [
        {
            "a": a,
            "b": b,
            "slices": {name: table.differences(a, b, name, seed) for name in table.slices},
        }
        for b, a in itertools.combinations(edit_methods(table.methods), 2)
    ]
    counts = {name: len(members) for name, members in table.slices.items()}
    return {"schema": SCHEMA_VERSION, "slices": counts, "methods": methods, "pairs": pairs}


def _remark_counts(rows: Iterable[Row]) -> dict[str, int]:
    """How many edits had each kind of remark."""
    counts = Counter(remark["kind"] for row in rows for remark in row.get("remarks", []))
    return dict(sorted(counts.items()))


def edit_methods(methods: Iterable[str]) -> list[str]:
    """The methods without floor and ceiling."""
    return [name for name in methods if name not in (FLOOR, CEILING)]


def bootstrap_settings(seed: int) -> dict[str, Any]:
    """How the intervals were made, for the output files."""
    return {"resamples": RESAMPLES, "level": LEVEL, "seed": seed, "kind": "percentile"}


class _Table:
    """Values by method and metric, aligned over samples; failed samples are NaN."""

    def __init__(self, rows: Sequence[Row], metrics: Sequence[str]) -> None:
        self.metrics = metrics
        self.methods = list(dict.fromkeys(row["method"] for row in rows))
        ids = list(dict.fromkeys(row["id"] for row in rows))
        place = {sample_id: number for number, sample_id in enumerate(ids)}
        self.values = {
            (method, metric): np.full(len(ids), np.nan)
            for method in self.methods
            for metric in metrics
        }
        self.scored = {method: np.zeros(len(ids), dtype=bool) for method in self.methods}
        for row in rows:
            if row["error"]:
                continue
            number = place[row["id"]]
            self.scored[row["method"]][number] = True
            for metric in metrics:
                value = row["metrics"].get(metric)
                self.values[row["method"], metric][number] = np.nan if value is None else value
        self.slices = {
            name: np.array(sorted({place[row["id"]] for row in group}))
            for name, group in group_by_slice(rows).items()
        }

    def estimates(self, method: str, name: str, seed: int) -> dict[str, Any]:
        chosen = self.slices[name]
        chosen = chosen[self.scored[method][chosen]]
        result = {
            metric: asdict(describe(self.values[method, metric][chosen], seed=seed))
            for metric in self.metrics
        }
        if "in_mask_error" in self.metrics and FLOOR in self.methods:
            error, unedited = (self.values[one, "in_mask_error"][chosen] for one in (method, FLOOR))
            result[RELATIVE] = asdict(ratio_of_means(error, unedited, seed=seed))
        return result

    def differences(self, a: str, b: str, name: str, seed: int) -> dict[str, Any]:
        chosen = self.slices[name]
        return {
            metric: asdict(
                paired(
                    self.values[a, metric][chosen],
                    self.values[b, metric][chosen],
                    higher_is_better=CATALOGUE[metric].better == "higher",
                    seed=seed,
                )
            )
            for metric in self.metrics
        }
