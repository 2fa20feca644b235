"""Rounds: the server makes an update, its bytes go to a device of its own process, and come back as a model."""

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import jax

from updcomp import trees
from updcomp.edge import files
from updcomp.methods import Method
from updcomp.training.loop import Task
from updcomp.trees import PyTree
from updcomp.wire import container
from updcomp.wire.errors import Error
from updcomp.wire.packet import Packet

Device = Callable[[Path, Path, Path], None]
"""(deployed model file, update file, new model file): applies an update as a device does."""


class Round(NamedTuple):
    """What one round gave."""

    update: Path  # the update file
    update_bytes: int  # its size
    variables: PyTree  # the model that the device wrote, in the form of the deployed one
    train_seconds: float  # making the packet
    encode_seconds: float  # packet -> update file
    apply_seconds: float  # the device's process, its start included


def device_process(deployed: Path, update: Path, new: Path) -> None:
    """A device: a separate process that imports `updcomp.edge` alone.

    Args:
      deployed: the model that the device holds, `.safetensors` or `.npz`.
      update: the update file.
      new: where the new model goes.

    Raises:
      Error: the device refuses; the message is what it printed.
    """
    # -P and the path keep the caller's folder out of the device's imports, and find this very package.
    search = [str(Path(__file__).resolve().parents[1]), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(search)}
    command = [sys.executable, "-P", "-m", "updcomp.edge", "apply", str(deployed), str(update), "-o", str(new)]
    finished = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    if finished.returncode:
        raise Error(f"device: {finished.stderr.strip() or f'exit status {finished.returncode}'}")


def save(variables: PyTree, path: Path) -> None:
    """Writes a pytree as the model file of a device.

    Args:
      variables: any pytree of arrays.
      path: `.safetensors` or `.npz`.
    """
    files.write_model(path, trees.to_model(variables))


def deliver(packet: Packet, deployed: PyTree, model: Path, update: Path, *, device: Device = device_process) -> Round:
    """Sends a packet over the wire: encodes it into a file, has a device apply it, and reads back what it wrote.

    Args:
      packet: what a method made.
      deployed: the model that the device holds.
      model: its file on the device.
      update: the update file to write; the new model lies beside it while it is read back.
      device: applies the update.

    Returns:
      A `Round` with no training time.

    Raises:
      Error: the device refuses the update.
    """
    start = time.perf_counter()
    encoded = container.encode(packet, trees.to_model(deployed))
    files.write_bytes(update, encoded)
    encoded_at = time.perf_counter()
    new = update.with_suffix(".new" + model.suffix)
    try:
        device(model, update, new)
        applied_at = time.perf_counter()
        variables = trees.from_model(files.read_model(new).model, deployed)
    finally:
        new.unlink(missing_ok=True)
    return Round(update, update.stat().st_size, variables, 0.0, encoded_at - start, applied_at - encoded_at)


def run_round(
    key: jax.Array,
    method: Method,
    deployed: PyTree,
    task: Task,
    *,
    model: Path,
    update: Path,
    device: Device = device_process,
) -> Round:
    """One round: train an update, send it, apply it on the device.

    Args:
      key: PRNG key.
      method: makes the packet.
      deployed: the model that the device holds.
      task: the new data, and how to train on them.
      model: the deployed model's file on the device.
      update: the update file to write.
      device: applies the update.

    Returns:
      A `Round`; its `variables` are what the device holds now, the only parameters that accuracy is measured on.

    Raises:
      NonFiniteError: training diverged.
      Error: the device refuses the update.
    """
    start = time.perf_counter()
    packet = method(key, deployed, task)
    trained = time.perf_counter()
    return deliver(packet, deployed, model, update, device=device)._replace(train_seconds=trained - start)
