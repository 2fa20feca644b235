"""Models that are split over devices train where they are."""

import gc
import weakref

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

import updcomp
from tests.methods.worlds import KEY, applied, assert_helps, digits, regression
from updcomp import arrays, trees
from updcomp.methods import by_path, full, low_rank, magnitude_mask, neurons, partial, random_mask, subspace
from updcomp.training import checkpoints, devices, steps

METHODS = {
    "full": full(bits=8),
    "partial": partial(ratio=0.3),
    "low_rank": low_rank(rank=2),
    "random_mask": random_mask(ratio=0.3),
    "magnitude_mask": magnitude_mask(ratio=0.3),
    "subspace": subspace(rank=3),
    "neurons": neurons(selection="velocity", weights=0.5),
    "by_path": by_path({"first/kernel": low_rank(rank=1), "second/kernel": full(bits=8)}),
}
SPLIT = {"first/kernel": PartitionSpec(None, "model"), "second/kernel": PartitionSpec("model", None)}


def mesh():
    found = jax.make_mesh((2,), ("model",), axis_types=(jax.sharding.AxisType.Auto,))
    assert found.size == 2
    return found


def sharded(deployed):
    placed = mesh()
    leaves = trees.named_leaves(deployed)
    return trees.replace(
        deployed,
        {
            name: jax.device_put(leaf, NamedSharding(placed, SPLIT.get(name, PartitionSpec())))
            for name, leaf in leaves.items()
        },
    )


@pytest.mark.parametrize("name", METHODS)
def test_a_split_model_trains_to_what_a_whole_one_does_and_stays_split(name, monkeypatch):
    deployed, task = regression()
    held = sharded(deployed)
    seen = []
    compiled_steps = steps.compiled_steps

    def watched(*arguments):
        run = compiled_steps(*arguments)

        def called(state, *, frozen, **rest):
            state = run(state, frozen=frozen, **rest)
            parts = {leaf: jax.tree.leaves(state.trainable[leaf])[0] for leaf in SPLIT}
            seen.append(
                (frozen.deployed, {leaf: part.sharding.shard_shape(part.shape) for leaf, part in parts.items()})
            )
            return state

        called.lower = run.lower  # type: ignore[attr-defined]
        return called

    watched.__wrapped__ = compiled_steps.__wrapped__  # type: ignore[attr-defined]

    whole = METHODS[name](KEY, deployed, task)
    monkeypatch.setattr(steps, "compiled_steps", watched)
    split = METHODS[name](KEY, held, task)
    assert seen
    for placed, shards in seen:
        for leaf, spec in SPLIT.items():
            assert trees.named_leaves(placed)[leaf].sharding.spec == spec
            if name in ("full", "partial", "random_mask"):
                assert shards[leaf] == ((6, 8) if leaf == "first/kernel" else (8, 2))
    new, expected = assert_helps(split, held, task), applied(whole, deployed)
    for leaf, value in trees.named_leaves(new).items():
        assert value.sharding == trees.named_leaves(held)[leaf].sharding
        # Sums in another order; a rounding to integers may turn that into one step.
        np.testing.assert_allclose(value, trees.named_leaves(expected)[leaf], atol=2e-2)


@pytest.mark.parametrize("selection", ["velocity", "random"])
def test_chosen_neurons_go_on_where_they_were_on_a_mesh_as_well(selection, tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoints, "SECONDS_BETWEEN", -1.0)
    deployed, task = regression()
    held, method = sharded(deployed), neurons(selection=selection, weights=0.5)
    whole = applied(method(KEY, held, task), held)
    epochs = []

    def stop(epoch):
        epochs.append(epoch.number)
        if len(epochs) == 2:
            raise KeyboardInterrupt

    kept = task._replace(checkpoints=tmp_path, callback=stop)
    with pytest.raises(KeyboardInterrupt):
        method(KEY, held, kept)
    found = applied(method(KEY, held, kept), held)
    assert epochs[:3] == [1, 2, 2]
    # Its moments start afresh.
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(whole), strict=True):
        np.testing.assert_allclose(one, other, atol=0.2)


