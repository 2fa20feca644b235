"""Rounds: make an update, send it if it is better, apply it on the device, read back what that holds."""

import functools
import math
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np

from updcomp import api, processes, trees
from updcomp.edge import files
from updcomp.methods import Method
from updcomp.protocol.device import Copy, Device, device_process, load, save
from updcomp.training.compilation import measured
from updcomp.training.tasks import Task
from updcomp.training.validation import score
from updcomp.trees import PyTree
from updcomp.wire import apply
from updcomp.wire.errors import WrongBaseError
from updcomp.wire.packet import Packet, plain_bytes


class Round(NamedTuple):
    """What one round gave.

    Attributes:
      update: the update file.
      update_bytes: its size.
      plain_bytes: the same as int32 positions and float32 numbers; 0 where nothing was sent.
      sent: False: training gave nothing better, so the update says that the device keeps what it holds.
      score: of the model that training gave, on the validation data, by the task's objective.
      held_score: of the model that the device held.
      variables: the model that the device wrote, in the form of the one before.
      trained: the model that training gave, as the wire would make it; the same where it was sent.
      train_seconds: making the packet, without compilation.
      compile_seconds: of tracing and compiling what makes it.
      encode_seconds: packet -> update file.
      apply_seconds: the device's process, its start included.
    """

    update: Path
    update_bytes: int
    plain_bytes: int
    sent: bool
    score: float
    held_score: float
    variables: PyTree
    trained: PyTree
    train_seconds: float
    compile_seconds: float
    encode_seconds: float
    apply_seconds: float


class Stage(NamedTuple):
    """What one of several rounds trains on, and from where.

    Attributes:
      samples: int (n,): indices of the training samples that have arrived by then.
      restart: True: the update is relative to the first model, not to what the device holds.
      method: makes the packet of this round; None: that of all rounds.
    """

    samples: np.ndarray
    restart: bool
    method: Method | None = None


Plan = Callable[[Sequence[bool]], Stage | None]
"""Whether each round so far sent something -> the next stage; None: that was the last."""


class NothingSentWarning(UserWarning):
    """An update was given up, as it is no better on the validation data than what the device holds."""


def run_round(
    key: jax.Array,
    method: Method,
    held: Copy,
    task: Task,
    *,
    base: Copy | None = None,
    update: str | Path,
    new: str | Path,
    device: Device = device_process,
    compact: bool = False,
) -> Round:
    """One round: train an update, send it if it beats what the device holds, apply it on the device.

    An update that does not have a higher score on the validation data is given up, with a `NothingSentWarning`: an
    empty one goes out, relative to what the device holds.

    Args:
      key: PRNG key.
      method: makes the packet.
      held: the model that the device holds.
      task: the new data, and how to train on them.
      base: the model that the update is relative to; default the held one.
      update: the update file to write.
      new: the model file that the device writes.
      device: applies the update.
      compact: whether the update's fingerprints are short, as in `updcomp.encode`.

    Returns:
      A `Round`; its `variables` are what the device holds now, the only parameters that accuracy is measured on.

    Raises:
      NonFiniteError: training diverged.
      Error: the device refuses the update.

    Paper: Qu et al., Deep Partial Updating (ECCV 2022), step 7 (send nothing).
    """
    base = base or held
    start = time.perf_counter()
    with measured() as compilation:
        packet = method(key, base.variables, task)
    seconds = time.perf_counter() - start
    model = trees.HostModel(base.variables)
    trained = trees.with_leaves(base.variables, apply.changed_leaves(packet, model))
    new_score, held_score = score(trained, task), score(held.variables, task)
    better = new_score > held_score or (math.isnan(held_score) and not math.isnan(new_score))
    sent = bool(packet.blocks) and better
    if not sent:
        found = f"its score on the validation data is {new_score:.6g}, that of the model held is {held_score:.6g}"
        warnings.warn(f"nothing is sent: {found}; train longer or at another rate", NothingSentWarning, stacklevel=2)
    packet, start_from = (packet, base) if sent else (Packet({}), held)
    done = deliver(packet, start_from, update, new, device=device, compact=compact)
    return done._replace(
        trained=trained,
        score=new_score,
        held_score=held_score,
        train_seconds=max(0.0, seconds - compilation.seconds),
        compile_seconds=compilation.seconds,
    )


