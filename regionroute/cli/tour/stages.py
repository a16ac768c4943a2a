"""A chain of commands, each as a user could type it: printed, started, timed."""

from __future__ import annotations

import argparse
import json
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from regionroute.cli.options import check_least
from regionroute.errors import Parser, UserError
from regionroute.files import check_output_folder, file_hash, read_json, write_json
from regionroute.folders import remove_folder
from regionroute.settings_files import check_page_output

NOTE_FILE = "trained_on.json"


@dataclass
class Stopwatch:
    """Runs the stages and notes how long each took."""

    seconds: dict[str, float] = field(default_factory=dict)

    def run(self, stage: str, arguments: Sequence[str]) -> None:
        """Starts one command and waits for it.

        Args:
            stage: its name in the report.
            arguments: of the ``regionroute`` command.

        Raises:
            UserError: the command failed; it has printed its own message.
        """
        print(f"\n== {stage}\n$ {shlex.join(['regionroute', *arguments])}", flush=True)
        began = time.perf_counter()
        # Each stage has its own process: its own threads, and its memory is free again after it.
        environment = {"PYTHONUNBUFFERED": "1", **os.environ}
        command = [sys.executable, "-m", "regionroute.cli", *arguments]
        status = subprocess.run(command, env=environment, check=False).returncode
        if status:
            raise UserError(
                f"stopped at {stage!r} (exit status {status}), see its message above; "
                "the same command resumes there"
            )
        self.seconds[stage] = time.perf_counter() - began
        print(f"   {self.seconds[stage]:.0f} s", flush=True)

    def report(self, out: Path, title: str, *extra: str) -> None:
        """Writes ``out/report.html`` from ``out/scores``, with the time of each stage.

        Args:
            out: folder of the tour.
            title: heading of the page.
            extra: further arguments of ``regionroute report``.
        """
        notes = [{"label": stage, "value": f"{took:.0f} s"} for stage, took in self.seconds.items()]
        scores = out / "scores"
        write_json(scores / "notes.json", notes)
        given = ["--scores", str(scores), "--out", str(out / "report.html"), "--title", title]
        self.run("report", ["report", *given, "--notes", str(scores / "notes.json"), *extra])


Stages = Callable[[Stopwatch, argparse.Namespace, Path], None]


def run_tour(
    argv: list[str] | None, parser: Parser, least: Mapping[str, int], stages: Stages
) -> int:
    """The main of a tour: parses, runs the stages, prints where the report is.

    Args:
        argv: arguments, None for the process's own.
        parser: has ``--out``.
        least: smallest value of each option that is a number.
        stages: runs the commands.

    Returns:
        0.

    Raises:
        UserError: wrong arguments, or a stage failed.
    """
    args = parser.parse_args(argv)
    # A stage would refuse these only after the stages before it.
    check_arguments(args, least)
    out, began = Path(args.out), time.perf_counter()
    check_page_output(out / "report.html")
    with locked_tour(out):
        stages(Stopwatch(), args, out)
    minutes = (time.perf_counter() - began) / 60
    print(f"report: {out / 'report.html'}   ({minutes:.1f} minutes)")
    return 0


@contextmanager
def locked_tour(out: Path) -> Iterator[None]:
    """Holds the folder of a tour: a second one would rewrite what the first is training on.

    Raises:
        UserError: another process holds it, or is training in one of its folders.
    """
    from train.engine.output_lock import LOCK_FILE, locked_output

    with locked_output(out):
        # A stage may outlive a tour that was killed.
        for lock in sorted(out.glob(f"*/{LOCK_FILE}")):
            with locked_output(lock.parent):
                pass
        yield


def override(key: str, value: object) -> str:
    """``key=value`` for a command that takes settings; quoted where YAML would read otherwise."""
    from regionroute.config.yaml_text import parse_yaml

    text = str(value)
    with suppress(UserError):
        if parse_yaml(text, key) == text:
            return f"{key}={text}"
    return f"{key}={json.dumps(text, ensure_ascii=False)}"


def begin_run(run: Path, pairs: Path, **facts: object) -> None:
    """Removes the folder of a run that was trained on something else; notes what it will be on.

    A resumed run would report experts of the former pairs as those of the new ones.

    Args:
        run: its folder.
        pairs: folder of the manifest.
        facts: what else has to be as it was, such as the seed.

    Raises:
        UserError: no pairs; there is something else in the folder, or another process is writing
            to it.
    """
    from train.engine.output_lock import locked_output

    manifests = sorted(pairs.glob("manifest*.jsonl"))
    if not manifests:
        raise UserError(f"{pairs}: no manifest.jsonl of training pairs in this folder")
    trained_on = {"pairs": [file_hash(file) for file in manifests], **facts}
    run = run.resolve()  # a link to another disk stays one
    note = run / NOTE_FILE
    if run.exists():
        with locked_output(run):
            try:
                before = read_json(note)
            except UserError as error:  # missing or damaged
                raise UserError(
                    f"{run}: nothing says what this run was trained on: delete it, or name "
                    "another --out"
                ) from error
            if before != trained_on:
                print("the pairs or settings are not those of the last run: training anew")
                remove_folder(run)
    write_json(note, trained_on)


def check_arguments(args: argparse.Namespace, least: Mapping[str, int]) -> None:
    """Finds numbers that are too small, and a folder `--out` that cannot be.

    Raises:
        UserError: there is one.
    """
    check_least(args, least)
    try:
        check_output_folder(args.out)
    except UserError as error:
        raise UserError(f"--out: {error}") from error