def test_budgets_of_a_split_model_are_those_of_one_device():
    deployed, task = regression()
    method = neurons(selection="depth", memory=0.8, flops=0.8)
    one, two = (method.train(KEY, model, task) for model in (deployed, sharded(deployed)))
    assert 0 < two.spent.backward_flops <= two.full.flops < one.full.flops
    assert 0 < two.spent.peak_bytes <= two.full.memory


def test_a_model_on_devices_in_another_order_trains():
    deployed, task = regression()
    backwards = jax.sharding.Mesh(np.array(jax.devices()[1::-1]), ("model",))
    held = {
        "first": jax.device_put(deployed["first"], NamedSharding(backwards, PartitionSpec())),
        "second": jax.device_put(deployed["second"], NamedSharding(backwards, PartitionSpec("model"))),
    }
    assert_helps(full(bits=8)(KEY, held, task._replace(mesh=devices.make_mesh(model=2))), held, task)


@pytest.fixture
def watched(monkeypatch):
    """Checks that nothing of a leaf is on the host when the next one is brought there; gives the leaves in order."""
    on_host, seen = [], []
    to_host, of_leaf = arrays.to_host, trees.HostModel.__getitem__

    def brought(leaf):
        found = to_host(leaf)
        on_host.append((seen[-1], weakref.ref(found)))
        return found

    def next_leaf(model, name):
        others = [kept for other, kept in on_host if other != name]
        if any(kept() is not None for kept in others):
            gc.collect()
        assert [kept for kept in others if kept() is not None] == []
        seen.append(name)
        return of_leaf(model, name)

    monkeypatch.setattr(arrays, "to_host", brought)
    monkeypatch.setattr(trees.HostModel, "__getitem__", next_leaf)
    return seen


@pytest.mark.parametrize("name", METHODS)
def test_no_two_leaves_of_a_split_model_are_on_the_host_at_once(name, watched):
    deployed, task = regression()
    held = sharded(deployed)
    watched.append("in training")
    packet = METHODS[name](KEY, held, task._replace(epochs=1))
    updcomp.apply(updcomp.encode(packet, held), held)
    assert set(watched) == {"in training", *trees.named_leaves(deployed)}


def test_no_two_leaves_that_are_large_enough_for_a_thread_are_either(watched):
    placed = NamedSharding(mesh(), PartitionSpec("model"))
    old, new = (
        {name: jax.device_put(np.full(400_000, value, np.float32), placed) for name in "abc"} for value in (1.0, 1.25)
    )
    update = updcomp.encode(updcomp.diff(old, new), old)
    assert jnp.all(updcomp.apply(update, old)["c"] == 1.25)
    assert watched[:2] == ["a", "a"]  # of the old model, and of the new one for its block


def test_an_update_of_a_split_model_is_that_of_the_whole_one():
    deployed, _ = regression()
    new = jax.tree.map(lambda leaf: leaf * 1.5, deployed)
    update = updcomp.encode(updcomp.diff(sharded(deployed), sharded(new)), sharded(deployed))
    assert update == updcomp.encode(updcomp.diff(deployed, new), deployed)


@pytest.mark.parametrize(
    "method", [full(bits=8), partial(ratio=0.1), low_rank(rank=2)], ids=["full", "partial", "low_rank"]
)
def test_batches_split_over_a_mesh_take_models_and_data_from_one_device(method):
    deployed, task = digits()
    expected = applied(method(KEY, deployed, task), deployed)
    new = assert_helps(method(KEY, deployed, task._replace(mesh=devices.make_mesh())), deployed, task)
    for one, other in zip(jax.tree.leaves(new), jax.tree.leaves(expected), strict=True):
        assert one.sharding == other.sharding
        np.testing.assert_allclose(one, other, atol=3e-2)
        assert jnp.mean(jnp.abs(one - other)) < 3e-3
