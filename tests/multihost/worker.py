"""One of several processes: `python -m tests.multihost.worker PORT COUNT NUMBER FOLDER`."""

import contextlib
import json
import os
import signal
import sys
import time
from pathlib import Path

import jax
import numpy as np

from updcomp import methods
from updcomp.training import checkpoints, devices, processes


def main(port: str, count: str, number: str, folder: str) -> None:
    jax.config.update("jax_numpy_dtype_promotion", "strict")
    jax.config.update("jax_numpy_rank_promotion", "raise")
    processes.initialise(f"localhost:{port}", int(count), int(number))
    from tests.multihost import worlds

    here = Path(folder)
    mesh = devices.make_mesh(model=2)
    assert {device.process_index for device in mesh.devices[0]} == {0}, "a row of the mesh is within a process"
    deployed = worlds.split(worlds.regression()[0], mesh)
    task = worlds.task_on_host()._replace(validation=worlds.regression()[1].validation)
    old, new = (worlds.split(model, mesh) for model in worlds.given())
    given = worlds.of_given_weights(old, new)
    found = worlds.updates(deployed, task)
    stream = worlds.stream_of_parts(devices.batch_sharding(mesh))
    epochs, streamed = worlds.training(here / "none", deployed, task._replace(train=stream))
    resumed_epochs, resumed = worlds.training(here / "from one process", deployed, task)
    with contextlib.suppress(worlds.Stopped):
        worlds.training(here / "to one process", deployed, task, after=2)

    epochs_before = 0

    def told(epoch):
        nonlocal epochs_before
        epochs_before = epoch.number
        time.sleep(0.1)
        if epoch.number == 2 and not processes.is_first():
            os.kill(os.getpid(), signal.SIGTERM)

    long = task._replace(epochs=100, checkpoints=here / "preempted", callback=told)
    checkpoints.SECONDS_BETWEEN = 1000.0
    try:
        methods.full()(worlds.KEY, deployed, long)
        raise AssertionError("the notice was not heard")
    except processes.PreemptedError as error:
        assert f"saved state {epochs_before};" in str(error)
        assert 2 <= epochs_before < 100

    def write() -> None:
        np.savez(here / "updates.npz", **found)
        np.savez(here / "streamed.npz", **streamed)
        np.savez(here / "resumed.npz", **resumed)
        told = {"given": given, "epochs": epochs, "resumed_epochs": resumed_epochs}
        (here / "told.json").write_text(json.dumps(told))

    processes.from_first(write)
    refused = None
    try:
        processes.from_first(lambda: (here / "no such folder" / "file").write_text(""))
    except FileNotFoundError as error:
        refused = error
    assert refused is not None, "what the first process raises is raised in all"
    assert processes.from_first(lambda: "x" * 10_000) == "x" * 10_000
    if not processes.is_first():
        (here / "other ended").touch()


if __name__ == "__main__":
    main(*sys.argv[1:])
