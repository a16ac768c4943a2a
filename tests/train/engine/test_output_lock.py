"""Two runs in one output folder, and an output folder that is deleted during a run."""

import os
import shutil
import signal
import subprocess
import sys

import pytest

from regionroute.errors import UserError
from train.engine.output_lock import LOCK_FILE, locked_output
from train.monitor.logs import append_row, rewind

HOLDER = """
import sys, time
from pathlib import Path
from train.engine.output_lock import locked_output
with locked_output(Path(sys.argv[1])):
    print("locked", flush=True)
    time.sleep(600)
"""


def test_the_holder_is_named_and_its_death_frees_the_folder(tmp_path):
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout.readline() == "locked\n"
        with pytest.raises(UserError) as caught, locked_output(tmp_path):
            pass
        assert str(caught.value).startswith(f"{tmp_path}: another run is writing to this folder")
        assert f"process {process.pid} on " in str(caught.value)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdout.close()
    assert (tmp_path / LOCK_FILE).read_text()  # a stale file, which holds nothing
    with locked_output(tmp_path):
        assert str(os.getpid()) in (tmp_path / LOCK_FILE).read_text()
    assert not (tmp_path / LOCK_FILE).exists()


def test_the_lock_is_released_at_the_end_and_after_an_error(tmp_path):
    with pytest.raises(KeyError), locked_output(tmp_path):
        raise KeyError
    with locked_output(tmp_path), pytest.raises(UserError, match=f"process {os.getpid()} "):
        locked_output(tmp_path).__enter__()
    with locked_output(tmp_path):
        pass


def test_a_second_run_in_the_folder_is_refused_and_touches_nothing(runs, capsys):
    output = runs.output("run")
    with locked_output(output):
        assert runs("run", "train.steps=1") == 2
        assert [path.name for path in output.iterdir()] == [LOCK_FILE]
    error = capsys.readouterr().err
    assert f"process {os.getpid()} on " in error
    assert "choose another output" in error
    assert runs("run", "train.steps=1") == 0


@pytest.mark.parametrize("at", [2, 5])  # in the middle, and in the last step
def test_a_deleted_output_folder_ends_the_run_with_an_error(runs, monkeypatch, capsys, at):
    from train.trainer import Trainer

    step = Trainer._step

    def deleting(self, number, *rest):
        if number == at:
            shutil.rmtree(self.output)
        return step(self, number, *rest)

    monkeypatch.setattr(Trainer, "_step", deleting)
    assert runs("run", "train.trackers=[]") == 2
    error = capsys.readouterr().err
    assert f"{runs.output('run') / 'losses.jsonl'}: this file was deleted during the run" in error
    assert not (runs.output("run") / "experts").exists()


def test_a_deleted_log_is_not_started_anew(tmp_path):
    log = tmp_path / "run" / "log.jsonl"
    rewind(log, 0)
    append_row(log, {"step": 1})
    shutil.rmtree(log.parent)
    log.parent.mkdir()
    with pytest.raises(UserError, match="deleted during the run"):
        append_row(log, {"step": 2})
