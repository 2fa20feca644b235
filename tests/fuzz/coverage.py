"""Which edges of `updcomp.wire` and `updcomp.edge` a call takes, and how many lines: the same in every run."""

import collections
import sys
import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

_ROOT = Path(__file__).parents[2]
_WATCHED = (f"{_ROOT}/updcomp/wire/", f"{_ROOT}/updcomp/edge/")
_T = TypeVar("_T")

Edge = tuple[str, int, int]  # file below the root, line before (0 at the start of a call), line


class Endless(BaseException):
    """More lines than allowed; no `except Exception` of the code under test stops it."""


class Trace:
    """Counts of edges of one call."""

    def __init__(self, most: int) -> None:
        self.lines = 0
        self._most = most
        self._counts: dict[str, dict[int, int]] = collections.defaultdict(dict)

    def counter(self, file: str) -> Callable[[int, int], None]:
        """What counts an edge of a file, from one line to another."""
        counts = self._counts[file]

        def hit(before: int, line: int) -> None:
            edge = before << 16 | line
            counts[edge] = counts.get(edge, 0) + 1
            self.lines += 1
            if self.lines > self._most:
                raise Endless(f"more than {self._most} lines")

        return hit

    @property
    def edges(self) -> set[Edge]:
        """Every edge that was taken."""
        return {(file, edge >> 16, edge & 0xFFFF) for file, counts in self._counts.items() for edge in counts}

    def features(self) -> set[object]:
        """Every edge with the power of two below its count, so that a loop that runs longer is something new."""
        return {
            (file, edge, count.bit_length()) for file, counts in self._counts.items() for edge, count in counts.items()
        }


class Answer(NamedTuple):
    """What a traced call gave."""

    trace: Trace
    value: Any  # what it returned
    error: BaseException | None  # what it raised


def traced(call: Callable[[], object], most: int = 3_000_000) -> Answer:
    """Calls, and says which edges it took.

    Args:
      call: without arguments.
      most: lines that it may execute.

    Returns:
      The trace, with what the call returned or raised; `Endless` where it executed more lines.
    """
    trace = Trace(most)
    watch = _monitoring if sys.version_info >= (3, 12) else _settrace
    try:
        with watch(trace):
            value = call()
    except (Exception, Endless) as error:
        return Answer(trace, None, error)
    return Answer(trace, value, None)


def _name(code: types.CodeType) -> str | None:
    """The file of the code below the root, or None where it is not watched."""
    return code.co_filename[len(str(_ROOT)) + 1 :] if code.co_filename.startswith(_WATCHED) else None


@contextmanager
def _settrace(trace: Trace) -> Iterator[None]:
    def called(frame: types.FrameType, _event: str, _argument: object) -> Any:
        file = _name(frame.f_code)
        if file is None:
            return None
        hit, before = trace.counter(file), 0

        def step(frame: types.FrameType, event: str, _argument: object) -> Any:
            nonlocal before
            if event == "line":
                hit(before, frame.f_lineno)
                before = frame.f_lineno
            return step

        return step

    outer = sys.gettrace()
    sys.settrace(called)
    try:
        yield
    finally:
        sys.settrace(outer)


@contextmanager
def _monitoring(trace: Trace) -> Iterator[None]:
    monitoring: Any = sys.monitoring  # type: ignore[attr-defined,unused-ignore]
    events, tool = monitoring.events, 4
    before: dict[types.CodeType, int] = {}

    def started(code: types.CodeType, _offset: int) -> Any:
        before[code] = 0
        return None if _name(code) else monitoring.DISABLE

    def step(code: types.CodeType, line: int) -> Any:
        file = _name(code)
        if file is None:
            return monitoring.DISABLE
        trace.counter(file)(before.get(code, 0), line)
        before[code] = line
        return None

    monitoring.use_tool_id(tool, "updcomp fuzzing")
    monitoring.register_callback(tool, events.PY_START, started)
    monitoring.register_callback(tool, events.LINE, step)
    monitoring.set_events(tool, events.PY_START | events.LINE)
    try:
        yield
    finally:
        monitoring.set_events(tool, 0)
        monitoring.free_tool_id(tool)
