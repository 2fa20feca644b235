"""Several processes, each with some of the devices, run one program; the first of them writes the files.

Without `initialise` there is one process, and every function here does nothing of its own.
"""

import pickle
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils

from updcomp.wire.errors import Error

T = TypeVar("T")

_SHORT = 2**12  # bytes of a message that travels at once; longer ones follow in powers of two, so that few compile
_LENGTH = 8  # bytes


def initialise(
    coordinator_address: str | None = None, num_processes: int | None = None, process_id: int | None = None
) -> None:
    """Joins the other processes; called once in each, before anything else of JAX.

    It is `jax.distributed.initialize`, which finds everything by itself on Cloud TPU, Slurm and Open MPI.

    Args:
      coordinator_address: `host:port` of the first process, as the others reach it.
      num_processes: how many there are.
      process_id: of this one, from 0.

    Raises:
      Error: they cannot be joined.
    """
    try:
        jax.distributed.initialize(coordinator_address, num_processes, process_id)
    except (RuntimeError, ValueError) as error:
        advice = "give --coordinator_address, --num_processes and --process_id where they cannot be found"
        raise Error(f"--multihost: cannot join the other processes: {error}; {advice}") from None


def is_first() -> bool:
    """Whether this process writes rows, reports and update files."""
    return jax.process_index() == 0


def from_first(make: Callable[[], T]) -> T:
    """What a function gives in the first process, in all of them; the others do not call it.

    Args:
      make: what depends on files or time, or writes something; its value must pickle.

    Returns:
      Its value.

    Raises:
      Exception: what it raised, in all processes.
    """
    if jax.process_count() == 1:
        return make()
    answer: tuple[Any, Exception | None] = None, None
    if is_first():
        try:
            answer = make(), None
        except Exception as error:
            answer = None, error
    value, raised = pickle.loads(_broadcast(pickle.dumps(answer)))
    if raised is not None:
        raise raised
    return value


def write_together(parts: Iterator[T], write: Callable[[Iterator[T]], None]) -> None:
    """Writes what all processes have to gather together: the first one writes it, the others only gather.

    Args:
      parts: gives the same in all processes, by computations that take all of them.
      write: takes the parts in the first process.

    Raises:
      Exception: what writing raised, in all processes.
    """
    raised: list[Exception] = []
    if is_first():
        try:
            write(parts)
        except Exception as error:
            raised.append(error)
    for _ in parts:
        pass

    def raise_it() -> None:
        for error in raised:
            raise error

    from_first(raise_it)


class PreemptedError(Exception):
    """The machine of one of the processes is about to be taken away; what was saved goes on with the same command."""


def is_preempted(step: int) -> bool:
    """Whether a process was told by SIGTERM that its machine is about to be taken away; all learn it at the same step.

    Args:
      step: counts the calls of a training.
    """
    return jax.process_count() > 1 and bool(multihost_utils.reached_preemption_sync_point(step))


def _broadcast(message: bytes) -> bytes:
    """The first process's message."""
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
