"""A round through a real device process, and a device that refuses."""

import jax.numpy as jnp
import numpy as np
import pytest

import updcomp
from updcomp import protocol
from updcomp.edge import files

DEPLOYED = {"w": jnp.ones((4, 3)), "b": jnp.zeros(3)}
NEW = {"w": jnp.ones((4, 3)) * 1.5, "b": jnp.zeros(3)}


def test_what_comes_back_is_what_the_device_wrote(tmp_path):
    protocol.save(DEPLOYED, tmp_path / "model.npz")
    done = protocol.deliver(updcomp.diff(DEPLOYED, NEW), DEPLOYED, tmp_path / "model.npz", tmp_path / "update")
    np.testing.assert_array_equal(done.variables["w"], NEW["w"])
    assert done.update_bytes == (tmp_path / "update").stat().st_size
    assert done.apply_seconds > 0


def test_a_device_that_holds_another_model_refuses(tmp_path):
    other = {**DEPLOYED, "b": jnp.full(3, 1e-3)}
    protocol.save(other, tmp_path / "model.safetensors")
    with pytest.raises(updcomp.Error, match=r"device: updcomp: error: .*base"):
        protocol.deliver(updcomp.diff(DEPLOYED, NEW), DEPLOYED, tmp_path / "model.safetensors", tmp_path / "update")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.safetensors", "update"]


def test_any_device_can_take_the_place_of_the_process(tmp_path):
    """A device is a function of three files, so one over a network fits as well."""
    protocol.save(DEPLOYED, tmp_path / "model.npz")
    seen = []

    def device(model, update, new):
        seen.append((model.name, update.name))
        files.write_model(new, files.read_model(model).model)

    packet = updcomp.diff(DEPLOYED, NEW)
    done = protocol.deliver(packet, DEPLOYED, tmp_path / "model.npz", tmp_path / "update", device=device)
    assert seen == [("model.npz", "update")]
    np.testing.assert_array_equal(done.variables["w"], DEPLOYED["w"])
