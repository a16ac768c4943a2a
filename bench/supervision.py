"""Do attention supervision and routing help? The study's arms at equal steps, over several seeds.

    python bench/supervision.py                  # three seeds, about half an hour on two cores
    python bench/supervision.py --seeds 0 --steps 100

Each seed draws its own training scenes, experts and noise; the test scenes are always the same.
Rivals: the same training without Focus and Cover, and plain edits with the same experts. Routed
edits are painted by the base (configs/nano.yaml), plain ones by the experts, so the third question
also compares the painters; bench/controls.py separates them. Differences are paired by sample and
averaged over seeds, with 95 % intervals bootstrapped over samples and the mean of each seed. The
result goes to
bench/results/supervision.json.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
from _shared import add_result_argument, provenance

from regionroute.data.stats import describe
from regionroute.files import read_jsonl, write_json

# Question -> the two methods of the study whose difference answers it.
QUESTIONS = {
    "supervision, plain": ("with-plain", "without-plain"),
    "supervision, routed": ("with", "without"),
    "routing, with supervision": ("with", "with-plain"),
}
METRICS = ("in_mask_ratio", "success", "mse_bg", "leak", "attention_iou")


def main() -> int:
    """Run or reuse the study of every seed and write the comparison."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, help="training steps (default: configs/nano.yaml)")
    parser.add_argument("--out", default="out/supervision", help="output folder")
    add_result_argument(parser, "supervision")
    args = parser.parse_args()
    tables = []
    for seed in args.seeds:
        folder = Path(args.out) / f"seed-{seed}"
        steps = [] if args.steps is None else ["--steps", str(args.steps)]
        study = [
            "-m",
            "regionroute.cli",
            "study",
            "--out",
            str(folder),
            "--seed",
            str(seed),
            *steps,
        ]
        if not (folder / "report.html").exists():
            subprocess.run([sys.executable, *study], check=True)
        tables.append(read_table(folder / "scores" / "samples.jsonl"))
    result = {
        **provenance(),
        "seeds": args.seeds,
        **{
            question: {
                flag: compare(tables, flag, better, worse)
                for flag in ("single", "multi", "touching", "occluded", "small")
            }
            for question, (better, worse) in QUESTIONS.items()
        },
    }
    write_json(args.result, result)
    print(json.dumps(result, indent=2))
    return 0


def read_table(path: Path) -> dict[str, dict[str, dict]]:
    """Rows of a scored run: method -> sample id -> row."""
    table: dict[str, dict[str, dict]] = {}
    for row in read_jsonl(path):
        table.setdefault(row["method"], {})[row["id"]] = row
    return table


def compare(
    tables: list[dict[str, dict[str, dict]]], flag: str, arm: str, rival: str
) -> dict[str, dict]:
    """Two methods and their paired difference on the samples with a flag, metric by metric."""
    ids = [name for name, row in tables[0][arm].items() if flag in row["flags"]]
    result = {}
    for metric in METRICS:
        values = {name: column(tables, name, ids, metric) for name in (arm, rival)}
        difference = values[arm] - values[rival]  # (seeds, samples)
        interval = describe(difference.mean(0))
        result[metric] = {
            arm: float(np.nanmean(values[arm])),
            rival: float(np.nanmean(values[rival])),
            "difference": interval.mean,
            "low": interval.low,
            "high": interval.high,
            "samples": len(ids),
            "difference_by_seed": np.nanmean(difference, axis=1).tolist(),
        }
    return result


def column(
    tables: list[dict[str, dict[str, dict]]], arm: str, ids: list[str], metric: str
) -> np.ndarray:
    """One metric of one arm, (seeds, samples); NaN where it was not measured."""
    cells = [[table[arm][name]["metrics"][metric] for name in ids] for table in tables]
    return np.array(cells, dtype=float)


if __name__ == "__main__":
    raise SystemExit(main())
