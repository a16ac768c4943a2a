"""Tasks on a Ray cluster of two nodes of this machine: order, deaths, mistakes."""

import functools
import os
import sys
from pathlib import Path

import pytest

from regionroute.engines.base import EngineSettings, Lost
from regionroute.engines.run import run
from regionroute.errors import UserError

ray = pytest.importorskip("ray", reason="Ray is not installed: pip install 'regionroute[ray]'")
# pytest imports tests under names that other processes do not know.
ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])


class Worker:
    """Squares numbers; dies at some of them while a file says so."""

    def __init__(self, folder, deaths):
        self.folder, self.deaths = Path(folder), deaths

    def __call__(self, number):
        tries = len(list(self.folder.glob(f"tried-{number}-*"))) + 1
        (self.folder / f"tried-{number}-{tries}").touch()
        if tries <= self.deaths.get(number, 0):
            os._exit(1)
        if number == 404:
            raise UserError("number 404 is missing")
        return number**2, os.getcwd()


def squares(tmp_path, numbers, deaths=None, block=1):
    make = functools.partial(Worker, str(tmp_path), deaths or {})
    return dict(run(numbers, make, EngineSettings("ray", workers=2), block=block))


@pytest.mark.slow
def test_a_block_survives_a_death_and_a_task_three_deaths_do_not(two_nodes, tmp_path):
    found = squares(tmp_path, list(range(8)), {2: 1, 5: 9}, block=4)
    lost = found.pop(5)
    assert isinstance(lost, Lost)
    assert "died 3 times" in lost.reason
    done = (0, 1, 2, 3, 4, 6, 7)
    assert found == {number: (number**2, os.getcwd()) for number in done}
    tries = [len(list(tmp_path.glob(f"tried-{number}-*"))) for number in range(8)]
    assert (tries[2], tries[5]) == (2, 3)


@pytest.mark.slow
def test_a_mistake_of_a_task_is_the_callers(two_nodes, tmp_path):
    with pytest.raises(UserError, match=r"^number 404 is missing$"):
        squares(tmp_path, [1, 404, 3])


def broken():
    raise UserError("weights.bin: no such file")


@pytest.mark.slow
def test_a_mistake_of_the_worker_is_the_callers(two_nodes):
    with pytest.raises(UserError, match=r"^weights.bin: no such file$"):
        dict(run([1, 2], broken, EngineSettings("ray", workers=2)))
