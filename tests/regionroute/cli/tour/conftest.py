"""Stages that do not run."""

from pathlib import Path

import pytest

from regionroute.files import write_text


@pytest.fixture
def leave_pairs():
    """Leaves what a command that makes pairs would: a manifest, unless there is one."""

    def leave(command):
        if {"label", "scenes"} & set(command):
            manifest = Path(command[command.index("--out") + 1]) / "manifest.jsonl"
            if not manifest.exists():
                write_text(manifest, "")

    return leave
