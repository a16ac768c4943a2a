"""The one thread of a server that runs networks."""

from __future__ import annotations

import contextvars
import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, TypeVar

Result = TypeVar("Result")


class DeviceThread:
    """Does one thing at a time, in the order in which it is asked, always on the same thread.

    Gradio serves requests from up to 40 threads. Each thread that ever ran a network keeps some
    30 MB: what its part of the allocator holds, and a team of OpenMP threads.
    """

    def __init__(self) -> None:
        self._waiting: queue.SimpleQueue[tuple[Future[Any], Callable[[], Any]]]
        self._waiting = queue.SimpleQueue()
        # A daemon, as Gradio's threads are: a server that is stopped waits for no edit.
        self._thread = threading.Thread(target=self._work, name="device", daemon=True)
        self._thread.start()

    def do(self, work: Callable[[], Result]) -> Result:
        """What `work` returns or raises; it runs in the caller's context.

        Context variables are those of the caller: Gradio's progress is one. From inside `work`,
        this is a plain call.
        """
        if threading.current_thread() is self._thread:
            return work()
        context, answer = contextvars.copy_context(), Future[Result]()
        self._waiting.put((answer, lambda: context.run(work)))
        return answer.result()

    def _work(self) -> None:
        while True:
            _answer(*self._waiting.get())


def _answer(answer: Future[Any], work: Callable[[], Any]) -> None:
    try:
        answer.set_result(work())
    except BaseException as error:
        answer.set_exception(error)
