"""How long does one edit command take, compared with importing the stock pipeline alone?

    python bench/edit_start.py

Whole processes in turn: ``regionroute edit`` with the embedded base for photos; a Python process
that imports torch and the stock FluxKontextPipeline and exits; and, as parts of the edit, importing
torch alone and ``regionroute edit --help``. Wall time and CPU time of the process and its children.
The load average is recorded with the result: wall time means something on an idle machine only.
Each process runs once before, unmeasured, so bytecode is compiled. The result goes to
bench/results/edit_start.json.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
from _shared import add_result_argument, median_ratio, paired_seconds, provenance, quartiles
from PIL import Image

from regionroute.files import write_json

WANTED = 10.0  # seconds for the edit on two idle cores
EDIT, RIVAL = "regionroute edit", "import of the stock pipeline"
STOCK = "import torch, diffusers; from diffusers import FluxKontextPipeline"


def main() -> int:
    """Measure and write the result."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=7, help="runs of each")
    parser.add_argument("--size", type=int, default=768, help="longer side of the photo")
    add_result_argument(parser, "edit_start")
    args = parser.parse_args()
    before = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as folder:
        commands = processes(Path(folder), args.size)
        # Bytecode is written on the first, unmeasured call, even where the session disables it.
        environment = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
        environment.setdefault("PYTHONPYCACHEPREFIX", str(Path(folder) / "bytecode"))
        spent: dict[str, list[float]] = {name: [] for name in commands}
        runs = {
            name: timed(command, environment, spent[name]) for name, command in commands.items()
        }
        seconds = paired_seconds(runs, args.rounds)
    result = provenance() | {
        "size": args.size,
        "rounds": args.rounds,
        "load": {"before": before, "after": os.getloadavg()[0]},
        "processes": {
            name: {
                "seconds, quartiles": quartiles(seconds[name]),
                "processor seconds, median": statistics.median(spent[name][1:]),
                "over the rival": median_ratio(seconds, name, RIVAL),
            }
            for name in commands
        },
        "wanted seconds": WANTED,
    }
    write_json(args.result, result)
    for name, row in result["processes"].items():
        print(f"{name}: {row['seconds, quartiles'][1]:.1f} s, {row['over the rival']:.2f} x rival")
    print(f"{args.result} written")
    return 0


def processes(folder: Path, size: int) -> dict[str, list[str]]:
    """Name -> command to time."""
    photo = folder / "photo.jpg"
    noise = np.random.default_rng(0).integers(0, 256, (size // 12, size // 8, 3), dtype=np.uint8)
    Image.fromarray(noise).resize((size, size * 2 // 3)).save(photo)
    command = [sys.executable, "-m", "regionroute.cli", "edit"]
    edit = [
        *command, str(photo), "--object", "dog", "--style", "starry-night",
        "--out", str(folder / "out.png"),
    ]  # fmt: skip
    return {
        EDIT: edit,
        RIVAL: [sys.executable, "-c", STOCK],
        "import of torch": [sys.executable, "-c", "import torch"],
        "regionroute edit --help": [*command, "--help"],
    }


def timed(
    command: list[str], environment: dict[str, str], spent: list[float]
) -> Callable[[], None]:
    """Return a call that runs a command and appends its CPU seconds to ``spent``."""

    def run() -> None:
        start = children()
        subprocess.run(command, env=environment, check=True, capture_output=True)
        spent.append(children() - start)

    return run


def children() -> float:
    """CPU seconds of all child processes that have ended."""
    times = os.times()
    return times.children_user + times.children_system


if __name__ == "__main__":
    raise SystemExit(main())
