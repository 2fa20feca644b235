"""What a target is, and what may come of an input: a model, or one line of `updcomp.Error`."""

import random
import traceback
import tracemalloc
from collections.abc import Callable, Hashable, Sequence
from pathlib import Path
from typing import NamedTuple

from tests.fuzz import coverage, mutation
from updcomp.wire import errors

LONGEST_MESSAGE = 2100
MEMORY = 80 << 20  # bytes beside a model of a few kB: the default budget allows 64 MiB


class Target(NamedTuple):
    """A reader of bytes from elsewhere."""

    run: Callable[[bytes], str]  # `accepted`, or what `refused` says; anything that it raises is a finding
    seeds: Callable[[], list[bytes]]  # valid inputs
    repair: Callable[[bytes], bytes] = bytes  # checksums and sizes made right, so that an input reaches behind them
    edit: Callable[[bytes, random.Random], bytes] | None = None  # a change that knows the format
    words: tuple[bytes, ...] = ()  # what means something to the reader
    content: Callable[[bytes], Hashable] | None = None  # of an accepted input: equal for two that say the same
    prepare: Callable[[], object] = object  # what a process does once, before it is watched


class Finding(NamedTuple):
    """What must not happen."""

    kind: str  # the same for two inputs that show the same defect
    text: str


class Seen(NamedTuple):
    """What came of an input."""

    outcome: str
    finding: Finding | None
    trace: coverage.Trace


def refused(error: errors.Error) -> str:
    """The error's class, where its message is one line of bounded length."""
    text = str(error)
    assert text, "an empty message"
    assert len(text.splitlines()) == 1, f"a message of {len(text.splitlines())} lines: {text[:200]!r}"
    assert len(text) <= LONGEST_MESSAGE, f"a message of {len(text)} characters: {text[:200]!r}"
    return type(error).__name__


def child(target: Target, data: bytes, rng: random.Random, others: Sequence[bytes] = ()) -> bytes:
    """A changed copy of an input: as bytes, by what the format says, or both; repaired but for one in sixteen."""
    how = rng.randrange(4) if target.edit else 0
    if target.edit and how:
        data = target.edit(data, rng)
    if how < 2:
        data = mutation.mutate(data, rng, others, target.words)
    return target.repair(data)[: mutation.MOST] if rng.randrange(16) else data


def judge(target: Target, data: bytes) -> tuple[str, Finding | None]:
    """What came of an input, unwatched: (outcome, finding)."""
    try:
        return target.run(data), None
    except Exception as error:
        return "finding", finding_of(error)


def finding_of(error: BaseException) -> Finding:
    """Names a defect by the error's class and the innermost place in the project."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if "/updcomp/" in frame.filename or "/tests/" in frame.filename]
    place = f"{Path(own[-1].filename).name}:{own[-1].name}" if own else "?"
    return Finding(f"{type(error).__name__} in {place}", "".join(traceback.format_exception(error)).rstrip())


def watch(target: Target, data: bytes) -> Seen:
    """Runs an input with its edges and lines counted."""
    answer = coverage.traced(lambda: target.run(data))
    if answer.error:
        return Seen("finding", finding_of(answer.error), answer.trace)
    return Seen(str(answer.value), None, answer.trace)


def memory_of(target: Target, data: bytes) -> tuple[int, Finding | None]:
    """Runs an input with its memory counted: (bytes at the peak, a finding if that is too much)."""
    tracing = tracemalloc.is_tracing()
    if not tracing:
        tracemalloc.start()
    try:
        tracemalloc.reset_peak()
        before = tracemalloc.get_traced_memory()[0]
        outcome, _ = judge(target, data)
        memory = tracemalloc.get_traced_memory()[1] - before
    finally:
        if not tracing:
            tracemalloc.stop()
    if memory <= MEMORY:
        return memory, None
    return memory, Finding(f"memory after {outcome}", f"{memory / 2**20:.0f} MiB, more than {MEMORY >> 20}")
