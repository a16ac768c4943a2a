"""The study's headline numbers by slice, for the README.

    python bench/study.py            # runs `regionroute study` unless out/study holds one

Rivals in the same run: the base without experts (zero-shot), training without supervision, and the
codec's own round trip. One seed; for claims about supervision see bench/supervision.py.
The result goes to bench/results/study.json.
"""

import argparse
import subprocess
import sys
from pathlib import Path
from typing import Any

from _shared import add_result_argument, provenance

from regionroute.files import read_json, write_json

METRICS = ("in_mask_relative", "success", "mse_bg", "leak", "coverage", "attention_iou")


def main() -> int:
    """Runs or reuses a study and writes its numbers."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", default="out/study", help="the study's folder")
    add_result_argument(parser, "study")
    args = parser.parse_args()
    out = Path(args.out)
    if not (out / "report.html").exists():
        command = [sys.executable, "-m", "regionroute.cli", "study", "--out", str(out)]
        subprocess.run(command, check=True)
    summary = read_json(out / "scores" / "summary.json")
    codec = read_json(out / "scores" / "codec.json")["slices"]
    result = {
        **provenance(),
        "seconds": {n["label"]: n["value"] for n in read_json(out / "scores" / "notes.json")},
        "samples": summary["slices"],
        "codec_mse_bg": {name: part["mse_bg"]["mean"] for name, part in codec.items()},
        "methods": {name: table(m["slices"]) for name, m in summary["methods"].items()},
    }
    write_json(args.result, result)
    print(f"{args.result} written")
    return 0


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
