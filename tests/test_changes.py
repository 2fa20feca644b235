"""Changes found where the arrays are: two devices stand for an accelerator."""

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

import updcomp
from updcomp import arrays, changes, trees
from updcomp.wire import container, dtypes

MESH = Mesh(np.array(jax.devices()[:2]), ("x",))
RNG = np.random.default_rng(0)


def away(leaf, *axes):
    """A leaf on both devices."""
    return jax.device_put(leaf, NamedSharding(MESH, P(*axes)))


def changed(leaf, count):
    """The leaf with other bits in some places."""
    new = np.array(leaf)
    bits = dtypes.flat_bits(dtypes.hold(new))
    bits[RNG.choice(len(bits), count, replace=False)] ^= 1
    return new


@pytest.fixture
def brought(monkeypatch):
    """What comes to the host, by its shape."""
    shapes, to_host = [], arrays.to_host

    def watched(leaf):
        shapes.append(leaf.shape)
        return to_host(leaf)

    monkeypatch.setattr(arrays, "to_host", watched)
    return shapes


def assert_exact(old, new, packet):
    update = updcomp.encode(packet, old)
    found = trees.to_model(updcomp.apply(update, old))
    assert all(found[name].tobytes() == leaf.tobytes() for name, leaf in trees.to_model(new).items())
    return update


@pytest.mark.parametrize("axes", [(), ("x",), (None, "x")])
@pytest.mark.parametrize("count", [0, 7, 1600])
@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16, bool, ml_dtypes.float8_e4m3fn], ids=str)
def test_changes_on_devices_are_those_on_the_host(axes, count, dtype):
    old = (RNG.normal(size=(40, 40)) > 0).astype(dtype)
    new = changed(old, count)
    found = changes.find({"w": away(old, *axes)}, {"w": away(new, *axes)}, ["w"])
    assert list(found) == (["w"] if count else [])
    if count:
        assert found["w"].new.tobytes() == new.tobytes()


def test_bits_are_compared_not_numbers():
    old = np.float32([0, np.nan, 1e-45, 1])
    new = np.float32([-0.0, np.nan, 2e-45, 1])
    new.view(np.uint32)[1] ^= 3  # another NaN
    packet = updcomp.diff({"w": away(old)}, {"w": away(new)})
    assert packet.blocks["w"].new.tobytes() == new.tobytes()


def test_only_what_changed_comes_to_the_host(brought):
    old = {"few": RNG.normal(size=(64, 10)), "many": RNG.normal(size=(64, 11)), "none": np.ones((64, 12))}
    old = {name: leaf.astype(np.float32) for name, leaf in old.items()}
    new = {"few": changed(old["few"], 5), "many": changed(old["many"], 500), "none": old["none"]}
    old, new = ({name: away(leaf, "x") for name, leaf in model.items()} for model in (old, new))
    packet = updcomp.diff(old, new)
    assert (list(packet.blocks), brought) == (["few", "many"], [])
    update = updcomp.encode(packet, old)
    # For its fingerprint each old leaf comes once; of new ones that which is another nearly everywhere.
    assert brought == [(64, 10), (64, 11), (64, 11), (64, 12)]
    assert update == container.encode(packet, trees.to_model(old))
    assert_exact(old, new, packet)


def test_the_same_object_is_not_looked_at(brought, monkeypatch):
    old = {"a": away(np.ones(8, np.float32), "x"), "b": np.ones(3), "c": jnp.ones(2)}
    monkeypatch.setattr(changes, "_count", None)
    assert not updcomp.diff(old, dict(old)).blocks
    assert brought == []


def test_leaves_on_the_host_are_neither_copied_nor_sent_when_equal(monkeypatch):
    monkeypatch.setattr(dtypes, "_SLICE", 8)
    old = {"a": np.ones(33, np.float32), "b": np.ones(3), "empty": np.zeros((0, 2)), "n": np.float32(1)}
    new = {name: leaf.copy() for name, leaf in old.items()}
    new["a"][-1] = 2
    packet = updcomp.diff(old, new)
    assert list(packet.blocks) == ["a"]
    assert np.shares_memory(packet.blocks["a"].new, new["a"])
    assert_exact(old, new, packet)


@pytest.mark.parametrize("where", ["old", "new", "placed otherwise", "keys", "complex"])
def test_what_cannot_be_compared_on_devices_is_still_exact(where):
    old, new = np.ones((8, 4), np.float32), np.full((8, 4), 2, np.float32)
    pair = {
        "old": lambda: (away(old, "x"), new),
        "new": lambda: (old, away(new, "x")),
        "placed otherwise": lambda: (away(old, "x"), away(new, None, "x")),
        "keys": lambda: tuple(jax.random.split(jax.random.key(seed), 2) for seed in (0, 1)),
        "complex": lambda: (away(old.astype(np.complex64), "x"), away(new.astype(np.complex64), "x")),
    }[where]()
    packet = updcomp.diff(*({"w": leaf} for leaf in pair))
    assert list(packet.blocks) == ["w"]
    assert_exact({"w": pair[0]}, {"w": pair[1]}, packet)


def test_scalars_and_empty_leaves_on_devices():
    old = {"n": away(np.float32(1)), "m": away(np.int32(1)), "empty": away(np.zeros((2, 0), np.float32))}
    new = {"n": away(np.float32(2)), "m": away(np.int32(1)), "empty": away(np.zeros((2, 0), np.float32))}
    packet = updcomp.diff(old, new)
    assert list(packet.blocks) == ["n"]
    assert_exact(old, new, packet)


def test_leaves_that_one_model_lacks_are_left_out_on_demand():
    old, new = {"a": np.ones(2), "gone": np.ones(3)}, {"a": np.zeros(2), "more": np.ones(1)}
    for options in ({}, {"step": 0.5}, {"max_bytes": 1000}):
        with pytest.raises(updcomp.Error, match=r"'gone' in the old one only; 'more' in the new one only; common_only"):
            updcomp.diff(old, new, **options)
        packet = updcomp.diff(old, new, common_only=True, **options)
        found = updcomp.apply(updcomp.encode(packet, old), old)
        assert {name: leaf.tolist() for name, leaf in found.items()} == {"a": [0, 0], "gone": [1, 1, 1]}
    with pytest.raises(
        updcomp.Error, match=r"'a' is float64 \(2,\) in the old one and float64 \(3,\) in the new one; allow_new"
    ):
        updcomp.diff(old, {"a": np.zeros(3)}, common_only=True)


def test_a_long_list_of_leaves_is_cut():
    old = {f"{i:03d}": np.ones(1) for i in range(100)}
    with pytest.raises(updcomp.Error, match=r"'019' and 80 more in the old one only"):
        updcomp.diff(old, {})
