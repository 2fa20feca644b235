"""Several processes, each with some of the devices, run one program; the first of them writes the files.

Without `initialise` there is one process, and every function here does nothing of its own. With several, each function
is a collective: all processes call it, at the same place of the program.
"""

import pickle
import signal
import threading
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils

from updcomp.wire.errors import Error

T = TypeVar("T")

_SHORT = 2**12  # bytes of a message that travels at once; longer ones follow in powers of two, so that few compile
_LENGTH = 8  # bytes
_SECONDS_TO_END = 30  # that processes wait for each other at the end, where one may have failed

_terminated = threading.Event()  # by a signal
_in_first = threading.Event()  # while the first process works for all


class PreemptedError(Exception):
    """One of the processes has to end, as its machine is about to be taken away; the same command goes on."""


class _Outcome(NamedTuple):
    value: Any
    error: Exception | None


def initialise(
    coordinator_address: str | None = None, num_processes: int | None = None, process_id: int | None = None
) -> None:
    """Joins the other processes; called once in each, before anything else of JAX.

    It is `jax.distributed.initialize`, which finds everything by itself on Cloud TPU, Slurm and Open MPI. SIGTERM and
    Ctrl-C then end this process after the epoch, when trainings with checkpoints have saved; see `PreemptedError`. A
    second one does not wait.

    Args:
      coordinator_address: `host:port` of the first process, as the others reach it.
      num_processes: how many there are.
      process_id: of this one, from 0.

    Raises:
      Error: they cannot be joined.
    """
    if coordinator_address is not None and ":" not in coordinator_address:
        raise Error(f"coordinator_address: expected host:port, found {coordinator_address!r}")
    jax.config.update("jax_enable_preemption_service", False)  # counts steps, which begin anew in each training
    try:
        jax.distributed.initialize(
            coordinator_address, num_processes, process_id, shutdown_timeout_seconds=_SECONDS_TO_END
        )
    except (RuntimeError, ValueError) as error:
        advice = "say coordinator_address, num_processes and process_id where they cannot be found"
        raise Error(f"cannot join the other processes: {' '.join(str(error).split())}; {advice}") from None
    signal.signal(signal.SIGTERM, _terminate)
    signal.signal(signal.SIGINT, _terminate)


def _terminate(number: int, frame: Any) -> None:
    """A signal handler: all processes end after this epoch; a second signal does not wait for it."""
    if _terminated.is_set() and number == signal.SIGINT:
        raise KeyboardInterrupt
    if _terminated.is_set():
        signal.signal(number, signal.SIG_DFL)
        signal.raise_signal(number)
    _terminated.set()


def is_first() -> bool:
    """Whether this process writes rows, reports and update files."""
    return jax.process_index() == 0


def from_first(make: Callable[[], T]) -> T:
    """What a function gives in the first process, in all of them; the others do not call it.

    Args:
      make: what depends on files or time, or writes something; its value must pickle, and nothing in it may be a
        collective.

    Returns:
      Its value.

    Raises:
      Exception: what it raised, in all processes.
    """
    if jax.process_count() == 1:
        return make()
    return _shared(_outcome(make) if is_first() else None)


def write_together(parts: Iterator[T], write: Callable[[Iterator[T]], None]) -> None:
    """Writes in the first process what all of them make together.

    Args:
      parts: all processes iterate over it, since making a part is a collective.
      write: takes the parts in the first process.

    Raises:
      Exception: what writing raised, in all processes.
    """
    if jax.process_count() == 1:
        write(parts)
        return
    outcome = _outcome(lambda: write(parts), collective=True) if is_first() else None
    for _ in parts:  # also what is left after an error
        pass
    _shared(outcome)


def in_all(make: Callable[[], T]) -> T:
    """What a function gives in each process; where it raises in one of them, all raise.

    Args:
      make: what a process does alone, such as reading its files.

    Returns:
      Its value in this process.

    Raises:
      Exception: what it raised in this process.
      Error: it raised in another one; says in which.
    """
    if jax.process_count() == 1:
        return make()
    outcome = _outcome(make)
    failed = np.flatnonzero(_gathered(outcome.error is not None))
    if outcome.error is not None:
        raise outcome.error
    if len(failed):
        raise Error(f"process {failed[0]} of {jax.process_count()} failed; its own output says why")
    return outcome.value


def in_any(flag: bool) -> bool:
    """Whether a flag is set in any process."""
    return bool(_gathered(flag).any()) if jax.process_count() > 1 else flag


def is_preempted() -> bool:
    """Whether a process was told, by SIGTERM or Ctrl-C, that it has to end; all learn it here."""
    return in_any(_terminated.is_set())


def _outcome(make: Callable[[], Any], *, collective: bool = False) -> _Outcome:
    """What a function gives or raises; a collective in it would wait for processes that do not call it."""
    _check_alone()
    if not collective:
        _in_first.set()
    try:
        return _Outcome(make(), None)
    except Exception as error:
        return _Outcome(None, error)
    finally:
        _in_first.clear()


def _check_alone() -> None:
    if _in_first.is_set():
        raise RuntimeError("expected no collective in what one process does alone, found one; call it before")


def _gathered(flag: bool) -> np.ndarray:
    """Bool (processes,): the flag of each."""
    _check_alone()
    return np.asarray(multihost_utils.process_allgather(np.array(flag)))


def _shared(outcome: _Outcome | None) -> Any:
    """The value of the first process's outcome, or its error, in all of them."""
    message = b""
    if outcome is not None:
        try:
            message = pickle.dumps(outcome)
        except Exception as unpicklable:
            found = outcome.value if outcome.error is None else outcome.error
            outcome = _Outcome(None, outcome.error or unpicklable)
            message = pickle.dumps(_Outcome(None, RuntimeError(f"expected what pickles, found {found!r}")))
    told = _broadcast(message)
    shared = outcome or pickle.loads(told)  # the first process keeps its own error, with its traceback
    if shared.error is not None:
        raise shared.error
    return shared.value


def _broadcast(message: bytes) -> bytes:
    """The first process's message."""
    _check_alone()
    head = np.zeros(_SHORT, np.uint8)
    first = len(message).to_bytes(_LENGTH, "little") + message[: _SHORT - _LENGTH]
    head[: len(first)] = np.frombuffer(first, np.uint8)
    found = np.asarray(multihost_utils.broadcast_one_to_all(head)).tobytes()
    length = int.from_bytes(found[:_LENGTH], "little")
    if length <= _SHORT - _LENGTH:
        return found[_LENGTH : _LENGTH + length]
    whole = np.zeros(1 << (length - 1).bit_length(), np.uint8)
    if is_first():
        whole[:length] = np.frombuffer(message, np.uint8)
    return np.asarray(multihost_utils.broadcast_one_to_all(whole)).tobytes()[:length]
