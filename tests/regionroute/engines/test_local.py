"""Tasks in processes of this machine."""

import functools
import signal

import pytest

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
