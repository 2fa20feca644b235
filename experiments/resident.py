"""Memory of this process that is in use, as Linux tells it."""

import ctypes
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_PEAK = "/proc/self/clear_refs"  # takes "5": the most that was resident starts anew

ALLOCATOR = {"MALLOC_MMAP_THRESHOLD_": "65536"}
"""Environment of processes that are measured: glibc gives buffers that are freed back to the system at once."""


_highest = 0  # bytes, before the last time that the peak started anew


class Rise:
    """Bytes beyond what was resident before; None where the system does not tell."""

    peak: int | None = None  # the most at a time
    after: int | None = None  # what stays in the end


def tells() -> bool:
    """Whether the system tells peaks."""
    return os.access(_PEAK, os.W_OK)


def restart() -> int:
    """Lets the peak start anew.

    Returns:
      Bytes that are resident, once what is free is given back.
    """
    global _highest
    _trim()
    _highest = most()
    Path(_PEAK).write_text("5")
    return _status("VmRSS")


def peak() -> int:
    """The most that was resident since the peak started anew."""
    return _status("VmHWM")


@contextmanager
def watched() -> Iterator[Rise]:
    """Measures the block within.

    Yields:
      A `Rise`, complete at the end of the block.
    """
    rise = Rise()
    if not tells():
        yield rise
        return
    before = restart()
    yield rise
    rise.peak = peak() - before
    rise.after = restart() - before


def most() -> int:
    """The most that was resident since the process began; 0 where the system does not tell."""
    return max(_highest, peak())


def available() -> int:
    """What the machine has left, in bytes; 0 where the system does not tell."""
    return _field(Path("/proc/meminfo"), "MemAvailable")


def _trim() -> None:
    """Gives what is free back to the system, where its C library can do so."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim:
        trim(0)


def _status(field: str) -> int:
    return _field(Path("/proc/self/status"), field)


def _field(path: Path, field: str) -> int:
    found = re.search(rf"{field}:\s+(\d+) kB", path.read_text() if path.exists() else "")
    return int(found[1]) * 1024 if found else 0
