"""A small bank of photos for tests: coloured squares and discs with words and masks."""

import json

import numpy as np
from PIL import Image

from regionroute.cli.bank import main

WORDS = ("dog", "cup")


def write_photos(folder, count=8):
    """Photos of 60x48 px with one object each, and their labels file; returns that."""
    folder.mkdir(parents=True)
    rows = []
    y, x = np.mgrid[:48, :60]
    for number in range(count):
        rng = np.random.default_rng(number)
        picture = rng.integers(90, 160, (48, 60, 3), dtype=np.uint8)
        away = (np.abs(y - 24), np.abs(x - 20 - number))
        inside = np.maximum(*away) < 10 if number % 2 else np.hypot(*away) < 12
        picture[inside] = (200, 40, 40 + 10 * number)
        Image.fromarray(picture).save(folder / f"{number}.png")
        Image.fromarray(inside.astype(np.uint8) * 255).save(folder / f"{number}.mask.png")
        rows.append(
            {"file": f"{number}.png", "mask": f"{number}.mask.png", "word": WORDS[number % 2]}
        )
    labels = folder / "labels.jsonl"
    labels.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return labels


def bank_arguments(labels, out, *more):
    """Of `regionroute bank` for squares of 40 px in two styles."""
    given = {"--labels": labels, "--out": out, "--size": 40, "--styles": "scenes"}
    given |= {"--only": "pixel-art,cyberpunk", "--test-share": 0.3, "--workers": 1}
    return [str(part) for pair in given.items() for part in pair] + list(more)


def make_bank(folder, *more):
    """A bank in `folder`/bank; returns its folder."""
    labels = write_photos(folder / "photos")
    assert main(bank_arguments(labels, folder / "bank", *more)) == 0
    return folder / "bank"
