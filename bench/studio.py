"""The studio under load: memory over many edits, eight clients at once, a second edit's time.

    python bench/studio.py
    python bench/studio.py --parts memory --edits 200 --clients 8
    python bench/studio.py --parts speed

Each part starts `regionroute serve` as a process of its own on the default base and asks it by
`gradio_client`. Memory counts from the 8th edit (`WARM`): all that is resident, and the allocated
part of it, without the mapped files that the kernel drops and reads again as it likes. Where there
is a Chromium, the speed part also times the second edit of an open page, from the click to the
message. The rival of a later edit is a fresh `regionroute edit`. Seconds mean something on an idle
machine only: the load average and the processor time are recorded too. The results go to
bench/results/studio.json; a part that was not asked for stays there as it was measured before.
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
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import skimage.data
from _shared import add_result_argument, provenance
from gradio_client import Client, handle_file
from PIL import Image

from regionroute.files import read_json, write_json

WARM = 8  # edits before the first reading of the memory: caches fill
EVERY = 20  # edits between readings that are kept
MIB = 2**20
PATIENT: dict[str, Any] = {"httpx_kwargs": {"timeout": 600}}  # machines may be busy


@dataclass(frozen=True)
class Studio:
    """A running server, and the photo that is edited.

    Attributes:
        url: of the page.
        process: the server's.
        photo: the file.
        folder: for what clients download.
        styles: that the server offers.
    """

    url: str
    process: psutil.Process
    photo: Path
    folder: Path
    styles: list[str]

    def client(self, name: str) -> Client:
        """A client with a folder of its own."""
        return Client(self.url, verbose=False, download_files=str(self.folder / name), **PATIENT)


def main() -> int:
    """Runs the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--parts", nargs="+", choices=tuple(PARTS), default=list(PARTS))
    parser.add_argument("--edits", type=int, default=200)
    parser.add_argument("--minutes", type=float, default=60, help="make fewer edits after this")
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--timed", type=int, default=20, help="edits of the speed part")
    parser.add_argument("--side", type=int, default=451, help="width of the photo in pixels")
    add_result_argument(parser, "studio")
    args = parser.parse_args()
    found = read_json(args.result) if args.result.is_file() else {}
    for part in args.parts:
        with started(args.side) as studio:
            numbers = PARTS[part](studio, args)
        numbers |= {"width": args.side, "load_average": round(os.getloadavg()[0], 1)}
        found[part] = numbers | provenance(("torch", "gradio", "gradio_client"))
        write_json(args.result, found)
        print(json.dumps({part: found[part]}, indent=2))
    return 0


@contextmanager
def started(side: int) -> Iterator[Studio]:
    """A server that has made no edit yet, and a photo of so many pixels' width."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        photo = folder / "cat.png"
        image = Image.fromarray(skimage.data.chelsea())
        image.resize((side, side * image.height // image.width)).save(photo)
        command = [sys.executable, "-u", "-m", "regionroute.cli.main", "serve", "--port", "0"]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            try:
                assert process.stdout is not None
                found = (re.search(r"at (http\S+)", line) for line in process.stdout)
                url = next(match[1] for match in found if match)
                client = Client(url, verbose=False, **PATIENT)
                styles = client.predict("", "bundled", api_name="/styles")
                yield Studio(url, psutil.Process(process.pid), photo, folder, styles)
            finally:
                process.terminate()


def memory(studio: Studio, args: argparse.Namespace) -> dict[str, Any]:
    """Resident memory over many edits of one client, and after several at once."""
    client, readings = studio.client("one"), []
    end = time.monotonic() + 60 * args.minutes
    while len(readings) < args.edits and (len(readings) < 2 * WARM or time.monotonic() < end):
        edit(client, studio, len(readings))
        readings.append(memory_mib(studio.process))
    own = at_once(studio, args.clients)
    found = {
        "edits": len(readings),
        "edits_of_warm_up": WARM,
        "clients_at_once": args.clients,
        "clients_with_their_own_result": own,
    }
    after = memory_mib(studio.process)
    for name in after:
        values = [reading[name] for reading in readings]
        found |= {
            f"{name}_mib_after_warm_up": values[WARM - 1],
            f"{name}_mib_every_{EVERY}_edits": values[EVERY - 1 :: EVERY],
            f"{name}_mib_largest": max(values),
            f"{name}_mib_at_the_end": values[-1],
            f"{name}_growth_percent": round(100 * (values[-1] / values[WARM - 1] - 1), 2),
            f"{name}_mib_after_clients_at_once": after[name],
        }
    return found


def memory_mib(process: psutil.Process) -> dict[str, int]:
    """What is resident, and the part of it that is no mapped file."""
    found = process.memory_info()
    return {"rss": round(found.rss / MIB), "allocated": round((found.rss - found.shared) / MIB)}


def speed(studio: Studio, args: argparse.Namespace) -> dict[str, Any]:
    """Seconds and processor time of a later edit, by program and page, and of a fresh command."""
    client, times, cpu_times = studio.client("one"), [], []
    for number in range(1 + args.timed):
        started, busy = time.perf_counter(), cpu_seconds(studio.process)
        edit(client, studio, number)
        times.append(time.perf_counter() - started)
        cpu_times.append(cpu_seconds(studio.process) - busy)
    found = second_edit_of_a_page(studio) | {
        "edits": args.timed,
        "median_s": round(statistics.median(times[1:]), 3),
        "slowest_s": round(max(times[1:]), 3),
        "median_cpu_s": round(statistics.median(cpu_times[1:]), 3),
    }
    found |= fresh(studio.photo, studio.folder)
    found["speed_up"] = round(found["fresh_command_s"] / found["median_s"], 1)
    found["speed_up_cpu"] = round(found["fresh_command_cpu_s"] / found["median_cpu_s"], 1)
    return found


def edit(client: Client, studio: Studio, seed: int) -> Path:
    """One edit by a client; the styles take turns."""
    style = studio.styles[seed % len(studio.styles)]
    out, *_ = client.predict(
        handle_file(studio.photo), ["cat"], [style], {"seed": seed}, None, None, api_name="/edit"
    )
    return Path(out)


def at_once(studio: Studio, count: int) -> int:
    """How many of several clients get the edit of their own seed, as one client gets it alone."""
    found: dict[int, tuple[int, bytes]] = {}

    def one(number: int) -> None:
        path = edit(studio.client(f"client-{number}"), studio, number)
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


def second_edit_of_a_page(studio: Studio) -> dict[str, Any]:
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
        page.goto(studio.url)
        page.set_input_files("#photo input[type=file]", studio.photo)
        page.get_by_text("Name an object").first.wait_for()
        page.fill("#object-1 textarea, #object-1 input", "cat")
        for count in (1, 2):
            started, busy = time.perf_counter(), cpu_seconds(studio.process)
            page.click("#edit")
            page.locator("#history button img").nth(count - 1).wait_for()
        found = {
            "page_second_edit_s": round(time.perf_counter() - started, 3),
            "page_second_edit_cpu_s": round(cpu_seconds(studio.process) - busy, 3),
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


PARTS = {"memory": memory, "speed": speed}


if __name__ == "__main__":
    raise SystemExit(main())
