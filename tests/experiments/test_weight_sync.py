"""A few steps from a trainer to a worker."""

import json
import os

import pytest

from experiments import weight_sync
from updcomp import api
from updcomp.wire.errors import Error

LITTLE = weight_sync.Config(steps=3, hidden=16)


def test_every_step_is_sent_and_verified(tmp_path, capsys):
    figures = weight_sync.run(LITTLE, tmp_path)
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in lines] == ["step    1", "step    2", "step    3", "all 3 steps as one"]
    assert 0 < figures["bytes of a step, mean"] < figures["bytes of all steps as one"] < figures["bytes of the model"]
    assert min(figures["diff seconds of a step, mean"], figures["apply seconds of a step, mean"]) > 0
    assert json.loads((tmp_path / "weight_sync.json").read_text()) == figures
    assert os.listdir(tmp_path) == ["weight_sync.json"]


def test_a_worker_that_refuses_a_step_ends_the_run(tmp_path, monkeypatch):
    encode = api.encode
    monkeypatch.setattr(weight_sync.api, "encode", lambda packet, model: encode(packet, model)[:-1])
    with pytest.raises(Error, match="^worker: checksum: the .* are damaged"):
        weight_sync.run(LITTLE, tmp_path)


def test_a_worker_with_another_model_ends_the_run(tmp_path, monkeypatch):
    monkeypatch.setattr(weight_sync, "_fingerprint", lambda model: "another")
    with pytest.raises(Error, match="^worker: step 1: expected the model another, found "):
        weight_sync.run(LITTLE, tmp_path)
