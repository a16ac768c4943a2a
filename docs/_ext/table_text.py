"""Results of benchmarks; numbers with intervals as cells, rows of them as Markdown tables."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[2]
RESULTS = REPOSITORY / "bench" / "results"

Column = tuple[str, str, str]  # heading, key, kind of number


@cache
def result(name: str) -> dict[str, Any]:
    """Content of ``bench/results/NAME.json``."""
    content: dict[str, Any] = json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))
    return content


def number(value: float, kind: str, *, signed: bool = False) -> str:
    """A number as text: ``%`` and ``%.1`` in percent, ``.2`` with so many decimals."""
    sign = "+" if signed else ""
    if kind.startswith("%"):
        digits = int(kind.partition(".")[2] or 0)
        return f"{100 * value:{sign}.{digits}f}" + ("" if signed else "%")
    return f"{value:{sign}.{int(kind[1:])}f}"


def cell(value: Any, kind: str, *, signed: bool = False) -> str:
    """A mean, with its interval in brackets if there is one; empty if there is no number.

    Args:
        value: ``[mean, low, high]``, or a dict with ``mean`` or ``difference``, ``low``, ``high``.
        kind: see `number`.
        signed: for differences: a sign, and percentage points.
    """
    if isinstance(value, Sequence):
        value = dict(zip(("mean", "low", "high"), value, strict=True))
    elif isinstance(value, Mapping) and "mean" in value and "difference" in value:
        value = {"mean": value["mean"]}  # low and high there belong to the difference
    if not isinstance(value, Mapping):
        return "" if value is None else number(value, kind, signed=signed)
    mean = value.get("mean", value.get("difference"))
    if mean is None:
        return ""
    text = number(mean, kind, signed=signed)
    if value.get("low") is None:
        return text
    bounds = [number(value[key], kind, signed=signed).rstrip("%") for key in ("low", "high")]
    return f"{text} ({bounds[0]} to {bounds[1]})"


def table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def by_columns(
    rows: Mapping[str, Mapping[str, Any]],
    columns: Sequence[Column],
    names: Mapping[str, tuple[str, ...]] | None = None,
    heads: Sequence[str] = ("",),
    *,
    signed: bool = False,
) -> str:
    """A row for each entry, a column for each number; rows without a name are left out."""
    names = names or {name: (name,) for name in rows}
    body = [
        [
            *names[name],
            *(cell(rows[name].get(key), kind, signed=signed) for _, key, kind in columns),
        ]
        for name in names
        if name in rows
    ]
    return table([*heads, *(head for head, _, _ in columns)], body)
