"""Leaves that the loss moves instead of a gradient: batch statistics of flax linen and of flax nnx."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import updcomp
from tests.methods.worlds import KEY, applied, assert_helps, regression
from updcomp import trees
from updcomp.methods import by_path, full, low_rank, partial
from updcomp.training import Extra, Objective


class LinenNet(nn.Module):
    @nn.compact
    def __call__(self, x, train):
        x = nn.tanh(nn.BatchNorm(use_running_average=not train, momentum=0.8)(nn.Dense(12)(x)))
        return nn.Dense(2)(x)


def linen_loss(variables, batch, key, *, train):
    x = batch["features"]["x"]
    if train:
        out, updated = LinenNet().apply(variables, x, train=True, mutable=["batch_stats"])
    else:
        out, updated = LinenNet().apply(variables, x, train=False), None
    return jnp.mean((out - batch["target"]) ** 2), Extra(updated, {"train": jnp.float32(train)})


class NnxNet(nnx.Module):
    def __init__(self, rngs):
        self.first = nnx.Linear(6, 12, rngs=rngs)
        self.norm = nnx.BatchNorm(12, momentum=0.8, rngs=rngs)
        self.second = nnx.Linear(12, 2, rngs=rngs)

    def __call__(self, x):
        return self.second(nnx.tanh(self.norm(self.first(x))))


GRAPH, NNX_STATE = nnx.split(NnxNet(nnx.Rngs(0)))


def nnx_loss(state, batch, key, *, train):
    model = nnx.merge(GRAPH, state)
    model.train() if train else model.eval()
    out = model(batch["features"]["x"])
    updated = nnx.state(model, nnx.BatchStat) if train else None
    return jnp.mean((out - batch["target"]) ** 2), Extra(updated, {"train": jnp.float32(train)})


@functools.cache
def world(kind):
    _, task = regression()
    deployed = NNX_STATE if kind == "nnx" else LinenNet().init(KEY, jnp.zeros((1, 6)), train=False)
    objective = Objective({"nnx": nnx_loss, "linen": linen_loss}[kind])
    return deployed, task._replace(objective=objective, learning_rate=1e-2)


def statistics(tree):
    return {name: leaf for name, leaf in trees.named_leaves(tree).items() if "mean" in name or "var" in name}


@pytest.mark.parametrize(
    "method", [full(bits=8), partial(ratio=0.4), low_rank(rank=2)], ids=["full", "partial", "low_rank"]
)
@pytest.mark.parametrize("kind", ["linen", "nnx"])
def test_statistics_travel_with_the_aux_leaves(kind, method):
    deployed, task = world(kind)
    assert len(statistics(deployed)) == 2
    epochs = []
    made = method(KEY, deployed, task._replace(callback=epochs.append))
    new = assert_helps(made, deployed, task)
    for name, leaf in statistics(new).items():
        assert not np.array_equal(leaf, statistics(deployed)[name])
    assert {float(epoch.metrics["train"]) for epoch in epochs} == {1.0}


@pytest.mark.parametrize("kind", ["linen", "nnx"])
def test_without_aux_they_stay_and_training_uses_those_that_stay(kind):
    """The model is trained as it will run: with the deployed statistics, so `train=False`."""
    deployed, task = world(kind)
    epochs = []
    made = low_rank(rank=2, aux=None)(KEY, deployed, task._replace(callback=epochs.append))
    new = assert_helps(made, deployed, task)
    assert all("kernel" in name for name in made.blocks)
    for name, leaf in statistics(new).items():
        np.testing.assert_array_equal(leaf, statistics(deployed)[name])
    assert {float(epoch.metrics["train"]) for epoch in epochs} == {0.0}


def test_a_rule_chooses_statistics_like_any_leaf():
    deployed, task = world("linen")
    kernels_alone = by_path({"params/.*kernel": full(bits=8)})
    assert all(name.endswith("kernel") for name in kernels_alone(KEY, deployed, task).blocks)
    all_leaves = by_path({"params/.*kernel": full(bits=8), "batch_stats/.*": full(aux=8), ".*": full(aux=8)})
    assert all_leaves(KEY, deployed, task).blocks.keys() == trees.named_leaves(deployed).keys()


def test_statistics_are_those_of_the_batches_in_order():
    """With a learning rate of zero: what flax itself gives for the same batches, whichever they are; here one."""
    deployed, task = world("linen")
    rows = jax.tree.map(lambda leaf: leaf[:20], task.train)
    one_batch = task._replace(train=rows, validation=rows, learning_rate=0.0, epochs=1, batch_size=20)
    score = Objective(
        linen_loss, lambda variables, batch: jnp.sum(variables["batch_stats"]["BatchNorm_0"]["mean"] ** 2)
    )
    made = full(aux=16)(KEY, deployed, one_batch._replace(objective=score))
    _, expected = LinenNet().apply(deployed, rows["features"]["x"], train=True, mutable=["batch_stats"])
    for name, leaf in statistics(applied(made, deployed)).items():
        np.testing.assert_allclose(leaf, statistics(expected)[name], rtol=1e-5, atol=1e-6)


def counting(variables, batch, key):
    loss = jnp.mean((batch["features"]["x"] @ variables["w"] - batch["target"]) ** 2)
    return loss, Extra({"steps": variables["steps"] + 1})


def test_counters_that_a_loss_moves_are_state_and_arrive_exactly():
    """Integers that the loss moves: as many steps as led to the best epoch."""
    _, task = regression()
    deployed = {"w": jnp.zeros((6, 2)), "steps": jnp.int32(100)}
    epochs = []
    made = full()(KEY, deployed, task._replace(objective=Objective(counting), callback=epochs.append))
    best = max(epoch.score for epoch in epochs)
    number = max(epoch.number for epoch in epochs if epoch.score == best)
    assert applied(made, deployed)["steps"] == 100 + 6 * number


def test_moving_a_leaf_that_is_not_there_names_it():
    _, task = regression()
    wrong = Objective(lambda variables, batch, key: (jnp.float32(0), Extra({"stps": jnp.int32(0)})))
    with pytest.raises(updcomp.Error, match=r"Extra.updated has a leaf 'stps'; expected paths .*\['steps', 'w'\]"):
        full()(KEY, {"w": jnp.zeros((6, 2)), "steps": jnp.int32(0)}, task._replace(objective=wrong))
