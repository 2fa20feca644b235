"""Rounds: the server makes an update, its bytes go to a device of its own process, and come back as a model."""

import functools
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np

from updcomp import trees
from updcomp.edge import files
from updcomp.methods import Method
from updcomp.training.data import Dataset
from updcomp.training.evaluation import count_correct
from updcomp.training.loop import Task
from updcomp.training.models import Apply
from updcomp.trees import PyTree
from updcomp.wire import apply, container
from updcomp.wire.errors import Error
from updcomp.wire.packet import Packet, plain_bytes

Device = Callable[[Path, Path, Path], None]
"""(base model file, update file, new model file): applies an update as a device does."""


class Copy(NamedTuple):
    """A model that server and device both have."""

    variables: PyTree
    file: Path  # on the device, `.safetensors` or `.npz`


class Round(NamedTuple):
    """What one round gave."""

    update: Path  # the update file
    update_bytes: int  # its size
    plain_bytes: int  # the same as int32 positions and float32 numbers; 0 where nothing was sent
    sent: bool  # False: training gave nothing better, so the update says that the device keeps what it holds
    variables: PyTree  # the model that the device wrote, in the form of the one before
    trained: PyTree  # the model that training gave, as the wire would make it; the same where it was sent
    train_seconds: float  # making the packet
    encode_seconds: float  # packet -> update file
    apply_seconds: float  # the device's process, its start included


class Stage(NamedTuple):
    """What one of several rounds trains on, and from where."""

    samples: np.ndarray  # int (n,): indices of the training samples that have arrived by then
    restart: bool  # True: the update is relative to the first model, not to what the device holds


def device_process(base: Path, update: Path, new: Path) -> None:
    """A device: a separate process that imports `updcomp.edge` alone.

    Args:
      base: a model that the device has, `.safetensors` or `.npz`.
      update: the update file.
      new: where the new model goes.

    Raises:
      Error: the device refuses; the message is what it printed.
    """
    # -P and the path keep the caller's folder out of the device's imports, and find this very package.
    search = [str(Path(__file__).resolve().parents[1]), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(search)}
    command = [sys.executable, "-P", "-m", "updcomp.edge", "apply", str(base), str(update), "-o", str(new)]
    finished = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    if finished.returncode:
        raise Error(f"device: {finished.stderr.strip() or f'exit status {finished.returncode}'}")


def save(variables: PyTree, path: Path) -> Copy:
    """Writes a pytree as the model file of a device.

    Args:
      variables: any pytree of arrays.
      path: `.safetensors` or `.npz`.

    Returns:
      Both as a `Copy`.
    """
    files.write_model(path, trees.to_model(variables))
    return Copy(variables, path)


def load(path: Path, like: PyTree) -> Copy:
    """Reads a model file of a device.

    Args:
      path: as `save` wrote it.
      like: a pytree of the same structure.

    Returns:
      Both as a `Copy`.

    Raises:
      Error: the file cannot be read, or holds another model.
    """
    return Copy(trees.from_model(files.read_model(path).model, like), path)


@functools.lru_cache(maxsize=16)
def _compiled_count(model: Apply) -> Callable[[PyTree, Dataset], jax.Array]:
    return jax.jit(functools.partial(count_correct, model))


def beats(new: PyTree, held: PyTree, task: Task) -> bool:
    """Whether a model classifies more validation samples rightly than the one that the device holds.

    Args:
      new: the model as the wire makes it, so that rounding after training counts.
      held: the model that the device holds.
      task: has the validation set and the model's function.

    Returns:
      True: send it. False: send nothing.

    Paper: Qu et al., Deep Partial Updating (ECCV 2022), step 7.
    """
    count = _compiled_count(task.apply)  # type: ignore[arg-type]
    return bool(count(new, task.validation) > count(held, task.validation))


def run_round(
    key: jax.Array,
    method: Method,
    held: Copy,
    task: Task,
    *,
    base: Copy | None = None,
    update: Path,
    new: Path,
    device: Device = device_process,
) -> Round:
    """One round: train an update, send it if it beats what the device holds, apply it on the device.

    An update that is not worth sending is an empty one, relative to what the device holds.

    Args:
      key: PRNG key.
      method: makes the packet.
      held: the model that the device holds.
      task: the new data, and how to train on them.
      base: the model that the update is relative to; default the held one.
      update: the update file to write.
      new: the model file that the device writes.
      device: applies the update.

    Returns:
      A `Round`; its `variables` are what the device holds now, the only parameters that accuracy is measured on.

    Raises:
      NonFiniteError: training diverged.
      Error: the device refuses the update.
    """
    base = base or held
    start = time.perf_counter()
    packet = method(key, base.variables, task)
    trained_at = time.perf_counter()
    trained = trees.from_model(apply.apply(packet, trees.to_model(base.variables)), base.variables)
    sent = beats(trained, held.variables, task)
    done = deliver(packet if sent else Packet({}), base if sent else held, update, new, device=device)
    return done._replace(trained=trained, train_seconds=trained_at - start)


