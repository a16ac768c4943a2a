"""A chain of commands, each as a user could type it: printed, started, timed."""

from __future__ import annotations

import argparse
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from regionroute.errors import UserError
from regionroute.files import check_output_folder

ROOT = Path(__file__).resolve().parents[3]


@dataclass
class Stopwatch:
    """Runs the stages and notes how long each took."""

    seconds: dict[str, float] = field(default_factory=dict)

    def run(self, stage: str, arguments: Sequence[str]) -> None:
        """Starts one command and waits for it.

        Args:
            stage: its name in the report.
            arguments: of the Python interpreter.

        Raises:
            UserError: the command failed; its own message stands above.
        """
        print(f"\n== {stage}\n$ {typed(arguments)}", flush=True)
        began = time.perf_counter()
        # Own threads for each stage, and DeepSpeed's word about its accelerator said once.
        environment = {"PYTHONUNBUFFERED": "1", **os.environ}
        status = subprocess.run(
            [sys.executable, *arguments], env=environment, check=False
        ).returncode
        if status:
            raise UserError(
                f"stopped at {stage!r} (exit status {status}); its message stands above, "
                "the same command goes on from there"
            )
        self.seconds[stage] = time.perf_counter() - began
        print(f"   {self.seconds[stage]:.0f} s", flush=True)


def typed(arguments: Sequence[str]) -> str:
    """The command as a user would type it."""
    shown = [os.path.relpath(a) if a.startswith(str(ROOT)) else a for a in arguments]
    if shown[:2] == ["-m", "regionroute.cli"]:
        return shlex.join(["regionroute", *shown[2:]])
    return shlex.join(["python", *shown])


def check_arguments(args: argparse.Namespace, least: Mapping[str, int]) -> None:
    """Finds numbers that are too small, and a folder `--out` that cannot be.

    Raises:
        UserError: there is one.
    """
    for name, number in least.items():
        value = getattr(args, name)
        if value is not None and value < number:
            raise UserError(f"--{name} {value}: must be at least {number}")
    try:
        check_output_folder(args.out)
    except UserError as error:
        raise UserError(f"--out: {error}") from error
