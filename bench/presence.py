"""How often is an absent object noticed, and a present one refused?

    python bench/presence.py --labels PHOTOS/labels.jsonl MORE/labels.jsonl \
        --outlines train/pretrain/nano_photos_objects.jsonl --bank data/bank

Presence (`ImageEncoder.presence`) of every object of a photo and of words that are absent: first
words of other photos, far from all present ones. Present objects below the threshold are refused,
absent ones above it pass. Rows: values of `SEEN`, what is taken off the scores of words that the
encoder was trained with.
"""

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _crowded_photos import FARTHEST, opened, photos_set_aside
from _shared import add_result_argument, provenance
from torch import Tensor
from tqdm import tqdm

from pseudo_labels.segment.given import read_label_files
from regionroute.data.object_bank import ObjectBank
from regionroute.data.stats import describe
from regionroute.editing.editor import Editor
from regionroute.files import write_json
from regionroute.models import image_encoder
from regionroute.pipeline import RegionRoutePipeline

CHOSEN = image_encoder.SEEN
VALUES = sorted({0.0, CHOSEN})
ABSENT = 30  # words per photo
MOST = 80  # photos per group


def main() -> int:
    """Measure, write the comparison."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--labels", type=Path, nargs="+", required=True, help="labels files")
    parser.add_argument("--outlines", type=Path, help="more objects on photos of the first file")
    parser.add_argument("--bank", type=Path, required=True, help="bank the base was trained on")
    parser.add_argument("--base", default="nano-photos")
    add_result_argument(parser, "presence")
    args = parser.parse_args()
    editor = RegionRoutePipeline.from_pretrained(args.base).editor
    bank = ObjectBank(args.bank)
    subjects = bank.subjects()
    found: dict[str, list[dict[str, Any]]] = {}
    for group, image, objects in photos(args.labels, args.outlines, bank, editor):
        rows = found.setdefault(group, [])
        if len({row["photo"] for row in rows}) < MOST:
            rows += measured(editor, image, objects, subjects, number=len(rows))
    threshold = editor.routing.presence
    result = provenance() | {"threshold": threshold, "seen": CHOSEN, "groups": {}}
    for group, rows in found.items():
        result["groups"][group] = {
            "objects": sum(row["there"] for row in rows),
            "values": {str(value): rates(rows, value, threshold) for value in VALUES},
        }
        print(group, result["groups"][group]["values"][str(CHOSEN)])
    write_json(args.result, result)
    return 0


def photos(
    labels: list[Path], outlines: Path | None, bank: ObjectBank, editor: Editor
) -> Iterator[tuple[str, Tensor, list[str]]]:
    """Group, image [3,H,W] in [0,1] and the objects of each photo."""
    split = {photo.file: photo.split for photo in bank.photos}
    first = [labels[0], outlines] if outlines else labels[:1]
    for paths in (first, *([path] for path in labels[1:])):
        known, _ = read_label_files(paths, paths[0].parent)
        for photo in tqdm(known, desc=paths[0].parent.name, unit="photo"):
            image, objects = opened(photo)
            count = "one" if len(objects) == 1 else "several"
            if not objects:
                continue
            if photo.name not in split:
                yield "photos of another source", image, list(objects)
            elif split[photo.name] == "train":
                yield f"training photos, {count}", image, list(objects)
            elif count == "one":
                yield "photos of one object", image, list(objects)
    groups = {
        "photo": "photos of several objects",
        "outlined": "outlined photos of several objects",
        "mosaic": "mosaics",
    }
    for crowded in photos_set_aside(labels, outlines, bank, editor, mosaics=12):
        if crowded.kind != "photo" or crowded.name in split:
            yield groups[crowded.kind], crowded.image, list(crowded.objects)


@torch.no_grad()
def measured(
    editor: Editor, image: Tensor, objects: list[str], subjects: set[str], number: int
) -> list[dict[str, Any]]:
    """A row for each object and each absent word: its presence at all `VALUES`."""
    backbone = editor.backbone
    known = sorted(subjects)
    near = (backbone.word_vectors(known) @ backbone.word_vectors(objects).T).amax(1)
    far = [word for word, value in zip(known, near.tolist(), strict=True) if value < FARTHEST]
    absent = np.random.default_rng(number).permutation(far)[:ABSENT].tolist()
    by_value = {}
    for value in VALUES:
        image_encoder.SEEN = value
        presence = backbone.presence(image[None], [[*objects, *absent]])
        assert presence is not None, "a base with a word-aligned image encoder"
        by_value[value] = presence[0].tolist()
    image_encoder.SEEN = CHOSEN
    return [
        {
            "photo": number,
            "word": word,
            "there": place < len(objects),
            "presence": {value: row[place] for value, row in by_value.items()},
        }
        for place, word in enumerate([*objects, *absent])
    ]


def rates(rows: list[dict[str, Any]], value: float, threshold: float) -> dict[str, Any]:
    """Shares of the present that are refused and of the absent that pass."""
    below = [(row["there"], row["presence"][value] < threshold) for row in rows]
    return {
        "refused": describe([float(low) for there, low in below if there]),
        "pass": describe([float(not low) for there, low in below if not there]),
    }


if __name__ == "__main__":
    raise SystemExit(main())
