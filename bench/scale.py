"""Labelling on Ray against local processes, and the start of training on a packed manifest.

    python bench/scale.py --photos ../shared/assets/photos/labels.jsonl
    python bench/scale.py --parts start --rows 10000000

Engines: two local processes and two Ray workers label the same photos in turn, several times, on a
machine that may be busy: the ratio is the median of those of neighbouring runs. Throughput counts
from the second result of each worker, so that starting processes is not part of it; whole seconds
are given too. Both data sets must have the same bytes.

Start: what each process of training does with the manifest before the cache and the base: load it,
select samples, name cache entries, hash the selection, order the first epoch. Packed: on simulated
columns of as many rows as asked, each with an image and a mask of its own. Not packed: on fewer
rows of real files, second start (nothing is hashed), times the rows; that is less than the whole,
as images are shared. Each in a process of its own; memory is its peak.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from _shared import _status, add_result_argument, provenance

from regionroute.files import write_json

PARTS = ("engines", "start")
STYLES = ("starry-night", "watercolour", "woodcut")
OBJECTS = ("dog", "cat", "car", "bench", "boat")
SIDE, PICTURES = 512, 64
WANTED = {"ray over local": 0.9, "seconds of a packed start": 60.0}


def main() -> int:
    """Measure and write the result."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--parts", default=",".join(PARTS), help="what to measure (all)")
    parser.add_argument("--photos", type=Path, help="labels file of real photos (drawn scenes)")
    parser.add_argument("--count", type=int, default=24, help="photos to label (24)")
    parser.add_argument("--side", type=int, default=SIDE, help=f"their longest side ({SIDE})")
    parser.add_argument("--rounds", type=int, default=3, help="times on each engine (3)")
    parser.add_argument("--rows", type=int, default=1_000_000, help="packed rows (1000000)")
    parser.add_argument("--plain-rows", type=int, default=5_000, help="rows not packed (5000)")
    parser.add_argument("--start", type=Path, help=argparse.SUPPRESS)  # of a process of its own
    add_result_argument(parser, "scale")
    args = parser.parse_args()
    if args.start:
        print(json.dumps(start(args.start)))
        return 0
    result = provenance(("torch", "ray", "pyarrow")) | {"load": os.getloadavg()[0]}
    with tempfile.TemporaryDirectory() as folder:
        if "engines" in args.parts:
            result["engines"] = engines(
                Path(folder), args.photos, args.count, args.side, args.rounds
            )
        if "start" in args.parts:
            result["start"] = starts(Path(folder), args.rows, args.plain_rows)
    write_json(args.result, result | {"wanted": WANTED})
    print(json.dumps({part: result.get(part) for part in PARTS}, indent=2))
    return 0


def engines(
    folder: Path, labels: Path | None, count: int, side: int, rounds: int
) -> dict[str, Any]:
    """Photos a second on each engine."""
    from pseudo_labels.segment.given import read_labels
    from regionroute.engines.base import EngineSettings

    photos = read_labels(labels or draw(folder / "scenes", count))[0][:count]
    start_ray(2)
    runs: dict[str, list[dict[str, float]]] = {"local": [], "ray": []}
    for turn in range(rounds):
        for engine in ("local", "ray") if turn % 2 == 0 else ("ray", "local"):
            out = folder / f"{engine}-{turn}"
            runs[engine].append(labelled(photos, out, side, EngineSettings(engine, workers=2)))
            print(engine, runs[engine][-1], file=sys.stderr)
    same = files_of(folder / "local-0") == files_of(folder / "ray-0")
    rates = {name: [row["photos a second"] for row in rows] for name, rows in runs.items()}
    ratios = [ray / local for ray, local in zip(rates["ray"], rates["local"], strict=True)]
    return {
        "photos": len(photos),
        "side": side,
        "styles": len(STYLES),
        **runs,
        "ray over local, each round": [round(ratio, 3) for ratio in ratios],
        "ray over local": round(statistics.median(ratios), 3),
        "same bytes": same,
    }


def files_of(folder: Path) -> dict[str, bytes]:
    """Every file below a folder."""
    paths = [path for path in folder.rglob("*") if path.is_file()]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}


