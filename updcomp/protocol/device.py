"""The device's side of a round: model files, and a process of its own that applies updates to them."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from updcomp import processes, trees
from updcomp.edge import files
from updcomp.trees import PyTree
from updcomp.wire.errors import Error

Device = Callable[[Path, Path, Path], None]
"""(base model file, update file, new model file): applies an update as a device does."""

_ROOT = Path(__file__).resolve().parents[2]


class Copy(NamedTuple):
    """A model that server and device both have."""

    variables: PyTree
    file: Path  # on the device, `.safetensors` or `.npz`


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
    search = [str(_ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(search)}
    command = [sys.executable, "-P", "-m", "updcomp.edge", "apply", str(base), str(update), "-o", str(new)]
    finished = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    if finished.returncode:
        raise Error(f"device: {finished.stderr.strip() or f'exit status {finished.returncode}'}")


def save(variables: PyTree, path: str | Path) -> Copy:
    """Writes a pytree as the model file of a device, a leaf at a time.

    Args:
      variables: any pytree of arrays.
      path: `.safetensors` or `.npz`.

    Returns:
      Both as a `Copy`.
    """
    model = trees.HostModel(variables)
    leaves = ((name, model[name]) for name in model)
    processes.write_together(leaves, lambda leaves: files.write_leaves(Path(path), model.specs, leaves))
    return Copy(variables, Path(path))


def load(path: str | Path, like: PyTree) -> Copy:
    """Reads a model file of a device.

    Args:
      path: as `save` wrote it.
      like: a pytree of the same structure.

    Returns:
      Both as a `Copy`.

    Raises:
      Error: the file cannot be read, or holds another model.
    """

    def read() -> PyTree:
        with files.open_model(Path(path)) as (model, _):
            return trees.from_model(model, like)

    return Copy(processes.in_all(read), Path(path))
