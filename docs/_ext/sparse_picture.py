"""Draws docs/explanation/sparse.svg: what the calls of 28 steps compute, on a grid of tokens."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

PICTURE = Path(__file__).resolve().parents[1] / "explanation" / "sparse.svg"
CELL, GRID = 11, 8
OBJECT = {(row, column) for row in range(2, 5) for column in range(3, 6)}
FRESH, STORED, NONE = "#d9703a", "#c3ced8", "#f1f1f1"
# Call, steps, what it computes of the noisy and of the source image; all compute the text.
CALLS = [
    ("full", "steps 0 and 18", "all", "all", STORED),
    ("partial", "1 to 17", "region", "none", STORED),
    ("wide", "19 to 26", "region", "region", STORED),
    ("local", "27", "region", "region", NONE),
]


def draw() -> str:
    """The picture as SVG."""
    side, left = CELL * GRID, 92
    squares: dict[str, list[str]] = defaultdict(list)
    texts: list[str] = []

    def token(x: float, y: float, colour: str) -> None:
        squares[colour].append(f"M{x:g} {y:g}h10v10h-10z")

    def grid(x: float, y: float, computed: str, rest: str) -> None:
        for row in range(GRID):
            for column in range(GRID):
                fresh = computed == "all" or (computed == "region" and (row, column) in OBJECT)
                token(x + CELL * column, y + CELL * row, FRESH if fresh else rest)

    def label(x: float, y: float, text: str, anchor: str = "start") -> None:
        texts.append(f'<text x="{x:g}" y="{y:g}" text-anchor="{anchor}">{text}</text>')

    for place, name in enumerate(("text", "noisy image", "source image")):
        label(left + (place + 0.5) * side + 16 * place, 14, name, "middle")
    for place, (name, steps, noisy, source, rest) in enumerate(CALLS):
        y = 22 + place * (side + 14)
        label(4, y + 40, name)
        label(4, y + 56, steps)
        for column in range(GRID):
            token(left + CELL * column, y + side / 2 - CELL, FRESH)
        grid(left + side + 16, y, noisy, rest)
        grid(left + 2 * side + 32, y, source, rest)
    bottom = 22 + len(CALLS) * (side + 14)
    for place, (colour, meaning) in enumerate(
        ((FRESH, "computed"), (STORED, "stored"), (NONE, "not attended to"))
    ):
        token(left + place * 110, bottom, colour)
        label(left + place * 110 + 16, bottom + 9, meaning)
    width, height = left + 3 * side + 40, bottom + 18
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
            f'width="{width}" font-family="sans-serif" font-size="11" fill="#222">',
            f'<rect width="{width}" height="{height}" fill="#fff"/>',
            *(f'<path fill="{colour}" d="{"".join(d)}"/>' for colour, d in squares.items()),
            *texts,
            "</svg>\n",
        ]
    )


if __name__ == "__main__":
    PICTURE.write_text(draw(), encoding="utf-8")
