"""The headline numbers of the study by slice, for the README and docs/measured.

    python bench/study.py            # runs `regionroute study` unless out/study holds one

Rivals in the same run: the base without experts (`zero-shot`: the base paints, plain), training
without supervision, and the codec's own round trip. In the study the base paints inside the gates
(`routing.branch: base` in configs/nano.yaml), so "routed against plain" also compares base painting
with expert painting. The row `expert-paints` separates the two: the supervised experts, routed, but
with `routing.branch: expert` and the object prompt that they were trained on.
One seed; for claims about supervision see bench/supervision.py, for three seeds of every control
bench/controls.py. The result goes to bench/results/study.json.
"""

import argparse
import shutil
from pathlib import Path
from typing import Any

from _shared import add_result_argument, provenance, run_python

from regionroute.files import read_json, write_json

ROOT = Path(__file__).resolve().parents[1]
METRICS = ("in_mask_relative", "success", "mse_bg", "leak", "coverage", "attention_iou")
EXPERT_PAINTS = "expert-paints"


def main() -> int:
    """Run or reuse a study and write its numbers."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", default="out/study", help="folder of the study")
    add_result_argument(parser, "study")
    args = parser.parse_args()
    out = Path(args.out)
    if not (out / "report.html").exists():
        run_python("-m", "regionroute.cli", "study", "--out", out)
    summary = read_json(out / "scores" / "summary.json")
    codec = read_json(out / "scores" / "codec.json")["slices"]
    methods = summary["methods"] | edited_by_experts(out)
    result = {
        **provenance(),
        "seconds": {n["label"]: n["value"] for n in read_json(out / "scores" / "notes.json")},
        "samples": summary["slices"],
        "codec_mse_bg": {name: part["mse_bg"]["mean"] for name, part in codec.items()},
        "methods": {name: table(m["slices"]) for name, m in methods.items()},
    }
    write_json(args.result, result)
    print(f"{args.result} written")
    return 0


def edited_by_experts(out: Path) -> dict[str, Any]:
    """Edit and score the test scenes once more, with the supervised experts painting.

    Returns:
        `EXPERT_PAINTS` -> its scores, as in a `summary.json`.
    """
    experts, edits = out / EXPERT_PAINTS / "experts", out / "edits" / EXPERT_PAINTS
    shutil.copytree(out / "with" / "experts", experts, dirs_exist_ok=True)
    registry = read_json(experts / "experts.json")
    registry["extra"]["routing"] |= {"branch": "expert", "prompt": "object"}
    write_json(experts / "experts.json", registry)
    test = ["--manifest", out / "scenes", "--split", "test"]
    run_python("-m", "regionroute.cli", "edit", *test, "--experts", experts, "--out-dir", edits,
               "--mode", "routed", "--batch-size", 16)  # fmt: skip
    scores = out / EXPERT_PAINTS / "scores"
    run_python(ROOT / "eval/rses.py", *test, "--edits", f"{EXPERT_PAINTS}={edits}", "--out", scores)
    return {EXPERT_PAINTS: read_json(scores / "summary.json")["methods"][EXPERT_PAINTS]}


def table(slices: dict[str, Any]) -> dict[str, dict[str, list[float | None]]]:
    """Slice -> metric -> [mean, low, high] of the 95 % interval."""
    return {
        name: {
            metric: [part[metric][key] for key in ("mean", "low", "high")]
            for metric in METRICS
            if metric in part
        }
        for name, part in slices.items()
    }


if __name__ == "__main__":
    raise SystemExit(main())
