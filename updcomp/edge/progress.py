"""How far a command has come: one line on the terminal while it reads models, for what takes longer than seconds.

The readers of files count bytes wherever they are called from, so that no function on the way needs to hand a bar on.
A device has no package for bars, and one line needs none.
"""

import contextlib
import shutil
import sys
import threading
import time
from collections.abc import Iterator
from typing import TextIO

DELAY = 2.0  # seconds before anything is shown
_BETWEEN = 0.25  # seconds
_WIDTH = 24  # characters of the bar
_CLEAR = "\r\x1b[K"
_UNITS = ("B", "kB", "MB", "GB", "TB")


class _Work:
    """What is being done."""

    def __init__(self, what: str, total: int | None) -> None:
        self.done = 0  # bytes read
        self._what, self._total, self._began = what, total, time.monotonic()

    def line(self) -> str:
        """For people."""
        seconds = f"{time.monotonic() - self._began:.0f} s"
        if not self._total:
            return f"{self._what}: read {size(self.done)}, {seconds}"
        share = min(1.0, self.done / self._total)
        bar = "#" * int(_WIDTH * share)
        return f"{self._what} [{bar:-<{_WIDTH}}] {share:4.0%} of {size(self._total)}, {seconds}"


_current: _Work | None = None


def advance(count: int) -> None:
    """Counts bytes of a model that were read."""
    if _current is not None:
        _current.done += count


@contextlib.contextmanager
def shown(what: str, total: int | None = None) -> Iterator[None]:
    """Shows how far the work within has come, after some seconds and if standard error is a terminal.

    Args:
      what: is done, in a word.
      total: bytes of models that it reads in all, each time that they are read; None where that is not known.

    Yields:
      Nothing; the line is gone in the end.
    """
    global _current
    stream = sys.stderr
    if stream is None or not stream.isatty() or _current is not None:
        yield
        return
    _current, ended = _Work(what, total), threading.Event()
    thread = threading.Thread(target=_show, args=(_current, stream, ended), daemon=True)
    try:
        # A process that may have no more threads does without.
        with contextlib.suppress(RuntimeError):
            thread.start()
        yield
    finally:
        _current = None
        ended.set()
        if thread.ident is not None:
            thread.join()


def _show(work: _Work, stream: TextIO, ended: threading.Event) -> None:
    # A terminal that hung up cannot be told.
    with contextlib.suppress(OSError, ValueError):
        if ended.wait(DELAY):
            return
        while not ended.wait(_BETWEEN):
            width = shutil.get_terminal_size().columns - 1
            stream.write(_CLEAR + work.line()[:width])
            stream.flush()
        stream.write(_CLEAR)
        stream.flush()


def size(count: int) -> str:
    """Bytes for people.

    >>> size(999), size(1_200_000)
    ('999 B', '1.2 MB')
    """
    power = min((len(str(count)) - 1) // 3, len(_UNITS) - 1)
    return f"{count / 1000**power:.{1 if power else 0}f} {_UNITS[power]}"
