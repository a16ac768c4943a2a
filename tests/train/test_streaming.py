"""A streamed cache gives the losses of a local one, bit for bit, also after a kill."""

import os
import signal
import subprocess
import sys
import time

import fsspec
import pytest

from regionroute.cli.scenes import main as draw_scenes
from train.data.cache import Cache
from train.monitor.logs import Reporter

BLOCKS = ["data.shuffle_block=2", "data.shuffle_window=2", "data.shuffle_lanes=2"]
STEPS, KILLED_AFTER = 50, 20


@pytest.fixture
def memory():
    """The URL of an empty folder."""
    files = fsspec.filesystem("memory")
    if files.exists("/cache"):
        files.rm("/cache", recursive=True)
    return "memory://cache"


def numbers(rows):
    """What the steps computed, without their times."""
    return [
        {name: value for name, value in row.items() if "second" not in name and name != "time"}
        for row in rows
    ]


def test_losses_are_those_of_a_local_cache(runs, memory, monkeypatch):
    assert runs("local", *BLOCKS) == 0
    own = [f"data.cache={memory}", "data.stream_memory=1e-6", "data.workers=2"]
    with monkeypatch.context() as patch:
        original = Reporter.step

        def report(self, now, row):
            if now == 3:
                os.kill(os.getpid(), signal.SIGTERM)
            original(self, now, row)

        patch.setattr(Reporter, "step", report)
        assert runs("streamed", *BLOCKS, *own) == 143
    monkeypatch.setattr(Cache, "fill", lambda *a, **k: pytest.fail("encoded again"))
    assert runs("streamed", *BLOCKS, *own) == 0
    assert numbers(runs.losses("streamed")) == numbers(runs.losses("local"))
    assert not list(runs.output("streamed").rglob("texts"))  # no local copy of the cache


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_fifty_steps_of_nano_survive_kill_9(runs, tmp_path):
    scenes = tmp_path / "scenes"
    which = ["--train", "12", "--test", "1", "--only", "pixel-art,line-art", "--workers", "1"]
    assert draw_scenes(["--out", str(scenes), *which]) == 0
    common = [
        "base.name=nano", f"data.manifest={scenes}", f"train.steps={STEPS}", "train.save_every=10",
        f"data.cache={tmp_path / 'cache'}", "data.shuffle_block=6",
        "data.shuffle_window=2", "data.shuffle_lanes=2",
    ]  # fmt: skip
    assert runs("local", *common) == 0

    url = f"data.cache=file://{tmp_path}/remote"
    own = [*common, url, "data.stream_memory=1e-6", "data.workers=2"]
    command = [sys.executable, "-m", "train.run", *runs.arguments("streamed", *own)]
    losses = runs.output("streamed") / "losses.jsonl"
    started = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    while started.poll() is None:
        if losses.exists() and losses.read_text().count("\n") > KILLED_AFTER:
            started.kill()
        time.sleep(0.02)
    assert started.returncode == -signal.SIGKILL
    assert runs("streamed", *own) == 0
    rows = numbers(runs.losses("streamed"))
    assert [row["step"] for row in rows] == list(range(1, STEPS + 1))
    assert rows == numbers(runs.losses("local"))