def start_ray(cores: int) -> None:
    """Start Ray before anything is measured; on a busy machine it gives up after 30 s."""
    import ray

    for left in reversed(range(20)):
        try:
            ray.init(num_cpus=cores, include_dashboard=False, log_to_driver=False)
            return
        except Exception:
            if not left:
                raise
            ray.shutdown()


def labelled(photos: list[Any], out: Path, side: int, engine: Any) -> dict[str, float]:
    """Label photos; seconds of all, and the rate without the start."""
    from pseudo_labels.build import BuiltStyle
    from pseudo_labels.job import BuildSettings, PhotoJob
    from pseudo_labels.photo_worker import Needs, PhotoTask, PhotoWorker
    from pseudo_labels.segment.given import content_hash
    from pseudo_labels.stylize.registry import load_styles
    from regionroute.engines.run import run

    settings = BuildSettings(size=side)
    styles = [BuiltStyle(entry, entry.build()) for entry in load_styles("painting", STYLES)]
    numbers = tuple(range(len(styles)))
    tasks = [PhotoTask(PhotoJob(photo, content_hash(photo)), numbers) for photo in photos]
    begin = time.perf_counter()
    work = functools.partial(PhotoWorker, out, styles, settings, Needs.of(tasks, settings))
    ends = [(time.perf_counter(), index) for index, _ in run(tasks, work, engine)]
    whole = time.perf_counter() - begin
    warm = 2 * (engine.workers or 1)  # results until each worker has done one and begun the next
    rate = (len(ends) - warm) / (ends[-1][0] - ends[warm - 1][0])
    return {"seconds": round(whole, 1), "photos a second": round(rate, 3)}


def draw(folder: Path, count: int) -> Path:
    """Drawn scenes with the masks of their objects, as a labels file."""
    from pseudo_labels.scenes.draw import render_scene
    from regionroute.data.images import write_image
    from regionroute.files import write_jsonl

    rows = []
    for index in range(count):
        scene = render_scene(index, SIDE, count=1)
        word = scene.words()[0]
        write_image(folder / f"{index}.png", scene.image)
        write_image(folder / f"{index}.mask.png", scene.mask(word))
        objects = [{"word": word, "mask": f"{index}.mask.png"}]
        rows.append({"image": f"{index}.png", "objects": objects})
    write_jsonl(folder / "labels.jsonl", rows)
    return folder / "labels.jsonl"


def starts(folder: Path, rows: int, plain_rows: int) -> dict[str, Any]:
    """Seconds and memory of the start, packed and not."""
    plain = folder / "plain"
    write_plain(plain, plain_rows)
    simulate(folder / "packed", rows)
    in_own_process(plain)  # hashes
    found = {"not packed": in_own_process(plain), "packed": in_own_process(folder / "packed")}
    cost = {name: row["processor seconds"] / row["rows"] for name, row in found.items()}
    return {
        **found,
        "microseconds a row": {name: round(1e6 * value, 2) for name, value in cost.items()},
        "not packed over packed": round(cost["not packed"] / cost["packed"], 1),
        "processor seconds of 10 million rows": {
            name: round(1e7 * value, 1) for name, value in cost.items()
        },
    }


