"""Kernels that are read along other axes: attention's, and stacks of equal layers."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import updcomp
from tests.methods.worlds import KEY, applied, assert_helps, regression
from updcomp.methods import by_path, full, low_rank, partial, random_mask, subspace
from updcomp.training import Objective
from updcomp.wire.kinds.factors import Factors
from updcomp.wire.kinds.half import Half

LAYERS, WIDTH = 3, 6
AXES = {"layers/kernel": "stack in out", "layers/bias": "stack out", "heads": "in out out"}


def stacked_loss(variables, batch, key):
    """A scan over stacked layers, and heads of a kernel with two axes of fan-out."""

    def layer(x, parameters):
        return x + jnp.tanh(x @ parameters["kernel"] + parameters["bias"][None]), None

    x, _ = jax.lax.scan(layer, batch["features"]["x"], variables["layers"])
    out = jnp.einsum("ni,ihd->nhd", x, variables["heads"]).sum(1)
    return jnp.mean((out - batch["target"]) ** 2)


def separate_loss(variables, batch, key):
    """The same with one leaf a layer and a heads kernel with one axis of fan-out."""
    x = batch["features"]["x"]
    for i in range(LAYERS):
        x = x + jnp.tanh(x @ variables[f"kernel{i}"] + variables[f"bias{i}"][None])
    out = (x @ variables["heads"]).reshape(len(x), 4, 2).sum(1)
    return jnp.mean((out - batch["target"]) ** 2)


@functools.cache
def stacked():
    _, task = regression()
    keys = jax.random.split(KEY, 2)
    deployed = {
        "layers": {
            "kernel": jax.random.normal(keys[0], (LAYERS, WIDTH, WIDTH)) / 3,
            "bias": jnp.zeros((LAYERS, WIDTH)),
        },
        "heads": jax.random.normal(keys[1], (WIDTH, 4, 2)) / 4,
    }
    return deployed, task._replace(objective=Objective(stacked_loss), axes=AXES)


def separate(stacked_tree):
    layers = stacked_tree["layers"]
    return {
        **{f"kernel{i}": layers["kernel"][i] for i in range(LAYERS)},
        **{f"bias{i}": layers["bias"][i] for i in range(LAYERS)},
        "heads": stacked_tree["heads"].reshape(WIDTH, 8),
    }


@pytest.mark.parametrize("method", [
    full(bits=8), full(), partial(ratio=0.3), low_rank(rank=2), subspace(rank=4), random_mask(ratio=0.3),
], ids=["full 8 bits", "full", "partial", "low_rank", "subspace", "random_mask"])  # fmt: skip
def test_stacks_and_heads_are_updated_and_device_and_server_agree(method):
    deployed, task = stacked()
    made = method(KEY, deployed, task)
    assert_helps(made, deployed, task)  # by bytes, whose fingerprint of the result is the server's own


def test_factors_and_coefficients_have_one_matrix_per_layer():
    deployed, task = stacked()
    factors = low_rank(rank=2)(KEY, deployed, task).blocks
    assert (factors["layers/kernel"].left.shape, factors["layers/kernel"].right.shape) == ((18, 2), (18, 2))
    assert (factors["heads"].left.shape, factors["heads"].right.shape) == ((6, 2), (8, 2))
    coefficients = subspace(rank=4)(KEY, deployed, task).blocks
    assert coefficients["layers/kernel"].values.shape == (12, 4)
    assert coefficients["heads"].values.shape == (4, 4)


def test_a_rank_is_that_of_one_layer():
    deployed, task = stacked()
    assert low_rank(rank=99)(KEY, deployed, task).blocks["layers/kernel"].left.shape == (18, 6)
    new = applied(low_rank(rank=1, aux=None)(KEY, deployed, task), deployed)
    change = np.float64(new["layers"]["kernel"]) - np.float64(deployed["layers"]["kernel"])
    assert np.linalg.matrix_rank(change, tol=1e-5).tolist() == [1, 1, 1]


def test_a_stacked_bias_is_an_aux_leaf():
    deployed, task = stacked()
    blocks = low_rank(rank=1, aux=16)(KEY, deployed, task).blocks
    assert isinstance(blocks["layers/bias"], Half)
    assert "layers/bias" not in low_rank(rank=1, aux=None)(KEY, deployed, task).blocks
    unsaid = low_rank(rank=1, aux=None)(KEY, deployed, task._replace(axes={})).blocks
    assert isinstance(unsaid["layers/bias"], Factors)  # without a word it is a kernel (3, 6)


def test_scanned_layers_train_as_separate_ones_do():
    """In full: the same weights. A stack is one leaf on the wire, and nothing else."""
    deployed, task = stacked()
    new = separate(applied(full()(KEY, deployed, task), deployed))
    apart = separate(deployed)
    plain = task._replace(objective=Objective(separate_loss), axes={})
    expected = applied(full()(KEY, apart, plain), apart)
    for name, leaf in expected.items():
        np.testing.assert_allclose(new[name], leaf, rtol=1e-4, atol=1e-5)
        assert np.any(np.asarray(leaf) != np.asarray(apart[name]))


def test_the_first_pattern_counts_and_by_path_keeps_the_axes():
    deployed, task = stacked()
    task = task._replace(axes={"heads": "in in out", ".*bias": "stack out", ".*": "stack in out"})
    blocks = by_path({"heads": low_rank(rank=2)})(KEY, deployed, task).blocks
    assert (blocks["heads"].left.shape, blocks["heads"].right.shape) == ((24, 2), (2, 2))


@pytest.mark.parametrize(
    ("axes", "message"),
    [
        ({"heads": "in out"}, r"axes: leaf 'heads': expected 3 words for shape \(6, 4, 2\), found 'in out'"),
        ({"head": "in out out"}, r"rule 'head': matches no leaf; .*'heads', 'layers/bias', 'layers/kernel'"),
        ({"heads": "in out up"}, "expected a word per axis, stack, in or out, found 'up'"),
        ({"heads": "stack stack stack"}, "at least one of them in or out"),
    ],
)
def test_axes_that_do_not_fit_are_refused_by_name(axes, message):
    deployed, task = stacked()
    with pytest.raises(updcomp.Error, match=message):
        full()(KEY, deployed, task._replace(axes=axes))
