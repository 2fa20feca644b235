"""A method for each leaf, by rules over their paths."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import updcomp
from tests.methods.worlds import KEY, assert_helps, digits, regression
from updcomp import trees
from updcomp.methods import METHODS, by_path, full, low_rank, magnitude_mask, partial, random_mask, subspace
from updcomp.training import Objective, loop
from updcomp.wire.kinds.coefficients import Coefficients
from updcomp.wire.kinds.dense import Dense
from updcomp.wire.kinds.factors import Factors
from updcomp.wire.kinds.half import Half
from updcomp.wire.kinds.magnitude import Magnitude
from updcomp.wire.kinds.seeded import Seeded
from updcomp.wire.kinds.sparse import Sparse


def deep():
    """Five kernels and biases of one chain, and the task of mapping inputs to a teacher's targets."""
    _, task = regression()
    keys = jax.random.split(KEY, 5)
    widths = [6, 8, 8, 8, 8, 2]
    deployed = {
        f"layer{i}": {"kernel": jax.random.normal(keys[i], widths[i : i + 2]) / 2.5, "bias": jnp.zeros(widths[i + 1])}
        for i in range(5)
    }
    return deployed, task._replace(objective=Objective(_chain))


def _chain(variables, batch, key):
    x = batch["features"]["x"]
    for i in range(5):
        layer = variables[f"layer{i}"]
        x = (jnp.tanh(x) if i else x) @ layer["kernel"] + layer["bias"][None]
    return jnp.mean((x - batch["target"]) ** 2)


MIXED = {
    "layer0/kernel": low_rank(rank=2),
    "layer1/kernel": random_mask(ratio=0.2),
    "layer2/kernel": subspace(rank=3),
    "layer3/kernel": magnitude_mask(ratio=0.2),
    "layer4/.*": full(bits=8, aux=8),
    ".*bias": full(aux=16, bits=4),
}


def test_forms_of_every_kind_travel_in_one_packet():
    deployed, task = deep()
    made = by_path(MIXED)(KEY, deployed, task)
    assert_helps(made, deployed, task)
    kinds = {"layer0": Factors, "layer1": Seeded, "layer2": Coefficients, "layer3": Magnitude, "layer4": Dense}
    assert {name: type(made.blocks[f"{name}/kernel"]) for name in kinds} == kinds
    assert isinstance(made.blocks["layer0/bias"], Half)
    assert isinstance(made.blocks["layer4/bias"], Dense)
    told = updcomp.inspect(updcomp.encode(made, deployed))["kinds"]
    assert sum(told.values()) == 10


def test_the_first_rule_that_matches_counts():
    deployed, task = regression()
    made = by_path({"first/.*": full(bits=4), ".*kernel": low_rank(rank=1)})(KEY, deployed, task)
    assert isinstance(made.blocks["first/kernel"], Dense)
    assert isinstance(made.blocks["second/kernel"], Factors)
    other = by_path({".*kernel": low_rank(rank=1), "first/.*": full(bits=4)})(KEY, deployed, task)
    assert isinstance(other.blocks["first/kernel"], Factors)


def test_a_rule_has_to_match_the_whole_path():
    deployed, task = regression()
    with pytest.raises(updcomp.Error, match="rule 'kernel': matches no leaf; .*'first/bias', 'first/kernel', 'second"):
        by_path({"kernel": full()})(KEY, deployed, task)


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("layer9/.*", "'layer9/.*': matches no leaf"),
        ("(", "expected a regular expression"),
        (".*bias", "'.*bias': what it matches is taken by an earlier rule, '.*'; put it first"),
    ],
)
def test_a_rule_that_chooses_nothing_is_an_error_even_beside_others(pattern, message):
    deployed, task = regression()
    with pytest.raises(updcomp.Error, match=message):
        by_path({".*": full(), pattern: None})(KEY, deployed, task)


def watched_fit(monkeypatch):
    """What every training is given to differentiate, and what the optimizer then holds."""
    seen = []
    fit = loop.fit

    def watched(key, task, plan, trainable, frozen, **options):
        fitted = fit(key, task, plan, trainable, frozen, **options)
        seen.append((plan, trainable, fitted, options))
        return fitted

    monkeypatch.setattr(loop, "fit", watched)
    return seen


