"""Joins the results of `bench/gpu.sh` to one file: python bench/gpu_result.py OUT."""

import sys
from pathlib import Path
from typing import Any

from _shared import provenance

from regionroute.files import read_json, write_json

STAGES = ("kernels", "attention", "step", "nf4", "fp8", "sparse")


def main() -> int:
    """Write OUT/gpu.json; 1 if a stage has no result or failed."""
    out = Path(sys.argv[1])
    stages: dict[str, Any] = {}
    for name in STAGES:
        code, seconds = (out / f"{name}.status").read_text().split()
        file = out / f"{name}.json"
        stages[name] = {
            "exit_status": int(code),
            "seconds": int(seconds),
            "result": read_json(file) if file.is_file() else None,
        }
        found = "" if stages[name]["result"] else "no result, "
        print(f"{name:<10}{seconds:>5} s  {found}exit {code}")
    write_json(out / "gpu.json", provenance() | {"stages": stages})
    print(f"{out / 'gpu.json'} written")
    return int(any(s["exit_status"] or s["result"] is None for s in stages.values()))


if __name__ == "__main__":
    raise SystemExit(main())
