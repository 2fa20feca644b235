"""Two processes of two devices each, joined by JAX's own runtime, do what one process does."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.multihost import worlds
from updcomp import trees

ROOT = Path(__file__).parents[2]


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("localhost", 0))
        return found.getsockname()[1]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """What two processes wrote."""
    here = tmp_path_factory.mktemp("multihost")
    with pytest.raises(worlds.Stopped):
        worlds.training(here / "from one process", worlds.regression()[0], worlds.task_on_host(), after=2)
    port, count = free_port(), 2
    command = [sys.executable, "-m", "tests.multihost.worker", str(port), str(count)]
    environment = {**os.environ, "JAX_NUM_CPU_DEVICES": "2"}
    running = [
        subprocess.Popen(
            [*command, str(number), str(here)],
            cwd=ROOT,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for number in range(count)
    ]
    said = [process.communicate(timeout=300)[0] for process in running]
    assert [process.returncode for process in running] == [0, 0], "\n".join(said)
    assert (here / "other ended").exists()
    return here


@pytest.fixture(scope="module")
def told(folder):
    return json.loads((folder / "told.json").read_text())


def assert_close(found, expected):
    """Sums in another order; a rounding to integers may turn that into one step."""
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, atol=2e-2, err_msg=name)


def test_masks_and_updates_of_the_same_weights_are_the_same(told):
    assert told["given"] == worlds.of_given_weights(*worlds.given())


def test_every_method_trains_to_what_it_does_in_one_process(folder):
    found = dict(np.load(folder / "updates.npz"))
    deployed = worlds.regression()[0]
    assert_close(found, worlds.updates(deployed, worlds.task_on_host()))
    for name in worlds.METHODS:
        before = trees.to_model(deployed)
        assert any((found[f"{name}: {leaf}"] != before[leaf]).any() for leaf in before), name


def test_each_process_gives_its_part_of_a_stream(folder, told):
    task = worlds.task_on_host()._replace(train=worlds.stream_of_parts(None))
    epochs, expected = worlds.training(folder / "streamed", worlds.regression()[0], task)
    assert told["epochs"] == epochs == [1, 2, 3, 4]
    assert_close(dict(np.load(folder / "streamed.npz")), expected)


def test_trainings_go_on_with_more_and_with_fewer_processes_and_devices(folder, told):
    deployed, task = worlds.regression()[0], worlds.task_on_host()
    _, whole = worlds.training(folder / "whole", deployed, task)
    assert told["resumed_epochs"] == [2, 3, 4]  # it ended before the second was saved
    assert_close(dict(np.load(folder / "resumed.npz")), whole)
    epochs, found = worlds.training(folder / "to one process", deployed, task)
    assert epochs == [2, 3, 4]
    assert_close(found, whole)