def in_own_process(folder: Path) -> dict[str, Any]:
    """`start` in a new process."""
    command = [sys.executable, __file__, "--start", str(folder)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def start(folder: Path) -> dict[str, Any]:
    """Read a manifest as training does."""
    from regionroute.config.run import RunConfig
    from regionroute.data.manifest import load_manifest
    from regionroute.models.loading import load_base
    from train.data.caching import seen_of
    from train.data.encode import Encoder
    from train.data.examples import TrainingExamples
    from train.data.files import Files
    from train.data.order import BatchOrder
    from train.data.packed import packed_examples
    from train.data.selection import select

    config = RunConfig.model_validate({"data": {"manifest": str(folder)}})
    files = Files(folder)
    base = load_base("nano")
    memory, wall, cpu = _status("VmRSS"), time.perf_counter(), time.process_time()
    manifest = load_manifest(folder)
    selection = select(manifest, config)
    encoder = Encoder(base, manifest, None, files)
    selection, _ = seen_of(encoder, selection)
    experts = {style.name: number for number, style in enumerate(selection.styles)}
    if manifest.columns is not None:
        examples = packed_examples(encoder, selection.samples, manifest.columns, experts)
    else:
        rows = (encoder.example(s, experts[s.regions[0].style]) for s in selection.samples)
        examples = TrainingExamples(rows)
    examples.digest()
    BatchOrder(examples.buckets, [str(size) for size in examples.sizes], 64, 0).batch(0)
    seconds = time.perf_counter() - wall, time.process_time() - cpu
    files.save()
    return {
        "rows": len(examples),
        "seconds": round(seconds[0], 2),
        "processor seconds": round(seconds[1], 2),
        "GB": round((_status("VmHWM") - memory) / 1e9, 3),
    }


def write_plain(folder: Path, rows: int) -> None:
    """Rows as `regionroute label` writes them, over a few real images."""
    from PIL import Image

    from regionroute.data.manifest import EditSample, Region, write_manifest

    noise = np.random.default_rng(0).integers(0, 256, (PICTURES, SIDE, SIDE, 3), dtype=np.uint8)
    for number, pixels in enumerate(noise):
        for kind in ("context", "target", "mask"):
            path = folder / f"{kind}s" / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels[:64, :64] if kind != "mask" else pixels[:64, :64, 0]).save(path)
    samples = []
    for number in range(rows):
        word, style = OBJECTS[number % 5], STYLES[number % 3]
        prompt = f"make the {word} in {style} style, keep other area unchanged"
        spans = (9, 9 + len(word)), (13 + len(word), 13 + len(word) + len(style))
        picture = f"{number % PICTURES}.png"
        region = Region(word, style, f"masks/{picture}", (12, 4, 60, 61), 0.9, *spans)
        names = f"contexts/{picture}", f"targets/{picture}"
        facts = {"photo": f"photos/{number}.jpg", "photo_hash": f"{number:016x}", "seed": number}
        samples.append(
            EditSample(f"{number:08d}-{word}-{style}", *names, (region,), prompt, provenance=facts)
        )
    write_manifest(folder, samples)


def simulate(folder: Path, rows: int) -> None:
    """Column files of as many rows, 100,000 each, beside empty files of the size of their rows."""
    import pyarrow
    import pyarrow.parquet as parquet

    from regionroute.data.startup.columns import FORMAT, NUMBERS, column_file
    from regionroute.data.startup.pack import ROWS

    folder.mkdir(parents=True)
    words, styles = (np.array(names, object) for names in (OBJECTS, STYLES))
    for part, first in enumerate(range(0, rows, ROWS)):
        number = np.arange(first, min(first + ROWS, rows))
        word, style = words[number % 5], styles[number % 3]
        random = np.random.default_rng(part)
        spans = 13 + np.array([*map(len, word)])
        values: dict[str, Any] = {
            name: np.zeros(len(number), kind) for name, kind in NUMBERS.items()
        }
        texts = {
            "id": [f"{n:08d}-{w}-{s}" for n, w, s in zip(number, word, style, strict=True)],
            "content": [f"{n // 3:08d}" for n in number],
            "split": ["train"] * len(number),
            "prompt": "make the " + word + " in " + style + " style, keep other area unchanged",
            "object": word,
            "style": style,
        }
        for name in ("name", "context", "target", "mask"):
            values[name] = random.integers(0, 2**64, len(number), dtype=np.uint64)
        values |= {"height": values["height"] + SIDE, "width": values["width"] + SIDE}
        values |= {"regions": values["regions"] + 1, "offset": 512 * np.arange(len(number))}
        values |= {"bottom": values["bottom"] + 400, "right": values["right"] + 400}
        values |= {"span_start": spans, "span_end": spans + np.array([*map(len, style)])}
        file = folder / f"manifest-{part:05}.jsonl"
        with file.open("wb") as opened:
            opened.truncate(512 * len(number))
        facts = {"format": FORMAT, "bytes": 512 * len(number), "sha256": ""}
        facts["modified"] = file.stat().st_mtime_ns
        columns = {
            name: pyarrow.array(text, pyarrow.large_string()) for name, text in texts.items()
        }
        columns |= {name: pyarrow.array(v.astype(NUMBERS[name])) for name, v in values.items()}
        table = pyarrow.table(columns).replace_schema_metadata({"regionroute": json.dumps(facts)})
        parquet.write_table(table, column_file(file), compression="zstd")


if __name__ == "__main__":
    raise SystemExit(main())
