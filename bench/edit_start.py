"""How long does one edit command take, compared with importing the stock pipeline alone?

    python bench/edit_start.py
    python bench/edit_start.py --against ../old --rounds 3

Whole processes in turn: ``regionroute edit`` with the embedded base for photos; a Python process
that imports torch and the stock FluxKontextPipeline and exits; and, as parts of the edit, importing
torch alone and ``regionroute edit --help``. Wall time and CPU time of the process and its children.
The load average is recorded with the result: wall time means something on an idle machine only.
Each process runs once before, unmeasured, so bytecode is compiled. With ``--against`` the same edit
by another checkout takes its turn in each round. The result goes to bench/results/edit_start.json.
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

REPOSITORY = Path(__file__).resolve().parent.parent
WANTED = 10.0  # seconds for the edit on two idle cores
EDIT, RIVAL = "regionroute edit", "import of the stock pipeline"
EARLIER = "regionroute edit, other checkout"
STOCK = "import torch, diffusers; from diffusers import FluxKontextPipeline"


TRIED = [
    "hiding optional packages (None in sys.modules) while diffusers and transformers are imported: "
    "kept, saves 4 to 5 of 10 CPU seconds of imports, most of it bitsandbytes, which imports "
    "torch._inductor",
    "importing peft inside the two functions that use it: kept, it imports bitsandbytes",
    "gc.freeze at exit: kept, saves 1.2 of 1.5 CPU seconds; not where triton is loaded, whose "
    "binding then reports leaks",
    "importlib.util.LazyLoader: loads at the second import of a module and when inspect looks at "
    "__file__, so that nothing stays unloaded",
    "hiding torch._dynamo: diffusers has a fallback, transformers has none (masking_utils, "
    "integrations/finegrained_fp8); left, costs .7 CPU seconds",
]


def main() -> int:
    """Measure and write the result."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=7, help="runs of each")
    parser.add_argument("--size", type=int, default=768, help="longer side of the photo")
    parser.add_argument("--against", type=Path, help="folder of another checkout to compare with")
    add_result_argument(parser, "edit_start")
    args = parser.parse_args()
    before = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as folder:
        commands = processes(Path(folder), args.size)
        folders = dict.fromkeys(commands, REPOSITORY)
        if args.against:
            commands[EARLIER], folders[EARLIER] = commands[EDIT], args.against.resolve()
        # Bytecode is written on the first, unmeasured call, even where the session disables it.
        environment = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
        environment.setdefault("PYTHONPYCACHEPREFIX", str(Path(folder) / "bytecode"))
        spent: dict[str, list[float]] = {name: [] for name in commands}
        runs = {
            name: timed(command, folders[name], environment, spent[name])
            for name, command in commands.items()
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
        "edit over the other checkout": {
            "seconds": median_ratio(seconds, EDIT, EARLIER),
            # The first, unmeasured run has compiled the bytecode.
            "processor seconds": median_ratio(
                {name: times[1:] for name, times in spent.items()}, EDIT, EARLIER
            ),
        }
        if args.against
        else None,
        "tried": TRIED,
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
    command: list[str], folder: Path, environment: dict[str, str], spent: list[float]
) -> Callable[[], None]:
    """Return a call that runs a command on a checkout and appends its CPU seconds to ``spent``."""
    environment = environment | {"PYTHONPATH": str(folder)}

    def run() -> None:
        start = children()
        subprocess.run(command, cwd=folder, env=environment, check=True, capture_output=True)
        spent.append(children() - start)

    return run


def children() -> float:
    """CPU seconds of all child processes that have ended."""
    times = os.times()
    return times.children_user + times.children_system


if __name__ == "__main__":
    raise SystemExit(main())
