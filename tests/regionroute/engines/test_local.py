"""Tasks in processes of this machine."""

import functools
import os
import signal
from types import SimpleNamespace

import pytest

from regionroute.editing.batch import ChunkWorker
from regionroute.editing.request import EditOptions
from regionroute.engines.base import EngineSettings
from regionroute.engines.local import map_in_order
from regionroute.engines.run import run
from regionroute.errors import UserError


def test_one_worker_is_made_before_the_work_and_only_for_work():
    made = []

    def make():
        made.append(1)
        return lambda number: number + 1

    found = run([1, 2, 3], make, EngineSettings())
    assert made == [1]
    assert list(found) == [(0, 2), (1, 3), (2, 4)]
    assert list(run([], make, EngineSettings())) == []
    assert made == [1]


def test_processes_make_their_worker_once_and_answer_in_order():
    make = functools.partial(functools.partial, pow, 2)  # makes a function: 2 to the power of
    found = list(run([2, 3, 4], make, EngineSettings(workers=2), block=2))
    assert found == [(0, 4), (1, 8), (2, 16)]
    assert list(map_in_order(abs, [-1, -2], 2)) == [1, 2]


def test_a_local_worker_that_dies_is_a_sentence():
    with pytest.raises(UserError, match="a worker process died"):
        list(map_in_order(signal.raise_signal, [signal.SIGKILL, signal.SIGKILL], 2))


def test_an_unknown_engine_is_refused():
    with pytest.raises(UserError, match="use one of local, ray"):
        EngineSettings("spark")


def test_workers_share_the_memory(monkeypatch):
    """On Ray without GPUs all may be on one machine, one for each core."""
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    assert EngineSettings().memory_share == 1
    assert EngineSettings(workers=4).memory_share == 0.25
    assert EngineSettings("ray").memory_share == 1 / 8
    assert EngineSettings("ray", workers=2).memory_share == 0.5
    assert EngineSettings("ray", workers=2, gpus=1).memory_share == 1
    assert EngineSettings("ray", gpus=0.25).memory_share == 0.25


def test_an_editing_worker_plans_with_its_share():
    worker = ChunkWorker(SimpleNamespace, EditOptions(), False, EngineSettings(workers=2))
    assert worker.editor.memory_share == 0.5
