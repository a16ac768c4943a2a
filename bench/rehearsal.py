"""Collects finished rehearsals: what each stage took, against the plan.

    regionroute rehearse --base flux2-klein-4b --resolution 64 --text-length 64 --out out/klein
    python bench/rehearsal.py out/klein

Each folder is one of `regionroute rehearse`. The result goes to bench/results/rehearsal.json.
"""

import argparse
from pathlib import Path
from typing import Any

from _shared import add_result_argument, provenance

from regionroute.files import read_json, write_json


def main() -> int:
    """Write what the folders hold."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folders", nargs="+", type=Path, metavar="DIR", help="of a rehearsal")
    add_result_argument(parser, "rehearsal")
    args = parser.parse_args()
    result = provenance(("torch", "diffusers", "transformers", "bitsandbytes", "peft"))
    result["rehearsals"] = [collected(folder) for folder in args.folders]
    write_json(args.result, result)
    print(f"{args.result} written")
    return 0


def collected(folder: Path) -> dict[str, Any]:
    """Settings, stages and the comparison with the stock pipeline of one rehearsal."""
    planned = read_json(folder / "expected.json")
    stages = read_json(folder / "stages.json")
    for name, row in stages.items():
        row["planned"] = planned.get(name)
        row["peak over planned"] = row["peak"] / planned[name] if name in planned else None
    stock = folder / "stock.json"
    found = {"settings": read_json(folder / "rehearsal.json"), "stages": stages}
    return found | {"stock pipeline": read_json(stock) if stock.is_file() else None}


if __name__ == "__main__":
    raise SystemExit(main())
