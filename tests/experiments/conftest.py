"""Experiments at their smallest: a tiny registered model, and a device within the process."""

import functools

import pytest

from updcomp.edge import files
from updcomp.protocol import rounds
from updcomp.training import checkpoints, models
from updcomp.wire import container


@pytest.fixture(scope="session", autouse=True)
def tiny_model():
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(models.MODELS, "tiny", functools.partial(models.mlp, hidden=(8,)))
        yield


def apply_here(base, update, new):
    files.write_model(new, container.apply_update(files.read_bytes(update), files.read_model(base).model))


@pytest.fixture(scope="session")
def deliver_here():
    """`protocol.deliver` without the device's process, whose start takes longer than a tiny training."""
    deliver = rounds.deliver

    def delivered(packet, base, update, new, *, device=None, compact=False):
        return deliver(packet, base, update, new, device=apply_here, compact=compact)

    return delivered


@pytest.fixture(autouse=True)
def no_checkpoints_on_slow_machines(monkeypatch):
    monkeypatch.setattr(checkpoints, "SECONDS_BETWEEN", float("inf"))


@pytest.fixture(autouse=True)
def device_here(monkeypatch, deliver_here):
    monkeypatch.setattr(rounds, "deliver", deliver_here)
