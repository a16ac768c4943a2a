import contextvars
import threading

import pytest

from regionroute.errors import UserError
from regionroute.studio.device import DeviceThread

SESSION = contextvars.ContextVar("session", default=-1)


def test_work_of_all_threads_is_done_on_one_in_the_callers_context() -> None:
    device, found = DeviceThread(), {}

    def ask(number: int) -> None:
        SESSION.set(number)
        found[number] = device.do(lambda: (threading.current_thread(), SESSION.get()))

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len({thread for thread, _ in found.values()}) == 1
    assert {number: seen for number, (_, seen) in found.items()} == {n: n for n in range(8)}
    assert next(iter(found.values()))[0] not in threads


def test_errors_reach_the_caller_and_the_thread_lives_on() -> None:
    device = DeviceThread()

    def fail() -> None:
        raise UserError("no such base")

    with pytest.raises(UserError, match="no such base"):
        device.do(fail)
    assert device.do(lambda: device.do(lambda: 3)) == 3
