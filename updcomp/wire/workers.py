"""Work in threads: NumPy does most of it without the interpreter's lock."""

import collections
import contextlib
import os
import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from typing import Any, Generic, TypeVar

_AHEAD = 1 << 25  # bytes of leaves that are worked on at once, beside the first of them

Made = TypeVar("Made")
Given = TypeVar("Given")


def cores() -> int:
    """How many threads work at once."""
    return os.cpu_count() or 1


class _Threads:
    """Some threads that work; a process that may have no more of them does without."""

    def __init__(self, count: int) -> None:
        self._jobs: queue.SimpleQueue[tuple[Future[Any], Callable[[], Any]] | None] = queue.SimpleQueue()
        self._threads: list[threading.Thread] = []
        with contextlib.suppress(RuntimeError):
            for _ in range(count if count > 1 else 0):
                thread = threading.Thread(target=self._work, daemon=True)
                thread.start()
                self._threads.append(thread)

    def submit(self, work: Callable[[], Made]) -> "Future[Made]":
        job: Future[Made] = Future()
        if self._threads:
            self._jobs.put((job, work))
        else:
            _do(job, work)
        return job

    def close(self) -> None:
        """What has not begun is dropped."""
        with contextlib.suppress(queue.Empty):
            while True:
                self._jobs.get_nowait()
        for _ in self._threads:
            self._jobs.put(None)
        for thread in self._threads:
            thread.join()

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            _do(*job)
            del job  # and with it the leaf that it holds, while the thread waits for the next


def _do(job: "Future[Any]", work: Callable[[], Any]) -> None:
    try:
        job.set_result(work())
    except BaseException as error:
        job.set_exception(error)


class Ahead(Generic[Made]):
    """Results of work on leaves, in order, some of it done ahead in threads; not much of it is held at once."""

    def __init__(self) -> None:
        """Without work."""
        self._threads: _Threads | None = None
        self._queue: collections.deque[tuple[int, Future[Made]]] = collections.deque()

    def add(self, size: int, work: Callable[[], Made]) -> None:
        """Adds work on so many bytes."""
        if self._threads is None:
            self._threads = _Threads(cores())
        self._queue.append((size, self._threads.submit(work)))

    def done(self, size: int | None) -> Iterator[Made]:
        """The next results: as many as must be waited for before work on so many bytes more; None: all."""
        while self._queue:
            if size is not None and size + sum(held for held, _ in self._queue) <= _AHEAD:
                return
            yield self._queue.popleft()[1].result()

    def close(self) -> None:
        """Ends the threads; work that has not begun is dropped."""
        if self._threads is not None:
            self._threads.close()


def each(function: Callable[[Given], Made], given: Sequence[Given], most: int) -> Iterator[Made]:
    """The function's results, in order, made in several threads; no more results are held than threads work at once.

    Args:
      function: of one of them.
      given: its arguments.
      most: threads.

    Yields:
      A result each.
    """
    count = min(len(given), cores(), most)
    if count < 2:
        yield from map(function, given)
        return
    threads = _Threads(count)
    try:
        running: collections.deque[Future[Made]] = collections.deque()
        for one in given:
            if len(running) == count:
                yield running.popleft().result()
            running.append(threads.submit(lambda one=one: function(one)))  # type: ignore[misc]
        while running:
            yield running.popleft().result()
    finally:
        threads.close()
