"""One of several processes: `python -m tests.multihost.worker PORT COUNT NUMBER FOLDER`.

It is joined to the others by the flags of `run.py`, whose experiment it runs first.
"""

import contextlib
import functools
import json
import os
import signal
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

import run
from updcomp import methods, processes
from updcomp.training import checkpoints, devices, models
from updcomp.wire.errors import Error


def experiment(here: Path, *joining: str) -> None:
    models.MODELS["tiny"] = functools.partial(models.mlp, hidden=(8,))
    flags = json.loads((here / "flags.json").read_text())
    assert run.main([f"--workdir={here / 'run'}", *flags, *joining]) == 0


def library(here: Path) -> None:
    from tests.multihost import worlds

    mesh = devices.make_mesh(model=2)
    assert {device.process_index for device in mesh.devices[0]} == {0}, "a row of the mesh is within a process"
    deployed = worlds.split(worlds.regression()[0], mesh)
    task = worlds.task_on_host()._replace(validation=worlds.regression()[1].validation)
    given = worlds.of_given_weights(*(worlds.split(model, mesh) for model in worlds.given()))
    found = worlds.updates(deployed, task)
    stream = worlds.stream_of_parts(devices.batch_sharding(mesh))
    epochs, streamed = worlds.training(here / "none", deployed, task._replace(train=stream))
    resumed_epochs, resumed = worlds.training(here / "from one process", deployed, task)
    with contextlib.suppress(worlds.Stopped):
        worlds.training(here / "to one process", deployed, task, after=2)

    def write() -> None:
        np.savez(here / "updates.npz", **found)
        np.savez(here / "streamed.npz", **streamed)
        np.savez(here / "resumed.npz", **resumed)
        told = {"given": given, "epochs": epochs, "resumed_epochs": resumed_epochs}
        (here / "told.json").write_text(json.dumps(told))

    processes.from_first(write)


def preemption(here: Path) -> None:
    """Heard in the second training of a process as well."""
    from tests.multihost import worlds

    task = worlds.task_on_host()._replace(checkpoints=here / "preempted")
    checkpoints.SECONDS_BETWEEN = float("inf")
    last = 0

    def told(epoch):
        nonlocal last
        last = epoch.number
        if epoch.number == 2 and not processes.is_first():
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(processes.PreemptedError, match="saved state 2;"):
        methods.full()(worlds.KEY, worlds.regression()[0], task._replace(callback=told, mesh=devices.make_mesh()))
    assert last == 2


def failures(here: Path) -> None:
    """What goes wrong in one process is an error in all."""
    with pytest.raises(FileNotFoundError):
        processes.from_first(lambda: (here / "no such folder" / "file").write_text(""))
    with pytest.raises((RuntimeError, AttributeError, TypeError)):
        processes.from_first(lambda: lambda: "does not pickle")
    assert processes.from_first(lambda: "x" * 10_000) == "x" * 10_000
    own = Error("what one process finds") if jax.process_index() == 1 else None

    def fails():
        if own:
            raise own

    with pytest.raises(Error, match="what one process finds" if own else "process 1 of 2 failed"):
        processes.in_all(fails)
    with pytest.raises(Error, match="too long"):
        processes.write_together(iter(range(3)), failing)
    with pytest.raises(RuntimeError, match=r"expected no collective|found"):
        processes.from_first(processes.is_preempted)


def failing(parts):
    next(parts)
    raise Error("too long")


def main(port: str, count: str, number: str, folder: str) -> None:
    jax.config.update("jax_numpy_dtype_promotion", "strict")
    jax.config.update("jax_numpy_rank_promotion", "raise")
    here = Path(folder)
    joining = (f"--coordinator_address=localhost:{port}", f"--num_processes={count}", f"--process_id={number}")
    experiment(here, "--multihost", *joining)
    checkpoints.SECONDS_BETWEEN = -1.0  # every epoch is saved
    library(here)
    preemption(here)
    failures(here)
    if not processes.is_first():
        (here / "other ended").touch()


if __name__ == "__main__":
    main(*sys.argv[1:])
