"""The Regional Style Editing Score as a function: edits of a manifest in, a `ScoreReport` out."""

from __future__ import annotations

import functools
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from eval.cache import CACHE_FILE, ValueCache
from eval.edits import SIZE_RULE, parse_edits
from eval.encoders.networks import REMEDIES, Networks, ScoreNetworks, load_networks
from eval.metrics import CATALOGUE, SampleMetric
from eval.metrics.build import build_metrics
from eval.metrics.choice import SET_METRICS, choose_metrics, needs_of
from eval.metrics.views import Scope
from eval.report.html import write_report
from eval.report.tables import csv_rows, latex, main_table, markdown
from eval.scoring import Row, Scorer
from eval.sets import describe_sets, score_sets
from eval.sources import select_split
from eval.summary import ALL, RELATIVE_DEFINITION, bootstrap_settings, edit_methods, summarise
from eval.thresholds import parse_thresholds, violations
from regionroute.data.manifest import EditSample, load_manifest, manifest_file, manifest_files
from regionroute.engines.base import EngineSettings
from regionroute.errors import UserError
from regionroute.files import (
    AnyPath,
    file_hash,
    settings_hash,
    write_json,
    write_jsonl,
    write_text,
)
from regionroute.models.devices import pick_device
from regionroute.settings_files import versions

__all__ = ["ScoreNetworks", "ScoreReport", "score"]

PACKAGES = ("regionroute", "torch", "torchvision", "transformers", "lpips", "numpy")


@dataclass(frozen=True, eq=False)
class ScoreReport:
    """What was measured.

    Attributes:
        out: folder that holds samples.jsonl, samples.csv, summary.json, summary.md, summary.tex.
        rows: one for each sample and method: its numbers, or why there are none.
        summary: what is in summary.json.
        violations: a sentence for each condition of `fail_if` that was met.
        report: the HTML page, if one was asked for.
    """

    out: Path
    rows: list[Row]
    summary: dict[str, Any]
    violations: list[str]
    report: Path | None = None

    @property
    def methods(self) -> dict[str, dict[str, Any]]:
        """The edits' methods and their part of the summary, without floor and ceiling."""
        return {name: self.summary["methods"][name] for name in edit_methods(self._entries)}

    @property
    def scored(self) -> int:
        """Number of edits with at least one number."""
        return sum(entry["n_scored"] for entry in self.methods.values())

    @property
    def _entries(self) -> dict[str, dict[str, Any]]:
        entries: dict[str, dict[str, Any]] = self.summary["methods"]
        return entries

    def mean(self, method: str, metric: str, part: str = ALL) -> float | None:
        """A mean over samples; None if there is no number to average.

        Args:
            method: name of the edits, or "floor" or "ceiling".
            metric: name as in ``summary["metrics"]``.
            part: slice of the samples, such as ``size:small``.

        Raises:
            KeyError: there is no such method, slice or metric.
        """
        value = self._entries[method]["slices"][part][metric]["mean"]
        return None if value is None else float(value)

    def table(self) -> str:
        """The main table as text."""
        return main_table(self.summary, [CATALOGUE[name] for name in self.summary["metrics"]])


def score(
    manifest: AnyPath,
    edits: Mapping[str, AnyPath] | Sequence[str],
    out: AnyPath,
    *,
    split: str = "test",
    metrics: str | Sequence[str] = "rse",
    networks: ScoreNetworks | None = None,
    scope: Scope = "object",
    fail_if: Sequence[str] = (),
    report: AnyPath | None = None,
    title: str | None = None,
    device: str = "cpu",
    batch_size: int = 8,
    seed: int = 0,
    engine: EngineSettings | None = None,
) -> ScoreReport:
    """Score edits of a manifest's samples, several methods side by side.

    The unedited image ("floor") and the target ("ceiling") are scored as methods of their own.
    What was measured before is read from ``out/cache.jsonl``, by the content of the files.

    Args:
        manifest: ``manifest.jsonl`` or its folder.
        edits: {name: folder}, or ``"NAME=DIR"`` or ``"DIR"`` each. An edit is ``DIR/<id>.png``,
            next to its sidecar ``DIR/<id>.json`` and its map ``DIR/<id>.map.png``.
        out: folder for the scores; made if missing.
        split: samples to score, "all" for every one.
        metrics: names of metrics and groups (`eval.metrics.GROUPS`), or one text with commas.
        networks: where the networks of the metrics are.
        scope: "object": each region's padded box; "image": the whole image, as published.
        fail_if: conditions such as ``"lpips_bg>0.1"`` (any method) or ``"ours:success<0.8"``.
        report: HTML file to write as well.
        title: heading of the report.
        device: where metrics run, e.g. "cuda".
        batch_size: images scored together.
        seed: of the bootstrap intervals.
        engine: where images are measured, None for this process. Other processes load their own
            networks; the answers of a judge are kept by one process alone.

    Raises:
        UserError: a file, name, network or condition that cannot be used.
    """
    networks = networks or ScoreNetworks()
    methods = parse_edits(edits)
    text = metrics if isinstance(metrics, str) else ",".join(metrics)
    names = choose_metrics(text, judged=networks.judge is not None)
    thresholds = parse_thresholds(fail_if, list(methods), names)
    data = load_manifest(manifest)
    samples = select_split(data, split)
    engine, folder = engine or EngineSettings(), Path(out)
    if networks.judge and engine.elsewhere:
        raise UserError("--judge keeps its answers in one file: use --engine local, one worker")
    # On Ray the networks here only say which they are, to name the values in the cache.
    where = pick_device("cpu" if engine.on_ray else device)
    loaded = load_networks(networks, needs_of(names), folder, where)
    built = build_metrics(loaded, names, scope)
    skipped = _skipped(names, loaded)
    for name, reason in skipped.items():
        print(f"{name} is skipped: {reason}", file=sys.stderr)
    _warn_styles(loaded, samples, names)
    cache = ValueCache(folder / CACHE_FILE)
    load = functools.partial(_metrics, networks, names, folder, device, scope)
    scorer = Scorer(
        data, methods, built, folder, device if engine.elsewhere else where, on_problem=_say,
        cache=cache, engine=engine, load=load if engine.elsewhere else None,
    )  # fmt: skip
    rows = scorer.score(samples, batch_size)
    cache.sort()
    summary = {
        **_header(manifest, split, methods, len(samples)),
        "metrics": {metric.name: describe_metric(metric) for metric in built},
        "skipped": skipped,
        "derived": {"in_mask_relative": RELATIVE_DEFINITION},
        "bootstrap": bootstrap_settings(seed),
        "versions": versions(PACKAGES),
        **summarise(rows, [metric.name for metric in built], seed),
        **_sets(names, loaded, rows, folder, scope),
        **_judged(loaded),
    }
    _write(folder, rows, summary)
    if report:
        write_report(folder, Path(report), title=title)
    page = Path(report) if report else None
    return ScoreReport(folder, rows, summary, violations(thresholds, summary), page)


