"""Two processes of two devices each, joined by JAX's own runtime, do what one process does."""

import functools
import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import run
from experiments.results import read
from tests.multihost import worlds
from updcomp import trees
from updcomp.training import checkpoints, models

ROOT = Path(__file__).parents[2]
COUNT = 2
FLAGS = [
    *("--experiment=rounds", "--dataset=digits", "--model=tiny", "--methods=dpu", "--rounds=1", "--epochs=1"),
    *("--initial_samples=60", "--batch_size=20", "--validation_samples=200", "--learning_rate=0.03", "--ratio=0.05"),
]


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("localhost", 0))
        return found.getsockname()[1]


@pytest.fixture(scope="module")
def _every_epoch_is_saved():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpoints, "SECONDS_BETWEEN", -1.0)
        yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory, _every_epoch_is_saved):
    """What two processes wrote."""
    here = tmp_path_factory.mktemp("multihost")
    (here / "flags.json").write_text(json.dumps(FLAGS))
    with pytest.raises(worlds.Stopped):
        worlds.training(here / "from one process", worlds.regression()[0], worlds.task_on_host(), after=2)
    command = [sys.executable, "-m", "tests.multihost.worker", str(free_port()), str(COUNT)]
    environment = {**os.environ, "JAX_NUM_CPU_DEVICES": "2"}
    said = [here / f"output{number}" for number in range(COUNT)]
    running = []
    try:
        for number, path in enumerate(said):
            with path.open("w") as output:
                arguments = [*command, str(number), str(here)]
                running.append(subprocess.Popen(arguments, cwd=ROOT, env=environment, stdout=output, stderr=output))
        statuses = [process.wait(timeout=300) for process in running]
    finally:
        for process in running:
            process.kill()
    assert statuses == [0, 0], "\n".join(path.read_text() for path in said)
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


def test_an_experiment_writes_once_what_it_does_in_one_process(folder, tmp_path, monkeypatch):
    monkeypatch.setitem(models.MODELS, "tiny", functools.partial(models.mlp, hidden=(8,)))
    assert run.main([f"--workdir={tmp_path}", *FLAGS]) == 0
    (found,), (expected,) = (read(path / "results.jsonl") for path in (folder / "run", tmp_path))
    assert found.identity == expected.identity
    assert found.metrics["sent"]
    assert found.metrics["trained_accuracy"] == pytest.approx(expected.metrics["trained_accuracy"], abs=0.05)
    outputs = [(folder / f"output{number}").read_text() for number in range(COUNT)]
    assert ["Report, plot, rows and update files" in text for text in outputs] == [True, False]
    names = {path.relative_to(folder / "run") for path in (folder / "run").rglob("*") if path.is_file()}
    assert names == {path.relative_to(tmp_path) for path in tmp_path.rglob("*") if path.is_file()}
