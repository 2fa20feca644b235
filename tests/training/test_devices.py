import jax
import jax.numpy as jnp
import numpy as np
import pytest

from updcomp.training import devices


@pytest.fixture
def mesh():
    if jax.device_count() < 2:
        pytest.skip("needs two devices")
    return devices.make_mesh(jax.devices()[:2])


def test_a_mesh_has_all_devices_in_rows_that_a_model_is_split_over():
    mesh = devices.make_mesh()
    assert dict(mesh.shape) == {"data": jax.device_count(), "model": 1}
    assert mesh.devices.ravel().tolist() == jax.devices()
    assert dict(devices.make_mesh(model=2).shape) == {"data": jax.device_count() // 2, "model": 2}


def test_replicated_leaves_are_whole_on_every_device(mesh):
    tree = devices.replicate({"a": np.arange(3.0, dtype=np.float32), "b": jnp.int32(1)}, mesh)
    assert [shard.data.tolist() for shard in tree["a"].addressable_shards] == [[0.0, 1.0, 2.0]] * 2
    assert tree["b"].sharding.is_fully_replicated


def test_a_batch_is_split_over_the_devices(mesh):
    batch = jax.device_put(np.arange(4), devices.batch_sharding(mesh))
    assert [shard.data.tolist() for shard in batch.addressable_shards] == [[0, 1], [2, 3]]


def test_a_batch_is_split_inside_a_compiled_function_without_changing_it(mesh):
    out = jax.jit(lambda x: devices.shard_batch({"x": 2 * x}, devices.batch_sharding(mesh)))(np.arange(8))["x"]
    assert out.tolist() == list(range(0, 16, 2))
    assert {shard.data.shape for shard in out.addressable_shards} == {(4,)}


def test_without_a_mesh_everything_stays_on_one_device():
    tree = {"a": np.arange(3)}
    assert devices.replicate(tree, None)["a"].devices() == {jax.devices()[0]}
    assert devices.shard_batch(tree, None) is tree
