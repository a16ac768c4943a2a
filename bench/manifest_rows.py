"""Memory and time per row of a large manifest: as objects, in shards, and as training holds it.

    python bench/manifest_rows.py

Rows are as `regionroute label` writes them. Memory is what Python's allocations retain
(tracemalloc); time is CPU time of reading and checking every row, both ways alternating.
"""

import argparse
import gc
import statistics
import tempfile
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

from _shared import add_result_argument, provenance

from regionroute.data.manifest import EditSample, Region, load_manifest, write_manifest
from regionroute.files import text_hash, write_json
from train.data.examples import TrainingExample, TrainingExamples

OBJECTS, STYLES = ("dog", "cat", "car", "bench", "boat"), ("neon", "ukiyo-e", "ink-drawing")
ROWS_A_FILE = 1000


def row(number: int) -> EditSample:
    """A labelled photo with one restyled object."""
    word, style = OBJECTS[number % len(OBJECTS)], STYLES[number % len(STYLES)]
    name = f"{number // len(STYLES):08d}-{word}"
    region = Region(word, style, f"masks/{name}.png", (12, 40, 388, 517), 0.93, (9, 12), (16, 20))
    return EditSample(
        id=f"{name}-{style}",
        context=f"contexts/{name}.png",
        target=f"targets/{name}-{style}.png",
        regions=(region,),
        prompt=f"make the {word} in {style} style, keep other area unchanged",
        provenance={"photo": f"photos/{name}.jpg", "photo_hash": text_hash(name), "seed": number},
    )


def example(sample: EditSample) -> TrainingExample:
    """What training keeps per sample."""
    keys = [text_hash(f"{sample.id}/{part}") for part in ("context", "target", "text", "mask")]
    return TrainingExample(
        id=sample.id,
        expert=STYLES.index(sample.regions[0].style),
        content=Path(sample.context).stem,
        token_index=((4, 5),),
        size=(832, 1248),
        context=keys[0],
        target=keys[1],
        text=keys[2],
        masks=(keys[3],),
    )


def kept_bytes(make: Callable[[], Any]) -> int:
    """Bytes that a call retains."""
    make()  # warm up: caches are not counted
    gc.collect()
    tracemalloc.start()
    made = make()
    gc.collect()
    kept = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    del made
    return kept


def main() -> None:
    """Write the result."""
    parser = argparse.ArgumentParser(description=__doc__)
    add_result_argument(parser, "manifest_rows")
    parser.add_argument("--rows", type=int, default=20_000, help="rows in the manifest")
    parser.add_argument("--rounds", type=int, default=5, help="measured rounds")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        one, several = Path(folder) / "one", Path(folder) / "several"
        write_manifest(one, map(row, range(args.rows)))
        for first in range(0, args.rows, ROWS_A_FILE):
            file = several / f"manifest-{first // ROWS_A_FILE:05d}.jsonl"
            write_manifest(file, map(row, range(first, min(args.rows, first + ROWS_A_FILE))))
        rows = load_manifest(several).samples
        kept = {
            "one file": kept_bytes(lambda: load_manifest(one)),
            "several files": kept_bytes(lambda: load_manifest(several)),
            "in training, as objects": kept_bytes(lambda: [*map(example, rows)]),
            "in training": kept_bytes(lambda: TrainingExamples(map(example, rows))),
        }
        seconds: dict[str, list[float]] = {"one file": [], "several files": []}
        for _ in range(args.rounds):
            for times, path in zip(seconds.values(), (one, several), strict=True):
                start = time.process_time()
                load_manifest(path)
                times.append(time.process_time() - start)
        on_disk = (one / "manifest.jsonl").stat().st_size / args.rows
    medians = {name: statistics.median(times) for name, times in seconds.items()}
    result = provenance(("pydantic", "numpy")) | {
        "rows": args.rows,
        "bytes_on_disk_a_row": round(on_disk, 1),
        "bytes_a_row": {name: round(count / args.rows, 1) for name, count in kept.items()},
        "microseconds_a_row": {n: round(1e6 * t / args.rows, 2) for n, t in medians.items()},
    }
    write_json(args.result, result)
    for name, value in result.items():
        print(f"{name}: {value}")


if __name__ == "__main__":
    main()
