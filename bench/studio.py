"""The studio under load: memory over many edits, eight clients at once, a second edit's time.

    python bench/studio.py
    python bench/studio.py --edits 200 --clients 8

Starts `regionroute serve` as a process of its own on the default base and asks it by
`gradio_client`. The rival of a later edit is a fresh `regionroute edit`; the load average is
recorded, as times mean something on an idle machine only. The result goes to
bench/results/studio.json.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import psutil
import skimage.data
from _shared import add_result_argument, provenance
from gradio_client import Client, handle_file
from PIL import Image

from regionroute.files import write_json

WARM = 20  # edits before the first reading of the memory: caches fill
MIB = 2**20


def main() -> int:
    """Runs the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--edits", type=int, default=200)
    parser.add_argument("--clients", type=int, default=8)
    add_result_argument(parser, "studio")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        photo = folder / "cat.png"
        Image.fromarray(skimage.data.chelsea()).save(photo)
        command = [sys.executable, "-u", "-m", "regionroute.cli.main", "serve", "--port", "0"]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            try:
                found = measure(process, photo, folder, args)
            finally:
                process.terminate()
        found["fresh_command_s"] = fresh(photo, folder)
    found["speed_up"] = found["fresh_command_s"] / found["median_s"]
    packages = ("torch", "gradio", "gradio_client")
    found |= {"load_average": os.getloadavg()[0], **provenance(packages)}
    write_json(args.result, found)
    print(json.dumps(found, indent=2))
    return 0


def measure(
    process: subprocess.Popen[str], photo: Path, folder: Path, args: argparse.Namespace
) -> dict[str, Any]:
    """Numbers of a server that is being started."""
    assert process.stdout is not None
    url = next(m[1] for line in process.stdout if (m := re.search(r"at (http\S+)", line)))
    memory = psutil.Process(process.pid).memory_info
    client = Client(url, verbose=False, download_files=str(folder / "one"))
    styles = client.predict("", "bundled", api_name="/styles")
    times, readings = [], []
    for number in range(args.edits):
        started = time.perf_counter()
        edit(client, photo, styles[number % len(styles)], number)
        times.append(time.perf_counter() - started)
        readings.append(memory().rss / MIB)
    start = readings[min(WARM, len(readings) - 1)]
    own = at_once(url, photo, styles[0], folder, args.clients)
    return {
        "edits": args.edits,
        "rss_mib_after_warm_up": round(start),
        "rss_mib_at_the_end": round(readings[-1]),
        "growth_percent": round(100 * (readings[-1] / start - 1), 2),
        "median_s": round(statistics.median(times[1:]), 3),
        "slowest_s": round(max(times[1:]), 3),
        "clients_at_once": args.clients,
        "clients_with_their_own_result": own,
    }


def edit(client: Client, photo: Path, style: str, seed: int) -> Path:
    """One edit by a client."""
    out, *_ = client.predict(
        handle_file(photo), ["cat"], [style], {"seed": seed}, None, None, api_name="/edit"
    )
    return Path(out)


def at_once(url: str, photo: Path, style: str, folder: Path, count: int) -> int:
    """How many of several clients get the edit of their own seed, as one client gets it alone."""
    found: dict[int, tuple[int, bytes]] = {}

    def one(number: int) -> None:
        client = Client(url, verbose=False, download_files=str(folder / f"client-{number}"))
        path = edit(client, photo, style, number)
        with Image.open(path) as image:
            settings = json.loads(image.info["parameters"])
            found[number] = (settings["seed"], image.tobytes())

    threads = [threading.Thread(target=one, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    together = dict(found)
    for number in range(count):
        one(number)
    return sum(together.get(n) == found[n] and found[n][0] == n for n in range(count))


def fresh(photo: Path, folder: Path) -> float:
    """Seconds of one edit by a command of its own."""
    command = [sys.executable, "-m", "regionroute.cli.main", "edit", str(photo)]
    command += ["--object", "cat", "--style", "neon", "--out", str(folder / "out.png")]
    started = time.perf_counter()
    subprocess.run(command, check=True, capture_output=True)
    return round(time.perf_counter() - started, 3)


if __name__ == "__main__":
    raise SystemExit(main())
