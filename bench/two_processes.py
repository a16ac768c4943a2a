"""How much faster do two training processes run than one, with one thread each?

    python bench/two_processes.py

nano's configuration under torchrun, one process and two alternating, one thread each, same global
batch, experts and pairs; a first run fills the cache, unmeasured. Goal on two idle cores: 1.6 x or
more. The load average is recorded with each measurement, because on shared cores two processes also
get twice the CPU share of one. The result goes to
bench/results/two_processes.json.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from _shared import add_result_argument, provenance, run_python

from regionroute.files import read_json, write_json
from train.engine.distributed import free_port

REPOSITORY = Path(__file__).resolve().parents[1]
WANTED = 1.6


def main() -> int:
    """Measure and write the result."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=60, help="steps per run")
    parser.add_argument("--rounds", type=int, default=3, help="runs per kind")
    add_result_argument(parser, "two_processes")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "scenes"
        run_python("-m", "regionroute.cli", "scenes", "--out", data, "--train", 64, "--test", 0)
        train(1, Path(folder), data, steps=1)
        rounds = [
            {str(count): train(count, Path(folder), data, args.steps) for count in (1, 2)}
            for _ in range(args.rounds)
        ]
    ratios = [one["2"]["samples_per_second"] / one["1"]["samples_per_second"] for one in rounds]
    result = provenance() | {
        "threads_a_process": 1,
        "steps": args.steps,
        "rounds": rounds,
        "ratios": ratios,
        "median_ratio": statistics.median(ratios),
        "wanted": WANTED,
    }
    write_json(args.result, result)
    print(f"two processes over one: {result['median_ratio']:.2f} x; {args.result} written")
    return 0


def train(processes: int, folder: Path, data: Path, steps: int) -> dict[str, Any]:
    """Samples per second of a run, and the load average before and after."""
    output = folder / f"run-{processes}-{steps}"
    before = os.getloadavg()[0]
    command = [
        sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(processes),
        "--master-port", str(free_port()), "train/run.py", "--config", "configs/nano.yaml",
        f"data.manifest={data}", f"data.cache={folder / 'cache'}", f"output={output}",
        f"train.steps={steps}", "train.resume=false", "train.preview_every=0",
        f"train.save_every={steps}", "supervision.gradient_norms_every=0",
    ]  # fmt: skip
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY)}
    subprocess.run(command, cwd=REPOSITORY, env=environment, check=True)
    speed = read_json(output / "run.json")["samples_per_second"]
    return {"samples_per_second": speed, "load_before": before, "load_after": os.getloadavg()[0]}


if __name__ == "__main__":
    raise SystemExit(main())
