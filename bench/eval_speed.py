"""Time and memory of scoring: 1,000 pairs at 512 px without CLIP.

    python bench/eval_speed.py --assets ../shared/assets --out out/eval_speed

Pairs are crops of real photos with real masks; one method's edits; all default metrics with the
real AlexNet for LPIPS. Measured: CPU time, wall time and peak memory of the command for a tenth of
the pairs and for all; a run of the tenth is killed midway and resumed. By default with one thread,
so that its CPU time is what an idle core would need. Limits: 10 minutes on two cores, memory that
does not grow with the number of pairs. The result goes to bench/results/eval_speed.json.
"""

import argparse
import os
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from _shared import add_result_argument, provenance
from PIL import Image
from tqdm import tqdm

from regionroute.data.manifest import EditSample, Region, write_manifest
from regionroute.files import read_json, read_jsonl, write_json

SIDE = 512
LIMIT = 600.0  # seconds


def main() -> int:
    """Make the pairs unless they exist and time the command."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--assets", type=Path, default=Path("../shared/assets"))
    parser.add_argument("--out", type=Path, default=Path("out/eval_speed"))
    parser.add_argument("--count", type=int, default=1000, help="pairs (default: 1000)")
    parser.add_argument(
        "--threads", type=int, default=1, help="threads of the command (default: 1)"
    )
    add_result_argument(parser, "eval_speed")
    args = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = str(args.threads)
    make_pairs(args.assets, args.out, args.count)
    weights = args.assets / "weights" / "lpips"
    runs = {"tenth": timed(args.out, weights, "tenth")}
    resumed = kill_and_resume(args.out, weights, runs["tenth"]["seconds"])
    runs["all"] = timed(args.out, weights, "all")
    result = {
        **provenance(("torch", "lpips")),
        "threads": args.threads,
        "pairs": args.count,
        "side": SIDE,
        "runs": runs,
        "memory_ratio_all_to_tenth": round(
            runs["all"]["peak_bytes"] / runs["tenth"]["peak_bytes"], 3
        ),
        "resumed": resumed,
    }
    write_json(args.result, result)
    print(f"{args.result} written")
    return 0 if runs["all"]["processor_seconds"] < LIMIT and resumed["equal"] else 1


def command(out: Path, weights: Path, name: str, scores: Path) -> list[str]:
    """The scoring command of a split."""
    split = "tenth" if name == "tenth" else "all"
    return [
        *(sys.executable, "eval/rses.py", "--manifest", str(out / "pairs"), "--split", split),
        *("--edits", str(out / "edits"), "--lpips-weights", str(weights), "--out", str(scores)),
    ]


def timed(out: Path, weights: Path, name: str) -> dict[str, Any]:
    """Wall seconds, CPU seconds and peak memory of a run from scratch."""
    scores = out / f"scores_{name}"
    (scores / "cache.jsonl").unlink(missing_ok=True)
    began = time.perf_counter()
    with subprocess.Popen(command(out, weights, name, scores), env=_environment()) as process:
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"scoring failed with {process.returncode}")
    return {
        "seconds": round(time.perf_counter() - began, 1),
        "processor_seconds": round(usage.ru_utime + usage.ru_stime, 1),
        "peak_bytes": usage.ru_maxrss * 1024,
    }


def kill_and_resume(out: Path, weights: Path, seconds: float) -> dict[str, Any]:
    """Kill a run of the tenth midway, resume it, compare with the uninterrupted one."""
    scores = out / "scores_killed"
    (scores / "cache.jsonl").unlink(missing_ok=True)
    asked = command(out, weights, "tenth", scores)
    with subprocess.Popen(asked, env=_environment()) as process:
        time.sleep(seconds * 0.6)
        process.kill()
    kept = len((scores / "cache.jsonl").read_text().splitlines())
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(asked, env=_environment(), check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    whole = read_jsonl(out / "scores_tenth" / "samples.jsonl")
    equal = [row["metrics"] for row in read_jsonl(scores / "samples.jsonl")] == [
        row["metrics"] for row in whole
    ]
    summaries = (read_json(out / f"scores_{n}" / "summary.json") for n in ("tenth", "killed"))
    equal = equal and len({str(s["methods"]) for s in summaries}) == 1
    used = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    rows = len(whole)
    return {"rows_kept": kept, "of": rows, "processor_seconds": round(used, 1), "equal": equal}


def _environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(Path.cwd())}


def make_pairs(assets: Path, out: Path, count: int) -> None:
    """Distinct crops of photos with masks; edits invert the object and add noise everywhere."""
    if (out / "pairs" / "manifest.jsonl").exists():
        return
    folder = assets / "photos"
    rows = read_jsonl(folder / "labels.jsonl")
    (out / "pairs").mkdir(parents=True, exist_ok=True)
    (out / "edits").mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    samples = []
    for number in tqdm(range(count), desc="pairs"):
        row = rows[number % len(rows)]
        entry = row["objects"][0]
        photo = Image.open(folder / row["image"]).convert("RGB").resize((640, 640))
        mask = Image.open(folder / entry["mask"]).convert("L").resize((640, 640))
        left, top = (int(value) for value in rng.integers(0, 640 - SIDE, 2))
        box = (left, top, left + SIDE, top + SIDE)
        source = np.asarray(photo.crop(box))
        inside = np.asarray(mask.crop(box)) >= 128
        inside[SIDE // 2 :, SIDE // 2 :] |= not inside.any()
        target = np.where(inside[..., None], 255 - source, source)
        noise = rng.integers(-2, 3, source.shape)
        edit = (target.astype(int) + noise).clip(0, 255).astype(np.uint8)
        samples.append(
            _save(out, f"pair-{number:04d}", source, target, inside, edit, entry["word"])
        )
    write_manifest(out / "pairs", samples)


def _save(
    out: Path,
    name: str,
    source: np.ndarray,
    target: np.ndarray,
    inside: np.ndarray,
    edit: np.ndarray,
    word: str,
) -> EditSample:
    pairs = out / "pairs"
    pictures = {
        pairs / f"{name}.context.png": source,
        pairs / f"{name}.target.png": target.astype(np.uint8),
        pairs / f"{name}.mask.png": (inside * 255).astype(np.uint8),
        out / "edits" / f"{name}.png": edit,
    }
    for path, picture in pictures.items():
        Image.fromarray(picture).save(path, compress_level=1)
    rows, columns = np.nonzero(inside.any(1))[0], np.nonzero(inside.any(0))[0]
    box = (int(rows[0]), int(columns[0]), int(rows[-1]) + 1, int(columns[-1]) + 1)
    return EditSample(
        id=name,
        context=f"{name}.context.png",
        target=f"{name}.target.png",
        regions=(Region(word, "inverted", f"{name}.mask.png", box),),
        prompt=f"make the {word} in inverted style, keep other area unchanged",
        split="tenth" if int(name[-1]) == 0 else "rest",
        provenance={"from": "bench/eval_speed.py"},
    )


if __name__ == "__main__":
    raise SystemExit(main())
