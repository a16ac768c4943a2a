"""The studio under load: memory over many edits, eight clients at once, a second edit's time.

    python bench/studio.py
    python bench/studio.py --edits 200 --clients 8

Starts `regionroute serve` as a process of its own on the default base and asks it by
`gradio_client`; where there is a Chromium, it also times the second edit of an open page, from the
click to the message. The rival of a later edit is a fresh `regionroute edit`. Seconds mean
something on an idle machine only: the load average and the processor time are recorded too. The
result goes to bench/results/studio.json.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import resource
import shutil
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
PATIENT: dict[str, Any] = {"httpx_kwargs": {"timeout": 600}}  # machines may be busy


def main() -> int:
    """Runs the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--edits", type=int, default=200)
    parser.add_argument("--minutes", type=float, default=60, help="make fewer edits after this")
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--side", type=int, default=451, help="width of the photo in pixels")
    add_result_argument(parser, "studio")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        photo = folder / "cat.png"
        image = Image.fromarray(skimage.data.chelsea())
        image.resize((args.side, args.side * image.height // image.width)).save(photo)
        command = [sys.executable, "-u", "-m", "regionroute.cli.main", "serve", "--port", "0"]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            try:
                found = measure(process, photo, folder, args)
            finally:
                process.terminate()
        found |= fresh(photo, folder)
    found["speed_up"] = round(found["fresh_command_s"] / found["median_s"], 1)
    found["speed_up_cpu"] = round(found["fresh_command_cpu_s"] / found["median_cpu_s"], 1)
    packages = ("torch", "gradio", "gradio_client")
    found |= {"load_average": round(os.getloadavg()[0], 1), **provenance(packages)}
    write_json(args.result, found)
    print(json.dumps(found, indent=2))
    return 0


def measure(
    process: subprocess.Popen[str], photo: Path, folder: Path, args: argparse.Namespace
) -> dict[str, Any]:
    """Numbers of a server that is being started."""
    assert process.stdout is not None
    url = next(m[1] for line in process.stdout if (m := re.search(r"at (http\S+)", line)))
    server = psutil.Process(process.pid)
    client = Client(url, verbose=False, download_files=str(folder / "one"), **PATIENT)
    styles = client.predict("", "bundled", api_name="/styles")
    times, cpu_times, readings = [], [], []
    end = time.monotonic() + 60 * args.minutes
    for number in range(args.edits):
        if number > WARM and time.monotonic() > end:
            break
        started, busy = time.perf_counter(), cpu_seconds(server)
        edit(client, photo, styles[number % len(styles)], number)
        times.append(time.perf_counter() - started)
        cpu_times.append(cpu_seconds(server) - busy)
        readings.append(server.memory_info().rss / MIB)
    start = readings[min(WARM, len(readings) - 1)]
    own = at_once(url, photo, styles[0], folder, args.clients)
    return second_edit_of_a_page(url, photo, server) | {
        "photo": Image.open(photo).size,
        "edits": len(times),
        "rss_mib_after_warm_up": round(start),
        "rss_mib_at_the_end": round(readings[-1]),
        "growth_percent": round(100 * (readings[-1] / start - 1), 2),
        "median_s": round(statistics.median(times[1:]), 3),
        "slowest_s": round(max(times[1:]), 3),
        "median_cpu_s": round(statistics.median(cpu_times[1:]), 3),
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
        client = Client(
            url, verbose=False, download_files=str(folder / f"client-{number}"), **PATIENT
        )
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


def cpu_seconds(process: psutil.Process) -> float:
    """Processor time of a process so far."""
    times = process.cpu_times()
    return float(times.user + times.system)


def second_edit_of_a_page(url: str, photo: Path, server: psutil.Process) -> dict[str, float]:
    """Seconds and the server's processor time of a page's second edit; nothing without Chromium."""
    from playwright.sync_api import sync_playwright

    names = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
    chromium = next(filter(None, map(shutil.which, names)), None)
    if chromium is None:
        return {}
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        page = browser.new_page()
        page.set_default_timeout(600_000)
        page.goto(url)
        page.set_input_files("#photo input[type=file]", photo)
        page.get_by_text("Name an object").first.wait_for()
        page.fill("#object-1 textarea, #object-1 input", "cat")
        for count in (1, 2):
            started, busy = time.perf_counter(), cpu_seconds(server)
            page.click("#edit")
            page.locator("#history button img").nth(count - 1).wait_for()
        found = {
            "page_second_edit_s": round(time.perf_counter() - started, 3),
            "page_second_edit_cpu_s": round(cpu_seconds(server) - busy, 3),
        }
        browser.close()
    return found


def fresh(photo: Path, folder: Path) -> dict[str, float]:
    """Seconds and processor time of one edit by a command of its own."""
    command = [sys.executable, "-m", "regionroute.cli.main", "edit", str(photo)]
    command += ["--object", "cat", "--style", "neon", "--out", str(folder / "out.png")]
    started, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(command, check=True, capture_output=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    busy = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {
        "fresh_command_s": round(time.perf_counter() - started, 3),
        "fresh_command_cpu_s": round(busy, 3),
    }


if __name__ == "__main__":
    raise SystemExit(main())
