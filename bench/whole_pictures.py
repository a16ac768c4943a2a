"""Should experts also be trained on whole images? The arms of bench/supervision.py, retrained.

    python bench/whole_pictures.py               # three seeds, about half an hour on two cores

Same training scenes, steps, batch and seeds, but half of the samples are wholly restyled scenes
("make the image in ... style"), which are not supervised. Then the edits of bench/controls.py.
Rival: the same table for experts that saw objects only, bench/results/controls.json. The result
goes to bench/results/whole_pictures.json.
"""

import argparse
from pathlib import Path

from _shared import add_result_argument, provenance, run_python
from controls import compare, show

from regionroute.files import write_json

ROOT = Path(__file__).resolve().parents[1]
ARMS = {"with": (), "without": ("supervision.focus=0", "supervision.cover=0")}


def main() -> int:
    """Train what is not there yet, edits, and write the comparison."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=600, help="training steps")
    parser.add_argument("--out", default="out/whole_pictures", help="output folder")
    add_result_argument(parser, "whole_pictures")
    args = parser.parse_args()
    for seed in args.seeds:
        folder = Path(args.out) / f"seed-{seed}"
        run_python("-m", "regionroute.cli", "scenes", "--out", folder / "scenes", "--train", 64,
                "--test", 32, "--seed", seed, "--whole")  # fmt: skip
        for arm, changes in ARMS.items():
            if (folder / arm / "experts" / "experts.json").exists():
                continue
            run_python(ROOT / "train/run.py", "--config", ROOT / "configs/nano.yaml",
                    f"data.manifest={folder / 'scenes'}", f"data.cache={folder / 'cache'}",
                    f"output={folder / arm}", f"seed={seed}", f"train.steps={args.steps}",
                    *changes)  # fmt: skip
    result = provenance() | {"steps": args.steps} | compare(Path(args.out), args.seeds)
    write_json(args.result, result)
    show(result)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