def deliver(packet: Packet, base: Copy, update: Path, new: Path, *, device: Device = device_process) -> Round:
    """Sends a packet over the wire: encodes it into a file, has a device apply it, and reads back what it wrote.

    Args:
      packet: what a method made.
      base: the model that it is relative to.
      update: the update file to write.
      new: the model file that the device writes.
      device: applies the update.

    Returns:
      A `Round` with no training time.

    Raises:
      Error: the device refuses the update.
    """
    start = time.perf_counter()
    files.write_bytes(update, container.encode(packet, trees.to_model(base.variables)))
    encoded_at = time.perf_counter()
    device(base.file, update, new)
    applied_at = time.perf_counter()
    variables = trees.from_model(files.read_model(new).model, base.variables)
    seconds = (0.0, encoded_at - start, applied_at - encoded_at)
    return Round(
        update, update.stat().st_size, plain_bytes(packet), bool(packet.blocks), variables, variables, *seconds
    )


def growing(order: np.ndarray, *, initial: int, step: int, rounds: int, restart: str = "never") -> list[Stage]:
    """The stages of rounds whose training set is cumulative: `initial` samples, then `step` more each round.

    Args:
      order: int (n,): the order in which the training samples arrive.
      initial: samples of round 0.
      step: samples that each later round adds.
      rounds: how many rounds.
      restart: which updates are relative to the first model: "never"; "always"; or "doubled", those of round 0 and of
        every round with more than twice the samples of the last such round.

    Returns:
      One `Stage` a round.

    Raises:
      Error: the rounds need more samples than there are, a count is below 1, or `restart` is none of these.

    Paper: Qu et al., Deep Partial Updating (ECCV 2022), section 4 (re-initialisation).

    >>> [stage.restart for stage in growing(np.arange(9), initial=1, step=1, rounds=9, restart="doubled")]
    [True, False, True, False, False, False, True, False, False]
    """
    if min(initial, step, rounds) < 1:
        raise Error(f"initial, step and rounds: expected at least 1, found {initial}, {step} and {rounds}")
    if restart not in ("never", "doubled", "always"):
        raise Error(f"restart: expected never, doubled or always, found {restart!r}")
    needed = initial + step * (rounds - 1)
    if needed > len(order):
        possible = max(0, (len(order) - initial) // step + 1)
        expected = f"expected at most {possible}: {initial} samples and {step} more each round of {len(order)} in all"
        raise Error(f"rounds: {expected}; found {rounds}, which need {needed}; use fewer rounds or smaller steps")
    stages, last = [], 0
    for size in range(initial, needed + 1, step):
        restarts = restart == "always" or (restart == "doubled" and size > 2 * last)
        last = size if restarts else last
        stages.append(Stage(order[:size], restarts))
    return stages


def run_rounds(
    key: jax.Array,
    method: Method,
    first: Copy,
    task: Task,
    stages: Sequence[Stage],
    *,
    folder: Path,
    done: int = 0,
    device: Device = device_process,
) -> Iterator[Round]:
    """Rounds, one after another, as a device meets them: each starts from what it holds, or from its first model.

    Args:
      key: PRNG key; each round has its own from it.
      method: makes the packets.
      first: the model that the device was deployed with and keeps: the base of updates after a restart.
      task: how to train; each stage says on which samples.
      stages: one a round.
      folder: gets `round-000.upd` and so on; the device's model lies beside the first one, its name ending in `-held`.
      done: how many rounds have their files there; those are replayed, not trained again.
      device: applies the updates.

    Yields:
      A `Round` for each round from `done` on.

    Raises:
      Error: the device refuses an update, or the files of the rounds done are not one chain from the first model.
    """
    folder.mkdir(parents=True, exist_ok=True)
    updates = [folder / f"round-{number:03}.upd" for number in range(len(stages))]
    held, held_file = first, first.file.with_stem(f"{first.file.stem}-held")
    new = first.file.with_stem(f"{first.file.stem}-new")
    for model in container.replay((files.read_bytes(path) for path in updates[:done]), trees.to_model(first.variables)):
        held = Copy(trees.from_model(model, first.variables), held_file)
    if done:
        save(*held)
    for number in range(done, len(stages)):
        stage = stages[number]
        training = None if task.checkpoints is None else task.checkpoints / f"round-{number:03}"
        result = run_round(
            jax.random.fold_in(key, number),
            method,
            held,
            task._replace(samples=stage.samples, checkpoints=training),
            base=first if stage.restart else held,
            update=updates[number],
            new=new,
            device=device,
        )
        new.replace(held_file)
        held = Copy(result.variables, held_file)
        yield result