def deliver(
    packet: Packet,
    base: Copy,
    update: str | Path,
    new: str | Path,
    *,
    device: Device = device_process,
    compact: bool = False,
) -> Round:
    """Sends a packet over the wire: encodes it into a file, has a device apply it, and reads back what it wrote.

    Args:
      packet: what a method made.
      base: the model that it is relative to.
      update: the update file to write.
      new: the model file that the device writes.
      device: applies the update.
      compact: whether the update's fingerprints are short, as in `updcomp.encode`.

    Returns:
      A `Round` with no training time and no scores.

    Raises:
      Error: the device refuses the update.
    """
    update, new = Path(update), Path(new)
    start = time.perf_counter()
    encoded = api.encode(packet, base.variables, compact=compact)
    processes.from_first(lambda: files.write_bytes(update, encoded))
    encoded_at = time.perf_counter()
    processes.from_first(lambda: device(base.file, update, new))
    applied_at = time.perf_counter()
    variables = load(new, base.variables).variables
    return Round(
        update=update,
        update_bytes=processes.from_first(lambda: update.stat().st_size),
        plain_bytes=plain_bytes(packet),
        sent=bool(packet.blocks),
        score=float("nan"),
        held_score=float("nan"),
        variables=variables,
        trained=variables,
        train_seconds=0.0,
        compile_seconds=0.0,
        encode_seconds=encoded_at - start,
        apply_seconds=applied_at - encoded_at,
    )


def run_rounds(
    key: jax.Array,
    method: Method,
    first: Copy,
    task: Task,
    stages: Sequence[Stage] | Plan,
    *,
    folder: str | Path,
    done: int = 0,
    device: Device = device_process,
    compact: bool = False,
) -> Iterator[Round]:
    """Rounds, one after another, as a device meets them: each starts from what it holds, or from its first model.

    Args:
      key: PRNG key; each round has its own from it.
      method: makes the packets of all stages that do not name another.
      first: the model that the device was deployed with and keeps: the base of updates after a restart.
      task: how to train; each stage says on which samples.
      stages: one a round; or a function of whether each round so far sent something, which gives the next stage, and
        None after the last. Of the rounds done, their files say it.
      folder: gets `round-000.upd` and so on; the device's model lies beside the first one, its name ending in `-held`.
      done: how many rounds have their files there; those are replayed, not trained again.
      device: applies the updates.
      compact: whether the updates' fingerprints are short, as in `updcomp.encode`.

    Yields:
      A `Round` for each round from `done` on.

    Raises:
      Error: the device refuses an update, or the files of the rounds done are not one chain from the first model.
    """
    folder = Path(folder)
    processes.from_first(lambda: folder.mkdir(parents=True, exist_ok=True))
    held, held_file = first, first.file.with_stem(f"{first.file.stem}-held")
    new = first.file.with_stem(f"{first.file.stem}-new")
    plan, sent = _plan_of(stages), list[bool]()

    def update_of(number: int) -> Path:
        return folder / f"round-{number:03}.upd"

    def done_before() -> Iterator[bytes]:
        for number in range(done):
            update = processes.from_first(functools.partial(files.read_bytes, update_of(number)))
            sent.append(bool(api.inspect(update)["blocks"]))
            yield update

    for variables in replay(done_before(), first.variables):
        held = Copy(variables, held_file)
    if done:
        save(*held)
    while (stage := plan(tuple(sent))) is not None:
        number = len(sent)
        training = None if task.checkpoints is None else Path(task.checkpoints) / f"round-{number:03}"
        result = run_round(
            jax.random.fold_in(key, number),
            method if stage.method is None else stage.method,
            held,
            task._replace(samples=stage.samples, checkpoints=training),
            base=first if stage.restart else held,
            update=update_of(number),
            new=new,
            device=device,
            compact=compact,
        )
        processes.from_first(functools.partial(new.replace, held_file))
        held = Copy(result.variables, held_file)
        sent.append(result.sent)
        yield result


def _plan_of(stages: Sequence[Stage] | Plan) -> Plan:
    return stages if callable(stages) else lambda sent: stages[len(sent)] if len(sent) < len(stages) else None


def replay(updates: Iterable[bytes], first: PyTree) -> Iterator[PyTree]:
    """The models that a chain of updates makes, each of the model before it or of the first, as its fingerprint says.

    Args:
      updates: the files' bytes, in the order in which they came.
      first: the model that the device was deployed with.

    Yields:
      The model after each update.

    Raises:
      CorruptUpdateError: an update is damaged.
      WrongBaseError: it starts from neither of them.
    """
    held = first
    for update in updates:
        try:
            held = api.apply(update, held)
        except WrongBaseError:
            held = api.apply(update, first)
        yield held