def _metrics(
    given: ScoreNetworks, names: Sequence[str], out: Path, device: str, scope: Scope
) -> Sequence[SampleMetric]:
    """The metrics of another process than that of `score`."""
    loaded = load_networks(given, needs_of(names), out, pick_device(device))
    return build_metrics(loaded, names, scope)


def _skipped(names: Sequence[str], networks: Networks) -> dict[str, str]:
    """For each metric that cannot be computed the way to get what it lacks."""
    reasons = {}
    for name in names:
        needs = SET_METRICS[name][0] if name in SET_METRICS else CATALOGUE[name].needs
        lacking = networks.lacks(needs)
        if lacking:
            reasons[name] = REMEDIES[lacking]
    return reasons


def _warn_styles(networks: Networks, samples: Sequence[EditSample], names: Sequence[str]) -> None:
    """Names the styles without a style image or without an opposite of their own."""
    wanted = [region.style for sample in samples for region in sample.regions]
    for style in networks.styles.missing(wanted) if networks.styles else []:
        _say(f"--style-images: no image of {style!r}, its edits are not compared with any")
    if networks.judge and {"q3", "q4"} & set(names):
        for sentence in networks.judge.config.warnings(wanted):
            _say(sentence)


def _header(
    manifest: AnyPath, split: str, methods: Mapping[str, Path], count: int
) -> dict[str, Any]:
    """What was measured; the numbers follow."""
    hashes = [file_hash(one) for one in manifest_files(manifest)]
    return {
        "manifest": {
            "path": manifest_file(manifest).as_posix(),
            "hash": hashes[0] if len(hashes) == 1 else settings_hash(hashes),
            "split": split,
            "samples": count,
        },
        "edits": {name: folder.as_posix() for name, folder in methods.items()},
        "size_rule": SIZE_RULE,
    }


def describe_metric(metric: SampleMetric) -> dict[str, Any]:
    """A metric's definition with the network it used, for the output file."""
    info = CATALOGUE[metric.name]
    entry: dict[str, Any] = {
        "label": info.label,
        "better": info.better,
        "unit": info.unit,
        "group": info.group,
        "definition": metric.definition,
    }
    return {**entry, "encoder": metric.encoder} if metric.encoder else entry


def _sets(
    names: Sequence[str], networks: Networks, rows: list[Row], out: Path, scope: Scope
) -> dict[str, Any]:
    """FID and ArtFID where they were asked for and can be made."""
    if networks.inception is None or networks.styles is None:
        return {}
    found = score_sets(rows, out, networks.inception, networks.styles, scope)
    asked = [name for name in SET_METRICS if name in names]
    kept = {m: {n: e for n, e in entry.items() if n in asked} for m, entry in found.items()}
    return {"sets": {**describe_sets(networks.inception, scope), "methods": kept}}


def _judged(networks: Networks) -> dict[str, Any]:
    """Who judged and how; the answers are in judge.jsonl."""
    judge = networks.judge
    if judge is None:
        return {}
    settings = judge.config.model_dump()
    return {"judge": {**judge.identity(), "config": settings, "answers": judge.counts()}}


def _write(out: Path, rows: list[Row], summary: dict[str, Any]) -> None:
    write_jsonl(out / "samples.jsonl", rows)
    write_json(out / "summary.json", summary)
    texts = {
        "samples.csv": csv_rows(rows, list(summary["metrics"])),
        "summary.md": markdown(summary),
        "summary.tex": latex(summary),
    }
    for name, text in texts.items():
        write_text(out / name, text)


def _say(line: str) -> None:
    tqdm.write(line, file=sys.stderr)
