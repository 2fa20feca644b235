"""How long JAX compiles, so that times of training are told apart from it."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

import jax

_EVENTS = ("jaxpr_trace_duration", "jaxpr_to_mlir_module_duration", "backend_compile_duration")


class Compilation:
    """What was compiled within a `measured` block."""

    def __init__(self) -> None:
        """Nothing yet."""
        self.count = 0  # compiled functions
        self._intervals: list[tuple[float, float]] = []  # disjoint, in order

    @property
    def seconds(self) -> float:
        """Time of tracing, lowering and compiling; what overlaps counts once."""
        return sum(end - start for start, end in self._intervals)

    def add(self, event: str, seconds: float) -> None:
        """Takes something that has just ended."""
        end = time.perf_counter()
        self.count += event.endswith("backend_compile_duration")
        # Traces nest: an outer one ends after those within it and covers them.
        while self._intervals and self._intervals[-1][0] >= end - seconds:
            self._intervals.pop()
        start = max(end - seconds, self._intervals[-1][1]) if self._intervals else end - seconds
        self._intervals.append((start, end))


_open: list[Compilation] = []


def _listen(event: str, duration_secs: float, **kwargs: str | int) -> None:
    if event.endswith(_EVENTS):
        for compilation in _open:
            compilation.add(event, duration_secs)


@contextmanager
def measured() -> Iterator[Compilation]:
    """Measures the compilation within the block.

    Yields:
      A `Compilation`, complete at the end of the block.

    >>> with measured() as compilation:
    ...     _ = jax.jit(lambda x: x * 1.0625 + 3)(1.0)
    >>> compilation.count, compilation.seconds > 0
    (1, True)
    """
    if not _open:
        jax.monitoring.register_event_duration_secs_listener(_listen)
    _open.append(compilation := Compilation())
    try:
        yield compilation
    finally:
        _open.remove(compilation)
        if not _open:
            jax.monitoring.unregister_event_duration_listener(_listen)
