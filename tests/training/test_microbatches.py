"""Batches that are computed in parts: the same gradients with less memory."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import updcomp
from tests.methods.worlds import KEY, applied, assert_helps, digits, regression
from updcomp import partition, trees
from updcomp.methods import base, full, neurons
from updcomp.partition import AUX, KERNEL
from updcomp.training import Extra, Objective, batches, loop, make_mesh
from updcomp.training.plans import Frozen, as_trained
from updcomp.training.steps import compiled_steps

SGD = functools.partial(optax.sgd, momentum=0.9)


def plan_for(variables, moved=()):
    parts = partition.of(variables, moved=moved)
    leaves = [leaf.name for role in (KERNEL, AUX) for leaf in parts.of_role(role)]
    return base.plan_of("dense", parts, dict.fromkeys(leaves, as_trained))


def train(deployed, task):
    start = {name: leaf for name, leaf in trees.named_leaves(deployed).items() if "batch_stats" not in name}
    return loop.begin(KEY, task, plan_for(deployed), start, Frozen(deployed, {}))


def told(variables, batch, key):
    """A mean over rows, and a metric that is one."""
    hidden = jnp.tanh(batch["features"]["x"] @ variables["first"]["kernel"] + variables["first"]["bias"][None])
    errors = (hidden @ variables["second"]["kernel"] - batch["target"]) ** 2
    return jnp.mean(errors), Extra(metrics={"first": jnp.mean(errors[:, 0])})


@functools.cache
def epoch_in(microbatches):
    """The leaves after an epoch of plain descent, its mean loss and its metrics."""
    deployed, task = regression()
    seen = []
    task = task._replace(
        objective=Objective(told), optimizer=SGD, learning_rate=0.3, microbatches=microbatches, callback=seen.append
    )
    training = loop.run_epoch(train(deployed, task))
    return jax.tree.map(np.asarray, training.state.trainable), seen[0]


@pytest.mark.parametrize("microbatches", [2, 5, 20])
def test_an_epoch_in_parts_is_the_same_to_rounding(microbatches):
    deployed, _ = regression()
    (expected, whole), (found, parts) = epoch_in(1), epoch_in(microbatches)
    for name, start in trees.named_leaves(deployed).items():
        change = np.abs(expected[name] - start).max()
        assert change > 1e-3
        np.testing.assert_allclose(found[name], expected[name], rtol=0, atol=1e-4 * change)
    assert parts.loss == pytest.approx(whole.loss, rel=1e-5)
    assert float(parts.metrics["first"]) == pytest.approx(float(whole.metrics["first"]), rel=1e-5)
    assert parts.score == pytest.approx(whole.score, rel=1e-5)


def noisy(variables, batch, key):
    return jnp.mean(batch["target"]) * 0 + jnp.sum(variables["w"]) * 0, Extra(metrics=jax.random.uniform(key))


def test_parts_draw_other_numbers():
    """The mean of several draws is another one than the first."""
    _, task = regression()
    draws = []
    for microbatches in (1, 2):
        seen = []
        few = task._replace(objective=Objective(noisy), epochs=1, microbatches=microbatches, callback=seen.append)
        full()(KEY, {"w": jnp.ones((3, 2))}, few)
        draws.append(float(seen[0].metrics))
    assert draws[0] != draws[1]


def counting(variables, batch, key):
    loss = jnp.mean((batch["features"]["x"] @ variables["w"] - batch["target"]) ** 2)
    mean = 0.5 * variables["mean"] + 0.5 * jnp.mean(batch["target"])
    return loss, Extra({"mean": mean, "steps": variables["steps"] + 1})


def test_statistics_move_part_by_part():
    _, task = regression()
    deployed = {"w": jnp.zeros((6, 2)), "mean": jnp.float32(0), "steps": jnp.int32(0)}
    rows = jax.tree.map(lambda leaf: leaf[:20], task.train)
    objective = Objective(counting, lambda variables, batch: variables["steps"].astype(jnp.float32))
    one = task._replace(objective=objective, train=rows, epochs=1, microbatches=2)
    new = applied(full()(KEY, deployed, one), deployed)
    assert new["steps"] == 2
    halves = [rows["target"][order].mean() for order in (order_of(one)[::2], order_of(one)[1::2])]
    assert float(new["mean"]) == pytest.approx(float(0.25 * halves[0] + 0.5 * halves[1]), rel=1e-4)


def order_of(task):
    """The rows of the only batch, in their order."""
    (portion,) = batches.epoch(task.train, None, task.batch_size, key=KEY, number=0, sharding=None)
    return np.asarray(portion.order[0])


@pytest.mark.parametrize("microbatches", [3, 40, 0, -1, True, 2.0])
def test_parts_divide_a_batch(microbatches):
    deployed, task = regression()
    with pytest.raises(updcomp.Error, match="microbatches: expected a (divisor of the rows|whole number from 1 on)"):
        full()(KEY, deployed, task._replace(microbatches=microbatches))


def test_parts_divide_the_rows_on_each_device():
    deployed, task = regression()
    mesh = make_mesh()
    with pytest.raises(updcomp.Error, match="microbatches: .* found 4 for 10 rows"):
        full()(KEY, deployed, task._replace(mesh=mesh, microbatches=4))


def test_a_step_in_parts_takes_less_memory():
    deployed, task = digits("cnn")
    held = []
    for microbatches in (1, 5):
        training = train(deployed, task._replace(optimizer=optax.sgd, microbatches=microbatches))
        portion = next(batches.epoch(training.task.train, None, task.batch_size, key=KEY, number=0, sharding=None))
        steps = compiled_steps(*loop.program_of(training))
        lowered = steps.lower(training.state, portion=portion, **loop.arguments_of(training))
        held.append(lowered.compile().memory_analysis().temp_size_in_bytes)
    assert held[1] < 0.5 * held[0]


def test_chosen_neurons_train_in_parts():
    """With less memory for all of them."""
    deployed, task = regression()
    task = task._replace(optimizer=SGD, learning_rate=0.1)
    one, two = (
        neurons(selection="fixed", weights=0.5, bits=16).train(KEY, deployed, task._replace(microbatches=microbatches))
        for microbatches in (1, 2)
    )
    assert two.full.memory < one.full.memory
    assert_helps(two.packet, deployed, task)
    by_method = neurons(selection="fixed", weights=0.5, bits=16, microbatches=2)(KEY, deployed, task)
    assert updcomp.encode(by_method, deployed) == updcomp.encode(two.packet, deployed)
    assert one.packet.blocks.keys() == two.packet.blocks.keys()
    for name, block in one.packet.blocks.items():
        other = two.packet.blocks[name]
        np.testing.assert_array_equal(block.columns, other.columns)
        expected = block.values * block.step
        np.testing.assert_allclose(other.values * other.step, expected, rtol=0, atol=4e-3 * np.abs(expected).max())
