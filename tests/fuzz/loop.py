"""Coverage-guided fuzzing without any other package: the same inputs for the same seed."""

import collections
import random
import time
from collections.abc import Callable, Iterable
from typing import NamedTuple

from tests.fuzz import mutation, target

_MEASURED = 8  # the memory of so many inputs is measured once, beside that of all that are new


class Report(NamedTuple):
    """What a run found."""

    pool: list[bytes]  # inputs that took something new, in order
    inputs: int
    outcomes: collections.Counter[str]
    findings: dict[str, tuple[bytes, target.Finding]]  # the first input of each kind
    twins: list[tuple[bytes, bytes]]  # different inputs that are accepted and say the same
    lines: int  # the most that an input executed
    memory: int  # the most bytes that an input took


def fuzz(
    tested: target.Target, inputs: Iterable[bytes], *, count: int | None = None, seconds: float | None = None, seed: int
) -> Report:
    """Changes inputs, and keeps those that take an edge, or a power of two of its counts, that none took before.

    Args:
      tested: the target.
      inputs: to begin with, beside the target's seeds.
      count: number of changed inputs.
      seconds: or the time for them.
      seed: where chance begins.

    Returns:
      What was found.
    """
    rng, session = random.Random(seed), _Session(tested)
    tested.prepare()
    for data in [*map(tested.repair, tested.seeds()), *inputs]:
        session.run(data)
    first = session.inputs
    goes_on = _until(seconds) if seconds is not None else lambda: session.inputs < first + (count or 0)
    while goes_on():
        # A new input is changed more often than an old one.
        at = len(session.pool) - 1 - int(len(session.pool) * rng.random() ** 2)
        session.run(target.child(tested, session.pool[at] if session.pool else b"", rng, session.pool))
    return session.report()


def _until(seconds: float) -> Callable[[], bool]:
    end = time.monotonic() + seconds
    return lambda: time.monotonic() < end


class _Session:
    """What was seen so far."""

    def __init__(self, tested: target.Target) -> None:
        self._tested = tested
        self._features: set[object] = set()
        self._contents: dict[object, bytes] = {}
        self._findings: dict[str, tuple[bytes, target.Finding]] = {}
        self._outcomes: collections.Counter[str] = collections.Counter()
        self._twins: list[tuple[bytes, bytes]] = []
        self._lines = self._memory = 0
        self.pool: list[bytes] = []
        self.inputs = 0

    def run(self, data: bytes) -> None:
        """Runs an input and notes what is new about it."""
        seen = target.watch(self._tested, data)
        self._outcomes[seen.outcome] += 1
        self._lines = max(self._lines, seen.trace.lines)
        self._note(data, seen.finding)
        features = seen.trace.features() | {seen.outcome}
        new = not features <= self._features
        if new or self.inputs % _MEASURED == 0:
            memory, finding = target.memory_of(self._tested, data)
            self._memory = max(self._memory, memory)
            self._note(data, finding)
        self.inputs += 1
        if new and not seen.finding and len(data) <= mutation.MOST:
            self._features |= features
            self.pool.append(data)
        if seen.outcome == "accepted" and self._tested.content:
            twin = self._contents.setdefault(self._tested.content(data), data)
            if twin != data and (twin, data) not in self._twins:
                self._twins.append((twin, data))

    def _note(self, data: bytes, finding: target.Finding | None) -> None:
        if finding:
            self._findings.setdefault(finding.kind, (data, finding))

    def report(self) -> Report:
        """What was found."""
        return Report(self.pool, self.inputs, self._outcomes, self._findings, self._twins, self._lines, self._memory)