@pytest.mark.parametrize("rules", [
    {"first/.*": None, ".*": full(bits=8)},
    {"first/.*": None, ".*": partial(ratio=0.5)},
    {"second/.*": low_rank(rank=2)},
], ids=["None", "None beside partial", "no rule"])  # fmt: skip
def test_leaves_without_a_method_stay_and_nothing_is_computed_for_them(rules, monkeypatch):
    deployed, task = regression()
    seen = watched_fit(monkeypatch)
    new = assert_helps(by_path(rules)(KEY, deployed, task), deployed, task)
    for name in ("kernel", "bias"):
        assert np.asarray(new["first"][name]).tobytes() == np.asarray(deployed["first"][name]).tobytes()
    assert seen
    for plan, trainable, fitted, _ in seen:
        assert set(trainable) == set(fitted.trainable) == {"second/kernel"}
        assert [name for name, _ in plan.rebuild] == ["second/kernel"]
        shapes = {leaf.shape for leaf in jax.tree.leaves(fitted.optimizer)}
        assert (6, 16) not in shapes
        assert (16,) not in shapes


def test_below_the_lowest_leaf_that_trains_nothing_is_differentiated():
    """A layer without a gradient: its backward pass would fail."""
    _, task = regression()

    @jax.custom_vjp
    def lower(kernel, x):
        return x @ kernel

    def refuse(residuals, gradient):
        raise AssertionError("differentiated")

    lower.defvjp(lambda kernel, x: (lower(kernel, x), None), refuse)

    def loss(variables, batch, key):
        hidden = lower(variables["a"]["kernel"], batch["features"]["x"])
        return jnp.mean((hidden @ variables["b"]["kernel"] - batch["target"]) ** 2)

    deployed = {"a": {"kernel": jnp.eye(6)}, "b": {"kernel": jnp.zeros((6, 2))}}
    task = task._replace(objective=Objective(loss))
    assert_helps(by_path({"b/.*": full(bits=8)})(KEY, deployed, task), deployed, task)
    with pytest.raises(AssertionError, match="differentiated"):
        full(bits=8)(KEY, deployed, task)


def test_partial_ranks_the_weights_of_its_own_leaves_alone():
    deployed, task = digits()
    made = by_path({".*Dense_1.*": None, ".*": partial(ratio=0.1)})(KEY, deployed, task)
    sparse = {name: block for name, block in made.blocks.items() if isinstance(block, Sparse)}
    assert list(sparse) == ["params/Dense_0/kernel"]
    assert len(sparse["params/Dense_0/kernel"].positions) == int(0.1 * 64 * 24)


def test_one_method_for_all_leaves_is_that_method():
    deployed, task = regression()
    for name, options in (("low_rank", {"rank": 2}), ("partial", {"ratio": 0.2}), ("random_mask", {"ratio": 0.2})):
        method = METHODS[name](**options)
        alone, ruled = method(KEY, deployed, task), by_path({".*": method})(KEY, deployed, task)
        assert updcomp.encode(ruled, deployed) == updcomp.encode(alone, deployed)


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        ({}, "expected at least one method"),
        ({".*": None}, "expected at least one method"),
        ({"a": partial(ratio=0.1), "b": full()}, "partial alone or beside None"),
        ({"a": partial(ratio=0.1), "b": partial(ratio=0.2)}, "partial alone or beside None"),
        ({"a": by_path({".*": full()})}, "expected methods of updcomp.methods, or None, found ByPath"),
        ({"a": lambda key, deployed, task: None}, "found function"),
    ],
)
def test_rules_that_cannot_be_are_refused_when_they_are_made(rules, message):
    with pytest.raises(updcomp.Error, match=message):
        by_path(rules)


def test_every_leaf_has_the_rate_of_its_method(monkeypatch):
    """Plain descent from the same start: twice the rate moves a leaf twice as far in one step."""
    deployed, task = regression()
    task = task._replace(optimizer=optax.sgd, epochs=1, train=jax.tree.map(lambda leaf: leaf[:20], task.train))
    seen = watched_fit(monkeypatch)
    rates = {"first/.*": 1.0, "second/.*": 7.0}
    for factor in (1.0, 2.0):
        rules = {pattern: full(bits=16, rate=factor * rate) for pattern, rate in rates.items()}
        by_path(rules)(KEY, deployed, task)
    assert [options["rates"]["second/kernel"] for *_, options in seen] == [7.0, 14.0]
    slow, fast = (fitted.last for _, _, fitted, _ in seen)
    start = trees.named_leaves(deployed)
    moved = {}
    for name, old in start.items():
        moved[name] = np.asarray(slow[name] - old)
        np.testing.assert_allclose(fast[name] - old, 2 * moved[name], rtol=1e-3, atol=1e-7)
    gradients = jax.grad(task.objective.loss)(deployed, task.train, KEY)
    for name, gradient in trees.named_leaves(gradients).items():
        rate = 3e-3 * (7.0 if name.startswith("second") else 1.0)
        np.testing.assert_allclose(moved[name], -rate * gradient, rtol=1e-2, atol=1e-6)
