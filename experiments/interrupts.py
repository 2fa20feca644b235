"""Ctrl-C that is never lost: what is raised while the garbage collector runs goes nowhere but to stderr."""

import gc
import signal
from types import FrameType

_running: list[str] = []  # the phase of a collection that runs now


def _watch(phase: str, info: dict[str, int]) -> None:
    _running[:] = [phase] if phase == "start" else []


def _within_callback(frame: FrameType | None) -> bool:
    """Whether a callback of the collector is being called; those of its end come after `_watch` (JAX has one)."""
    callbacks = {getattr(callback, "__code__", None) for callback in gc.callbacks}
    while frame is not None:
        if frame.f_code in callbacks:
            return True
        frame = frame.f_back
    return False


def interrupt(number: int, frame: FrameType | None) -> None:
    """A signal handler that raises KeyboardInterrupt, a moment later where it would be lost."""
    if _running or _within_callback(frame):
        signal.setitimer(signal.ITIMER_REAL, 0.01)
    else:
        raise KeyboardInterrupt


def install() -> None:
    """Makes this process handle Ctrl-C so."""
    gc.callbacks.insert(0, _watch)
    for number in (signal.SIGINT, signal.SIGALRM):
        signal.signal(number, interrupt)
