"""Peak memory of an edit of a large photo, against the limit of 4 GB.

    python bench/large_image.py
    python bench/large_image.py --megapixels 24

The photo is scikit-image's "chelsea", enlarged and saved as JPEG. Each edit is a process of its own
(`regionroute edit`), whose largest resident set the system reports. A small edit shows how much of
it is the program and the base. `REGIONROUTE_MAX_PIXELS` is not touched: the default limit is 64
megapixels.
"""

import argparse
import math
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from _shared import add_result_argument, provenance
from PIL import Image
from skimage.data import chelsea

from regionroute.files import write_json

LIMIT = 4 * 10**9  # bytes
ASPECT = 9 / 7
SMALL = 0.25  # megapixels


def main() -> int:
    """Measure and write the result."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--megapixels", type=float, default=63, help="(%(default)s)")
    parser.add_argument("--base", default="nano-photos", help="(%(default)s)")
    parser.add_argument("--style", default="starry-night", help="(%(default)s)")
    parser.add_argument("--steps", type=int, help="sampling steps (those of the base)")
    add_result_argument(parser, "large_image")
    args = parser.parse_args()
    edits = {}
    with tempfile.TemporaryDirectory() as folder:
        for megapixels in (SMALL, args.megapixels):
            edits[f"{megapixels:g} megapixels"] = measured(args, megapixels, Path(folder))
    most = edits[f"{args.megapixels:g} megapixels"]["peak bytes"]
    result = provenance() | {"limit": LIMIT, "edits": edits, "below the limit": most < LIMIT}
    write_json(args.result, result)
    print(f"{most / 1e9:.2f} GB, {args.result} written")
    return 0


def measured(args: argparse.Namespace, megapixels: float, folder: Path) -> dict[str, Any]:
    """Peak memory and time of one edit."""
    height = round(math.sqrt(megapixels * 1e6 / ASPECT))
    size = round(height * ASPECT), height
    photo, out = folder / "photo.jpg", folder / "out.png"
    Image.fromarray(chelsea()).resize(size, Image.Resampling.BICUBIC).save(photo)
    command = [sys.executable, "-m", "regionroute.cli", "edit", photo, "--object", "cat"]
    command += ["--style", args.style, "--base", args.base, "--out", out]
    command += [] if args.steps is None else ["--steps", args.steps]
    start = time.perf_counter()
    process = subprocess.Popen([*map(str, command)])
    _, status, usage = os.wait4(process.pid, 0)  # of this process alone
    seconds = time.perf_counter() - start
    if status:
        raise SystemExit(f"the edit failed: {' '.join(map(str, command))}")
    with Image.open(out) as edited:
        assert edited.size == size
    return {
        "size": [*size],
        "peak bytes": usage.ru_maxrss * 1024,
        "processor seconds": round(usage.ru_utime + usage.ru_stime, 1),
        "seconds": round(seconds, 1),
    }


if __name__ == "__main__":
    raise SystemExit(main())
