"""Training some neurons under a budget: what is kept, what changes, and what that takes."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import updcomp
from tests.methods.worlds import KEY, applied, assert_helps, assert_like, assert_same, digits, regression, score
from updcomp import trees
from updcomp.methods import by_path, full, neurons
from updcomp.methods.selections import SELECTIONS
from updcomp.training import Objective, Stream, checkpoints, classification
from updcomp.training.compilation import measured
from updcomp.wire import views
from updcomp.wire.kinds.columns import Columns

SMALL = {"weights": 0.2}
WAYS = {
    "velocity": SMALL,
    "random": SMALL,
    "fixed": SMALL,
    "gradient": SMALL,
    "layers": SMALL,
    "static": {"memory": 0.7},
    "depth": {"memory": 0.8},
    "classifier": {},
    "full": {},
}
ROWS = [(name, "cnn" if name == "depth" else "mlp") for name in WAYS]
EVERY = pytest.mark.parametrize(("selection", "model"), ROWS)


@functools.cache
def trained(selection, model="mlp"):
    deployed, task = digits(model)
    return neurons(selection=selection, **WAYS[selection]).train(KEY, deployed, task)


def weights_of(blocks):
    """How many weights the blocks of a packet change."""
    return sum(block.values.size for block in blocks.values())


def test_every_selection_is_in_the_table():
    assert WAYS.keys() == SELECTIONS.keys()


@EVERY
def test_training_helps_and_keeps_to_its_budget(selection, model):
    deployed, task = digits(model)
    outcome = trained(selection, model)
    assert_like(assert_helps(outcome.packet, deployed, task), deployed)
    spent = outcome.spent
    found = {"weights": spent.weights, "flops": spent.backward_flops, "memory": spent.peak_bytes}
    for currency, share in WAYS[selection].items():
        most = share * getattr(outcome.full, currency)
        assert 0.5 * most < found[currency] <= most
    assert 0 < spent.weights <= outcome.full.weights
    assert spent.step_seconds > 0
    assert spent.choosing_share > 0
    assert 1 <= spent.compiled <= 4


@EVERY
def test_what_is_not_chosen_keeps_its_bits(selection, model):
    deployed, _ = digits(model)
    blocks = trained(selection, model).packet.blocks
    new, old = (trees.named_leaves(tree) for tree in (applied(trained(selection, model).packet, deployed), deployed))
    for name, leaf in old.items():
        if name not in blocks:
            assert np.asarray(new[name]).tobytes() == np.asarray(leaf).tobytes()
            continue
        assert isinstance(blocks[name], Columns)
        before, after = (np.asarray(views.split(own, blocks[name].view)[0]) for own in (leaf, new[name]))
        rest = np.setdiff1d(np.arange(before.shape[1]), blocks[name].columns)
        assert before[:, rest].tobytes() == after[:, rest].tobytes()
        assert np.any(before != after)
    assert not any("scale" in name or "batch_stats" in name for name in blocks)


@EVERY
def test_the_partition_of_every_epoch_says_what_trained_and_how_deep(selection, model):
    outcome = trained(selection, model)
    _, task = digits(model)
    assert len(outcome.partitions) == task.epochs
    order = {"mlp": ["Dense_0", "Dense_1"], "cnn": ["Conv_0", "Dense_0", "Dense_1"]}[model]
    for parts in outcome.partitions:
        depths = {leaf.name: leaf.depth for leaf in parts.leaves}
        assert [depths[f"params/{layer}/kernel"] for layer in order] == list(range(len(order)))
        assert all(depths[name] is not None for name in parts.chosen)
        if model == "cnn":
            assert depths["params/BatchNorm_1/bias"] == 1
            assert depths["params/BatchNorm_1/scale"] is None
    assert outcome.packet.blocks.keys() <= frozenset.union(*(parts.chosen for parts in outcome.partitions))


def test_a_choice_once_is_all_that_changes_and_a_new_one_each_epoch_is_not():
    for selection in ("fixed", "classifier", "full", "static"):
        outcome = trained(selection)
        # Neurons that are dead on all samples do not move.
        assert 0.8 * outcome.spent.weights < weights_of(outcome.packet.blocks) <= outcome.spent.weights
    for selection in ("velocity", "random", "layers"):
        outcome = trained(selection)
        assert outcome.spent.weights < weights_of(outcome.packet.blocks) <= 2 * outcome.spent.weights


def test_classifier_and_full_are_what_they_say():
    assert trained("classifier").packet.blocks.keys() == {"params/Dense_1/kernel", "params/Dense_1/bias"}
    everything = trained("full")
    assert everything.spent.weights == everything.full.weights == 64 * 24 + 24 + 24 * 10 + 10


def test_the_call_gives_the_packet():
    deployed, task = digits()
    packet = neurons(selection="classifier")(KEY, deployed, task)
    assert updcomp.encode(packet, deployed) == updcomp.encode(trained("classifier").packet, deployed)


def test_all_neurons_are_a_full_training_with_the_deployed_statistics():
    deployed, task = digits("cnn")
    task = task._replace(optimizer=optax.sgd, learning_rate=0.05)
    expected = trees.named_leaves(applied(by_path({".*(kernel|bias)": full()})(KEY, deployed, task), deployed))
    packet = neurons(selection="full", bits=16)(KEY, deployed, task)
    assert packet.blocks.keys() == {name for name in expected if name.endswith(("kernel", "bias"))}
    for name, leaf in trees.named_leaves(applied(packet, deployed)).items():
        change = float(jnp.max(jnp.abs(expected[name] - trees.named_leaves(deployed)[name])))
        np.testing.assert_allclose(leaf, expected[name], rtol=0, atol=2e-3 * change)


def test_one_step_is_that_of_full_training_on_the_chosen_columns():
    deployed, task = digits("cnn")
    batch = jax.tree.map(lambda leaf: leaf[:50], task.train)
    objective = task.objective._replace(score=None)  # the loss, which one step makes smaller
    task = task._replace(objective=objective, optimizer=optax.sgd, learning_rate=0.05, epochs=1, train=batch)
    packet = neurons(selection="fixed", weights=0.3, bits=16)(KEY, deployed, task)
    gradients = jax.jit(jax.grad(lambda variables: objective.loss(variables, batch, KEY, train=False)[0]))
    matrices = {
        name: np.asarray(views.split(leaf, packet.blocks[name].view)[0])
        for name, leaf in trees.named_leaves(gradients(deployed)).items()
        if name in packet.blocks
    }
    assert {"params/Conv_0/kernel", "params/BatchNorm_0/bias", "params/Dense_0/kernel"} <= matrices.keys()
    for name, block in packet.blocks.items():
        assert 0 < len(block.columns) < matrices[name].shape[1]
        expected = -0.05 * matrices[name][:, block.columns]
        # Steps have eight bits, and the largest change is cut to them.
        np.testing.assert_allclose(block.values * block.step, expected, rtol=4e-3, atol=1e-4 * np.abs(expected).max())


def test_the_rate_multiplies_that_of_the_task():
    deployed, task = digits()
    twice = neurons(selection="classifier", rate=2.0)(KEY, deployed, task)
    expected = neurons(selection="classifier")(KEY, deployed, task._replace(learning_rate=2e-2))
    assert updcomp.encode(twice, deployed) == updcomp.encode(expected, deployed)


def test_every_one_of_several_budgets_is_kept():
    deployed, task = regression()
    outcome = neurons(selection="fixed", weights=50, flops=0.9, memory=1.0).train(KEY, deployed, task)
    assert 0 < weights_of(outcome.packet.blocks) == outcome.spent.weights <= 50
    assert outcome.spent.backward_flops <= 0.9 * outcome.full.flops
    assert outcome.spent.peak_bytes <= outcome.full.memory


def test_a_random_choice_fits_a_budget_of_operations():
    """Where shapes are rounded up, and elementwise operations count."""
    deployed, task = digits()
    outcome = neurons(selection="fixed", flops=0.4).train(KEY, deployed, task._replace(epochs=1))
    assert 0 < outcome.spent.backward_flops <= 0.4 * outcome.full.flops


def test_a_budget_too_small_names_the_smallest_possible():
    deployed, task = regression()
    with pytest.raises(updcomp.Error, match="budget: expected at least about weights=") as caught:
        neurons(selection="fixed", weights=1)(KEY, deployed, task)
    smallest = int(re.search(r"weights=(\d+)", str(caught.value))[1])
    assert smallest == 7
    assert neurons(selection="fixed", weights=smallest).train(KEY, deployed, task).spent.weights == smallest
    for budget in ({"memory": 10}, {"flops": 1e-6}, {"weights": smallest - 1, "memory": 1.0}):
        with pytest.raises(updcomp.Error, match="budget: expected at least"):
            neurons(**budget)(KEY, deployed, task)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "selection: depth: expected a budget of weights, flops or memory, found none"),
        ({"selection": "random"}, "selection: random: expected a budget"),
        ({"selection": "full", "memory": 0.5}, "selection: full: expected no budget.*memory"),
        ({"selection": "classifier", "weights": 5}, "selection: classifier: expected no budget"),
        ({"selection": "best", "weights": 5}, "selection: expected one of velocity, .*, full, found 'best'"),
        *(
            ({"weights": wrong}, "weights: expected a whole number above 0, or a share")
            for wrong in (True, False, 0, -1, 0.0, -0.5, 1.01, float("nan"), float("inf"), "0.5")
        ),
        ({"flops": 2.0}, "flops: "),
        ({"memory": 0}, "memory: "),
        *(
            ({"weights": 0.5, "probe": wrong}, "probe: expected a whole number from 1 on")
            for wrong in (0, -1, True, 1.0)
        ),
        *(({"weights": 0.5, "shapes": wrong}, "shapes: expected a whole number") for wrong in (0, -1, True, 1.0)),
        ({"weights": 0.5, "microbatches": 0}, "microbatches: expected a whole number"),
        ({"weights": 0.5, "bits": 1}, "bits"),
        ({"weights": 0.5, "rate": 0.0}, "rate"),
    ],
)
def test_options_are_checked_when_the_method_is_made(options, message):
    with pytest.raises(updcomp.Error, match=message):
        neurons(**options)


def _elementwise(variables, images, *, train):
    flat = images.reshape(len(images), -1)[:, :10]
    return flat * jnp.sum(variables["kernel"] ** 2) + variables["bias"][None], {}


def test_a_model_without_layers_says_so():
    _, task = digits()
    deployed = {"kernel": jnp.ones((3, 4)), "bias": jnp.zeros(10)}
    with pytest.raises(updcomp.Error, match="neurons: expected a dot product.*found none.*'kernel'"):
        neurons(weights=0.5)(KEY, deployed, task._replace(objective=classification(_elementwise)))


def test_no_more_shapes_are_compiled_than_are_allowed_and_none_again():
    deployed, task = regression()
    method = neurons(selection="velocity", weights=0.5, shapes=1)
    task = task._replace(epochs=6)
    first = method.train(KEY, deployed, task)
    with measured() as again:
        second = method.train(KEY, deployed, task)
    assert again.count == 0
    assert 1 <= first.spent.compiled <= 2
    assert updcomp.encode(second.packet, deployed) == updcomp.encode(first.packet, deployed)
    assert first.spent.weights <= 0.5 * first.full.weights


def test_one_sample_is_enough_to_choose_by():
    deployed, task = regression()
    outcome = neurons(selection="velocity", weights=0.5, probe=1).train(KEY, deployed, task)
    assert_helps(outcome.packet, deployed, task)
    assert outcome.spent.weights <= 0.5 * outcome.full.weights


@pytest.mark.parametrize("selection", ["depth", "velocity"])
def test_a_stream_of_batches_trains(selection):
    deployed, task = regression()
    rows = [{**jax.tree.map(lambda leaf, i=i: np.asarray(leaf[i : i + 20]), task.train)} for i in range(0, 120, 20)]
    stream = task._replace(train=Stream(rows, steps=6))
    assert_helps(neurons(selection=selection, weights=0.5)(KEY, deployed, stream), deployed, stream)


def test_the_samples_in_use_are_all_that_is_probed():
    """Rows that are not in use are NaN."""
    deployed, task = regression()
    used = np.arange(40, 120)
    spoilt = jax.tree.map(lambda leaf: leaf.at[:40].set(np.nan), task.train)
    found = neurons(selection="velocity", weights=0.5).train(KEY, deployed, task._replace(train=spoilt, samples=used))
    assert_helps(found.packet, deployed, task)


def _narrow(variables, batch, key):
    hidden = jnp.tanh(batch["features"]["x"] @ variables["w"] + variables["b"][None])
    gated = hidden * variables["shift"].mean() + variables["shift"][None]
    return jnp.mean((gated @ variables["v"] - batch["target"]) ** 2)


def test_a_vector_that_is_no_element_for_each_neuron_stays():
    """One number that is added to all outputs."""
    _, task = regression()
    deployed = {
        "w": jax.random.normal(KEY, (6, 8)) / 3,
        "b": jnp.zeros(1),
        "shift": jnp.ones(8),
        "v": jax.random.normal(KEY, (8, 2)) / 4,
    }
    found = neurons(selection="full").train(KEY, deployed, task._replace(objective=Objective(_narrow)))
    assert found.packet.blocks.keys() == {"w", "v"}
    assert found.spent.weights == 6 * 8 + 8 * 2


def test_any_optimizer_trains_neurons_that_change():
    """Its state need not have the shape of the leaves."""
    deployed, task = regression()
    task = task._replace(optimizer=optax.adafactor, learning_rate=1e-2)
    assert_helps(neurons(selection="random", weights=0.5)(KEY, deployed, task), deployed, task)


def test_moments_are_kept_where_all_neurons_are_chosen_again_each_epoch():
    """The same as one choice of all of them."""
    deployed, task = regression()
    task = task._replace(optimizer=functools.partial(optax.sgd, momentum=0.9), epochs=3)
    again = neurons(selection="random", weights=1.0, bits=16)(KEY, deployed, task)
    once = neurons(selection="full", bits=16)(KEY, deployed, task)
    assert_same(applied(again, deployed), applied(once, deployed))


def checkpointed(monkeypatch, seconds=-1.0):
    monkeypatch.setattr(checkpoints, "SECONDS_BETWEEN", seconds)


class Killed(Exception):
    pass


@pytest.mark.parametrize("selection", ["fixed", "velocity"])
def test_a_killed_training_goes_on(selection, tmp_path, monkeypatch):
    """Plain descent has no state to lose."""
    checkpointed(monkeypatch)
    deployed, task = regression()
    task = task._replace(optimizer=optax.sgd, learning_rate=0.1)
    method = neurons(selection=selection, weights=0.5)

    def kill(epoch):
        if epoch.number == 3:
            raise Killed

    with pytest.raises(Killed):
        method(KEY, deployed, task._replace(checkpoints=tmp_path, callback=kill))
    told = []
    found = method(KEY, deployed, task._replace(checkpoints=tmp_path, callback=told.append))
    assert [epoch.number for epoch in told] == [3, 4]
    assert updcomp.encode(found, deployed) == updcomp.encode(method(KEY, deployed, task), deployed)


def test_another_setting_in_the_same_folder_starts_anew(tmp_path, monkeypatch):
    checkpointed(monkeypatch)
    deployed, task = regression()
    neurons(selection="fixed", weights=0.5)(KEY, deployed, task._replace(checkpoints=tmp_path))
    for other in (neurons(selection="random", weights=0.5), neurons(selection="fixed", weights=0.499)):
        found = other(KEY, deployed, task._replace(checkpoints=tmp_path))
        assert updcomp.encode(found, deployed) == updcomp.encode(other(KEY, deployed, task), deployed)


def test_where_no_epoch_helps_nothing_is_sent():
    deployed, task = regression()
    packet = neurons(selection="fixed", weights=0.5)(KEY, deployed, task._replace(learning_rate=0.0))
    assert packet.blocks == {}
    assert score(applied(packet, deployed), task) == score(deployed, task)
