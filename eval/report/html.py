"""``regionroute report``: one HTML file with images, numbers and explanations."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor
from tqdm import tqdm

from eval.metrics import CATALOGUE
from eval.metrics.catalogue import SCORE_NOTE
from eval.report.arguments import REPORT_LIMIT, REPORT_TITLE
from eval.report.arguments import report_parser as parser
from eval.report.images import change_map, spotlight
from eval.report.page import (
    check_page,
    figure,
    map_overlay,
    missing,
    read_source,
    write_page,
)
from eval.report.tables import format_value
from eval.report.view import COLOURS, View, numbers_view
from eval.summary import SCHEMA_VERSION, edit_methods
from regionroute.cli.options import check_least
from regionroute.data.images import read_image
from regionroute.errors import UserError, command
from regionroute.files import read_json, read_jsonl

WORST_BY = "in_mask_ratio"


def write_report(
    scores: Path,
    out: Path,
    *,
    title: str | None = None,
    notes: list[View] | None = None,
    limit: int = REPORT_LIMIT,
) -> None:
    """Writes the report of a scores folder.

    Args:
        scores: folder with ``summary.json`` and ``samples.jsonl``.
        out: the HTML file.
        title: heading.
        notes: facts {label, value}; an entry {"codec": {...}} becomes a reference row.
        limit: the most samples shown with images.

    Raises:
        UserError: the folder holds no scores, or of another version; the notes are malformed.
    """
    summary = read_json(scores / "summary.json")
    rows = read_jsonl(scores / "samples.jsonl")
    if not isinstance(summary, dict) or summary.get("schema") != SCHEMA_VERSION:
        raise UserError(f"{scores / 'summary.json'}: not of this version, score the edits again")
    facts, codec = split_notes(notes or [])
    view = numbers_view(summary, codec)
    samples, choice = choose_samples(rows, limit)
    names = [info.name for info in view["metrics"]]
    write_page(
        "report.html.j2",
        out,
        **view,
        title=title or REPORT_TITLE,
        facts=facts,
        summary=summary,
        score_note=SCORE_NOTE.replace("`", ""),
        catalogue=[CATALOGUE[name] for name in summary["metrics"]],
        gallery=[
            sample_view(scores, group, names, place)
            for place, group in enumerate(tqdm(samples, desc="report", unit="sample"))
        ],
        choice=choice,
        worst_by=next((name for name in (WORST_BY, *names) if name in names), ""),
    )


def split_notes(notes: Any) -> tuple[list[View], View | None]:
    """Facts and the codec's numbers.

    Raises:
        UserError: an entry is neither.
    """
    facts, codec = [], None
    if not isinstance(notes, list):
        raise UserError("notes: must be a list of {label, value}")
    for note in notes:
        if isinstance(note, dict) and set(note) == {"codec"} and _is_codec(note["codec"]):
            codec = note["codec"]
        elif isinstance(note, dict) and {"label", "value"} <= set(note):
            facts.append({"label": str(note["label"]), "value": str(note["value"])})
        else:
            raise UserError(f"notes: {note!r} is neither {{label, value}} nor {{codec}}")
    return facts, codec


def _is_codec(value: Any) -> bool:
    return isinstance(value, dict) and {"slices", "samples"} <= set(value)


def choose_samples(rows: Sequence[View], limit: int) -> tuple[list[list[View]], str]:
    """The rows of each sample to show, and a sentence on the choice (empty when all are shown).

    Above the limit, half are those with the largest residual error (or a failure), the others
    are evenly spaced; the order stays that of the rows.
    """
    grouped: dict[str, list[View]] = {}
    for row in rows:
        grouped.setdefault(row["id"], []).append(row)
    groups = list(grouped.values())
    if len(groups) <= limit:
        return groups, ""
    by_error = sorted(range(len(groups)), key=lambda number: -_worst(groups[number]))
    worst = set(by_error[: limit // 2])
    others = [number for number in range(len(groups)) if number not in worst]
    count = limit - len(worst)
    even = {others[place * len(others) // count] for place in range(count)} if count else set()
    chosen = [groups[number] for number in sorted(worst | even)]
    return chosen, (
        f"Images of {len(chosen)} of {len(groups)} samples: the {len(worst)} with the largest "
        f"residual error and {len(even)} at even steps. The numbers above are over all."
    )


def _worst(group: Sequence[View]) -> float:
    edits = [row for row in group if row["method"] in edit_methods([row["method"]])]
    values = [float("inf") if row["error"] else row["metrics"].get(WORST_BY) for row in edits]
    return max((value for value in values if value is not None), default=0.0)


def sample_view(scores: Path, group: Sequence[View], metrics: Sequence[str], place: int) -> View:
    """One row of the gallery: images, and numbers both as text and for sorting.

    Args:
        scores: folder the rows' file names are relative to.
        group: the sample's rows.
        metrics: names of the metrics to show.
        place: position in the original order.
    """
    first = group[0]
    edits = [row for row in group if row["method"] in edit_methods([row["method"]])]
    files = first["files"]
    columns = [
        [
            figure("source", None, lambda: read_image(scores / files["source"])),
            figure("object", None, lambda: spotlight(*read_source(scores, files))),
        ],
        [figure("target", None, lambda: read_image(scores / files["target"]))],
        *(_edit_column(scores, row, number % COLOURS) for number, row in enumerate(edits)),
    ]
    return {
        "id": first["id"],
        "prompt": first["prompt"],
        "styles": list(dict.fromkeys(first["styles"])),
        "flags": first["flags"],
        "columns": columns,
        "numbers": [
            {
                "info": CATALOGUE[name],
                "cells": [_number(row, name) for row in edits],
            }
            for name in metrics
        ],
        "data": {
            "place": place,
            "styles": first["styles"],
            "flags": first["flags"],
            "values": {row["method"]: row.get("metrics", {}) for row in edits},
        },
    }


def _number(row: View, metric: str) -> str:
    """One sample's value as text; success of a single image is a yes or a no."""
    value = None if row["error"] else row["metrics"].get(metric)
    if metric == "success" and value is not None:
        return "yes" if value else "no"
    return format_value(CATALOGUE[metric], value)


def _edit_column(scores: Path, row: View, colour: int) -> list[View]:
    """A method's edit, below it what it changed and, where it has one, its map."""
    name, files = row["method"], row["files"]
    if row["error"]:
        return [missing(name, colour, row["error"])]
    column = [
        figure(name, colour, lambda: read_image(scores / files["edit"])),
        figure(f"{name}: change", colour, lambda: _change(scores, files)),
    ]
    if "map" in files and not row["map_problem"]:
        column.append(figure(f"{name}: map", colour, lambda: map_overlay(scores, row)))
    return column


def _change(scores: Path, files: View) -> Tensor:
    source, mask = read_source(scores, files)
    return change_map(source, read_image(scores / files["edit"]), mask)


@command
def main(argv: list[str] | None = None) -> int:
    """Runs the command."""
    args = parser().parse_args(argv)
    check_least(args, {"limit": 0})
    check_page("--out", args.out)
    notes = read_json(args.notes) if args.notes else []
    if args.codec:
        notes = [*split_notes(notes)[0], {"codec": read_json(args.codec)}]
    write_report(Path(args.scores), Path(args.out), title=args.title, notes=notes, limit=args.limit)
    print(f"report: {args.out}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
