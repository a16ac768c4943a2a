"""Mutates good files of every format that is read, and reports tracebacks, hangs and memory.

    python tests/fuzz/fuzz.py                       # one minute
    python tests/fuzz/fuzz.py --minutes 10 --only labels.json --seed 7

What was found is kept as a file, so that the reader can be run on it again. Exit code 1 if
anything was found. A run with the same seed tries the same files in the same order.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import random
import resource
import signal
import sys
import tempfile
import time
import traceback
from pathlib import Path

from readers import Reader, readers

from regionroute.errors import UserError

LONGEST = 10  # seconds of processor time that a reader may take
SLOWEST = 6 * LONGEST  # seconds by the clock, on a machine that does other work too
MOST_MEMORY = 4 * 2**30  # bytes
DEFAULT_MINUTES = 1.0
INTERESTING = [0, 1, 2, 127, 128, 254, 255]
TOKENS = [
    b"null", b"true", b"-1", b"0", b"1e999", b"-1e999", b"NaN", b"Infinity", b"1e308",
    b"99999999999999999999", b"0.5", b'""', b'"x"', b"[]", b"{}", b"[[]]", b"[null]", b'"\\u0000"',
    b'"\\ud800"', b'"../x"', b'"/etc/passwd"', b'"C:\\\\x"', b"[" * 2000, b'{"a":' * 2000,
    b'"' + b"x" * 5000 + b'"', b"9" * 5000, b"\xff\xfe", b"\x00", b"*a", b"&a [*a]", b"!!python/x",
    b"<<: *a", b'"(a+)+$"', b"(.*)*", b"\n", b",", b":", b"- ", b"  ",
]  # fmt: skip


def mutate(data: bytes, rng: random.Random) -> bytes:
    """A file that differs from a good one in one to eight places."""
    found = bytearray(data)
    for _ in range(rng.choice([1, 1, 2, 3, 5, 8])):
        place = rng.randrange(len(found) + 1)
        if rng.random() < 0.3:  # headers decide more than pixels
            place = min(place, rng.randrange(256))
        length = rng.choice([1, 1, 2, 4, 16, 256])
        match rng.randrange(7):
            case 0:
                found[place : place + 1] = bytes([rng.choice(INTERESTING)])
            case 1:
                found[place : place + length] = rng.randbytes(length)
            case 2:
                del found[place : place + length]
            case 3:
                found[place:place] = found[place : place + length] * rng.choice([1, 2, 50])
            case 4:
                found[place : place + 4] = rng.choice([2**31 - 1, 2**32 - 1, 65535]).to_bytes(
                    4, rng.choice(["big", "little"])
                )
            case 5:
                _replace_value(found, rng)
            case _:
                del found[max(place, 1) :]
    return bytes(found)


def _replace_value(data: bytearray, rng: random.Random) -> None:
    """Puts a token in the place of a value of a text file."""
    places = [i for i, byte in enumerate(data) if byte in b":[,{"]
    if not places:
        return
    start = rng.choice(places) + 1
    end = start
    while end < len(data) and data[end] not in b",]}\n":
        end += 1
    data[start:end] = b" " + rng.choice(TOKENS)


def attempt(reader: Reader, content: bytes, folder: Path) -> str | None:
    """Reads one file; the traceback of anything but a `UserError`."""
    for name, other in reader.beside.items():
        (folder / name).write_bytes(other)
    path = folder / reader.name
    path.write_bytes(content)
    signal.setitimer(signal.ITIMER_PROF, LONGEST)
    signal.alarm(SLOWEST)
    try:
        reader.read(path)
    except UserError as error:
        if not str(error):
            return "an empty sentence"
    except BaseException:
        return traceback.format_exc()
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.alarm(0)
    return None


class Hang(BaseException):
    """A reader took too long."""


def _work(only: str | None, seed: int, start: int, status: Path, deadline: float) -> None:
    def late(*_: object) -> None:
        raise Hang(f"longer than {LONGEST} s of processor time, or {SLOWEST} s by the clock")

    signal.signal(signal.SIGALRM, late)
    signal.signal(signal.SIGPROF, late)
    chosen = [reader for reader in readers() if only in (None, reader.name)]
    folder = status.parent / "work"
    folder.mkdir(exist_ok=True)
    number = start
    while time.monotonic() < deadline:
        reader = chosen[number % len(chosen)]
        rng = random.Random(f"{seed}-{number}")
        content = mutate(rng.choice(reader.seeds), rng)
        status.write_text(json.dumps({"number": number, "reader": reader.name}))
        (status.parent / "content").write_bytes(content)
        problem = attempt(reader, content, folder)
        used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        if used > MOST_MEMORY:
            problem = f"{used / 2**30:.1f} GiB of memory"
        number += 1
        if problem:
            (status.parent / "problem").write_text(problem)
            status.write_text(json.dumps({"number": number, "reader": reader.name}))
            sys.exit(3)
    status.write_text(json.dumps({"number": number, "reader": ""}))


def run(minutes: float, only: str | None, seed: int, out: Path) -> int:
    """Fuzzes for some time.

    Args:
        minutes: of wall-clock time.
        only: name of one reader, None for all.
        seed: decides the files.
        out: where what was found is kept.

    Returns:
        How many different problems were found.
    """
    deadline, number, found = time.monotonic() + 60 * minutes, 0, set()
    with tempfile.TemporaryDirectory() as name:
        status, problem = Path(name) / "status", Path(name) / "problem"
        while time.monotonic() < deadline:
            arguments = (only, seed, number, status, deadline)
            worker = multiprocessing.get_context("spawn").Process(target=_work, args=arguments)
            worker.start()
            worker.join(max(0.0, deadline - time.monotonic()) + 2 * SLOWEST)
            stuck = worker.is_alive()
            worker.kill()
            worker.join()
            facts = json.loads(status.read_text())
            number = facts["number"]
            if worker.exitcode == 0:
                break
            told = problem.read_text() if worker.exitcode == 3 else f"ended by {worker.exitcode}"
            told = "hangs in a library" if stuck else told
            number += worker.exitcode != 3
            last = told.strip().splitlines()[-1][:200]
            places = [line.strip() for line in told.splitlines() if line.startswith("  File ")]
            where = places[-1] if places else ""
            if (facts["reader"], where) not in found:
                found.add((facts["reader"], where))
                out.mkdir(parents=True, exist_ok=True)
                kept = out / f"{len(found)}-{facts['reader']}"
                kept.write_bytes((Path(name) / "content").read_bytes())
                print(f"{facts['reader']}: {last}\n  {where}\n  kept: {kept}", flush=True)
    print(f"{number} files, {len(found)} problems")
    return len(found)


def main() -> int:
    """Run the command."""
    parser = argparse.ArgumentParser(description="Mutate good files and look for tracebacks.")
    parser.add_argument("--minutes", type=float, default=DEFAULT_MINUTES, help="(%(default)s)")
    parser.add_argument("--only", help="one kind of file, such as labels.json")
    parser.add_argument("--seed", type=int, default=0, help="(%(default)s)")
    parser.add_argument("--out", type=Path, default=Path("out/fuzz"), help="(%(default)s)")
    args = parser.parse_args()
    return 1 if run(args.minutes, args.only, args.seed, args.out) else 0


if __name__ == "__main__":
    sys.exit(main())
