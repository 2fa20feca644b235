"""Layers that are found in any program, what their neurons give, and gradients of some columns alone."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import equinox
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax import lax

from updcomp import convolution, trees
from updcomp.convolution import convolve
from updcomp.layers import Columns, evaluate, find, outputs, put, take
from updcomp.wire.errors import LeafError
from updcomp.wire.views import View, of_words

KEY = jax.random.key(0)
BIAS = View((), (0,))
NHWC, NCHW = ("NHWC", "HWIO", "NHWC"), ("NCHW", "OIHW", "NCHW")


class Case(NamedTuple):
    """A model, and the layers that it has: (kernel, bias, axes, neurons, weights of a neuron)."""

    model: Callable[[Any, Any], Any]
    variables: Any
    x: Any
    layers: list[tuple[str, str | None, str, int, int]]


def normal(*shape, seed=0):
    """Small enough that nothing saturates."""
    return np.random.default_rng([seed, *shape]).normal(scale=0.5, size=shape).astype(np.float32)


def moved(tree):
    """No weight that is 0 or 1 from the start; statistics stay positive."""
    leaves, structure = jax.tree.flatten(tree)
    return jax.tree.unflatten(structure, [old + abs(normal(*old.shape, seed=i)) / 4 for i, old in enumerate(leaves)])


def weights(**shapes):
    return {name: normal(*shape, seed=i) for i, (name, shape) in enumerate(shapes.items())}


def conv(x, kernel, strides=(1, 1), padding="SAME", layout=NHWC, **options):
    return lax.conv_general_dilated(x, kernel, strides, padding, dimension_numbers=layout, **options)


def dense(v, x):
    return jnp.tanh(x @ v["w"] + v["b"][None])


def deep(v, x):
    """Three layers, of which the middle one is computed by `dense`."""
    hidden = dense(v["middle"], jnp.tanh(x @ v["first"]))
    return hidden @ v["last"] + v["bias"][None]


DEEP = {"first": normal(3, 5), "middle": weights(w=(5, 4), b=(4,)), "last": normal(4, 2), "bias": normal(2)}
DEEP_LAYERS = [
    ("first", None, "in out", 5, 3),
    ("middle/w", "middle/b", "in out", 4, 5),
    ("last", "bias", "in out", 2, 4),
]


class Net(nn.Module):
    """Convolutions with and without groups and the products of `convolve`, batch norm, dense."""

    @nn.compact
    def __call__(self, x):
        x = nn.Conv(4, (3, 3), use_bias=False, conv_general_dilated=convolve)(x)
        x = nn.relu(nn.BatchNorm(use_running_average=True)(x))
        x = nn.Conv(4, (3, 3), strides=2, feature_group_count=4, conv_general_dilated=convolve)(x)
        x = nn.Conv(6, (3, 3), strides=2, feature_group_count=2)(x)
        return nn.Dense(3)(x.mean(axis=(1, 2)))


class Attention(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.MultiHeadDotProductAttention(num_heads=2, qkv_features=6, out_features=5, name="a")(x)


class NnxNet(nnx.Module):
    def __init__(self, rngs):
        self.conv = nnx.Conv(2, 4, (3, 3), rngs=rngs)
        self.dense = nnx.Linear(4, 3, rngs=rngs)

    def __call__(self, x):
        return self.dense(jnp.tanh(self.conv(x)).mean(axis=(1, 2)))


def linen(module, x, expected):
    return Case(module.apply, moved(jax.jit(module.init)(KEY, x)), x, expected)


def linen_net():
    rows = [
        ("params/Conv_0/kernel", "params/BatchNorm_0/bias", "in in in out", 4, 18),
        ("params/Conv_1/kernel", "params/Conv_1/bias", "in in in out", 4, 9),
        ("params/Conv_2/kernel", "params/Conv_2/bias", "in in in out", 6, 18),
        ("params/Dense_0/kernel", "params/Dense_0/bias", "in out", 3, 6),
    ]
    return linen(Net(), normal(2, 8, 8, 2), rows)


def attention():
    rows = [(f"params/a/{name}/kernel", None, "in out out", 6, 4) for name in ("query", "key", "value")]
    rows.append(("params/a/out/kernel", "params/a/out/bias", "in in out", 5, 6))
    return linen(Attention(), normal(2, 3, 4), rows)


def nnx_net():
    graph, state = nnx.split(NnxNet(nnx.Rngs(0)))

    def model(variables, x):
        return nnx.merge(graph, variables)(x)

    rows = [("conv/kernel", "conv/bias", "in in in out", 4, 18), ("dense/kernel", "dense/bias", "in out", 3, 4)]
    return Case(model, moved(state), normal(2, 5, 5, 2), rows)


def equinox_net():
    """One sample at a time, mapped over the batch; the weights are (out, in)."""
    network = equinox.nn.MLP(3, 2, 4, 1, activation=jnp.tanh, key=KEY)
    arrays, rest = equinox.partition(network, equinox.is_array)

    def model(variables, x):
        return jax.vmap(equinox.combine(variables, rest))(x)

    rows = [(f"layers/{i}/weight", f"layers/{i}/bias", "out in", (4, 2)[i], (3, 4)[i]) for i in range(2)]
    return Case(model, arrays, normal(5, 3), rows)


def residual(v, x):
    """The vector behind the last product of a block is its bias, unless the shortcut is added before."""
    first, last, after = (v[name][None, None, None] for name in ("b1", "b2", "after"))
    y = jax.nn.relu(conv(x, v["c1"]) * v["scale"][None, None, None] + first)
    x = jax.nn.relu(conv(y, v["c2"]) + last + x)
    return x @ v["w"] + x + after


RESIDUAL = {
    "c1": (3, 3, 2, 2),
    "c2": (3, 3, 2, 2),
    "w": (2, 2),
    **dict.fromkeys(("b1", "b2", "after", "scale"), (2,)),
}


def tied(v, x):
    for _ in range(2):
        x = jnp.tanh(x @ v["w"])
    return x @ v["v"]


def left_out(v, x):
    """An embedding, a kernel that decodes as well, one with a penalty, one in a scan, two that are multiplied."""
    hidden = v["embedding"][jnp.arange(len(x))] + x @ v["w"]
    decoded = jnp.tanh(x @ v["decoder"]) @ v["decoder"].T
    scanned, _ = lax.scan(lambda carry, _: (jnp.tanh(carry @ v["scanned"]), None), x, None, length=2)
    penalty = jnp.sum(v["decayed"] ** 2) + jnp.sum(v["a"] @ v["b"])
    return hidden + decoded + scanned + jnp.tanh(x @ v["decayed"]) + penalty


LEFT_OUT = dict.fromkeys(("w", "decoder", "scanned", "decayed", "a", "b"), (3, 3))

SINGLE = {
    "x @ w": Case(dense, weights(w=(3, 4), b=(4,)), normal(5, 3), [("w", "b", "in out", 4, 3)]),
    "x @ w over positions": Case(
        lambda v, x: x @ v["w"], weights(w=(3, 4)), normal(5, 2, 3), [("w", None, "in out", 4, 3)]
    ),
    "w @ x": Case(
        lambda v, x: (v["w"] @ x.T + v["b"][:, None]).T,
        weights(w=(4, 3), b=(4,)),
        normal(5, 3),
        [("w", "b", "out in", 4, 3)],
    ),
    "x @ w.T": Case(
        lambda v, x: jnp.tanh(x @ v["w"].T + v["b"][None]),
        weights(w=(4, 3), b=(4,)),
        normal(5, 3),
        [("w", "b", "out in", 4, 3)],
    ),
    "bfloat16": Case(
        lambda v, x: (x.astype(jnp.bfloat16) @ v["w"].astype(jnp.bfloat16)).astype(jnp.float32) + v["b"][None],
        weights(w=(3, 4), b=(4,)),
        normal(5, 3),
        [("w", "b", "in out", 4, 3)],
    ),
    "to heads": Case(
        lambda v, x: jnp.einsum("nti,ihd->nthd", x, v["w"]),
        weights(w=(3, 2, 4)),
        normal(5, 2, 3),
        [("w", None, "in out out", 8, 3)],
    ),
    "to heads, another order": Case(
        lambda v, x: jnp.einsum("dih,nti->nthd", v["w"], x),
        weights(w=(4, 3, 2)),
        normal(5, 2, 3),
        [("w", None, "out in out", 8, 3)],
    ),
    "from heads": Case(
        lambda v, x: jnp.einsum("nthd,dho->nto", x, v["w"]) + v["b"][None, None],
        weights(w=(4, 2, 3), b=(3,)),
        normal(5, 2, 2, 4),
        [("w", "b", "in in out", 3, 8)],
    ),
    "convolution": Case(
        lambda v, x: conv(x, v["w"]) + v["b"][None, None, None],
        weights(w=(3, 3, 2, 4), b=(4,)),
        normal(2, 5, 4, 2),
        [("w", "b", "in in in out", 4, 18)],
    ),
    "strided": Case(
        lambda v, x: convolve(x, v["w"], (2, 1), ((1, 0), (0, 2)), dimension_numbers=NHWC),
        weights(w=(2, 3, 2, 4)),
        normal(2, 5, 4, 2),
        [("w", None, "in in in out", 4, 12)],
    ),
    "grouped": Case(
        lambda v, x: conv(x, v["w"], feature_group_count=2),
        weights(w=(3, 3, 2, 6)),
        normal(2, 4, 4, 4),
        [("w", None, "in in in out", 6, 18)],
    ),
    "depthwise": Case(
        lambda v, x: convolve(x, v["w"], (2, 2), "SAME", dimension_numbers=NHWC, feature_group_count=3),
        weights(w=(3, 3, 1, 3)),
        normal(2, 4, 4, 3),
        [("w", None, "in in in out", 3, 9)],
    ),
    "depthwise, two of each channel": Case(
        lambda v, x: conv(x, v["w"], feature_group_count=3),
        weights(w=(3, 3, 1, 6)),
        normal(2, 4, 4, 3),
        [("w", None, "in in in out", 6, 9)],
    ),
    "channels first": Case(
        lambda v, x: jax.nn.relu(conv(x, v["w"], layout=NCHW) + v["b"][None, :, None, None]),
        weights(w=(4, 2, 3, 3), b=(4,)),
        normal(2, 2, 5, 4),
        [("w", "b", "out in in in", 4, 18)],
    ),
    "channels first, grouped and strided": Case(
        lambda v, x: conv(x, v["w"], (2, 2), layout=NCHW, feature_group_count=2),
        weights(w=(4, 1, 3, 3)),
        normal(2, 2, 5, 4),
        [("w", None, "out in in in", 4, 9)],
    ),
}

SEVERAL = {
    "in jit": Case(lambda v, x: jax.jit(deep)(v, x), DEEP, normal(6, 3), DEEP_LAYERS),
    "in remat": Case(jax.checkpoint(deep), DEEP, normal(6, 3), DEEP_LAYERS),
    "tied": Case(
        tied, weights(w=(3, 3), v=(3, 2)), normal(5, 3), [("w", None, "in out", 3, 3), ("v", None, "in out", 2, 3)]
    ),
    "residual": Case(
        residual,
        weights(**RESIDUAL),
        normal(3, 4, 4, 2),
        [("c1", "b1", "in in in out", 2, 18), ("c2", "b2", "in in in out", 2, 18), ("w", None, "in out", 2, 2)],
    ),
    "left out": Case(left_out, weights(embedding=(7, 3), **LEFT_OUT), normal(5, 3), [("w", None, "in out", 3, 3)]),
}
OF_LIBRARIES = {"linen": linen_net, "attention": attention, "nnx": nnx_net, "equinox": equinox_net}


@functools.cache
def case_of(name):
    """Made where it is used, as libraries take seconds."""
    return OF_LIBRARIES[name]() if name in OF_LIBRARIES else (SINGLE | SEVERAL)[name]


EVERY = pytest.mark.parametrize("name", [*SINGLE, *SEVERAL, *OF_LIBRARIES])


def names_of(variables):
    return list(trees.named_leaves(variables))


def found_in(case, *, abstract=False):
    variables, x = jax.eval_shape(lambda: (case.variables, case.x)) if abstract else (case.variables, case.x)
    return find(case.model, variables, x, names=[name for name in names_of(variables) if "batch_stats" not in name])


@EVERY
def test_layers_are_found_in_the_order_of_the_program(name):
    case = case_of(name)
    found = found_in(case)
    described = [(layer.kernel, layer.bias, layer.view, layer.neurons, layer.fan_in) for layer in found]
    assert described == [(kernel, bias, of_words(axes), *sizes) for kernel, bias, axes, *sizes in case.layers]
    assert [layer.depth for layer in found] == list(range(len(found)))
    assert found_in(case, abstract=True) == found


def test_layers_say_what_they_read_and_how_much_they_compute():
    first, middle, last = found_in(case_of("in jit"))
    assert [layer.input_bytes for layer in (first, middle, last)] == [4 * 6 * 3, 4 * 6 * 5, 4 * 6 * 4]
    assert [layer.output_size for layer in (first, middle, last)] == [6 * 5, 6 * 4, 6 * 2]
    assert [layer.flops for layer in (first, middle, last)] == [2 * 6 * 15, 2 * 6 * 20, 2 * 6 * 8]
    (grouped,) = found_in(case_of("grouped"))
    assert (grouped.output_size, grouped.flops) == (2 * 16 * 6, 2 * (2 * 6 * 2) * 10**2)  # the border is no operation
    (narrow,) = found_in(case_of("bfloat16"))
    assert narrow.input_bytes == 2 * 5 * 3
    (tied_twice, _) = found_in(case_of("tied"))
    assert (tied_twice.output_size, tied_twice.flops, tied_twice.input_bytes) == (2 * 15, 2 * 2 * 45, 2 * 4 * 15)
    inputs = [layer.input for layer in found_in(case_of("attention"))]
    assert inputs[0] == inputs[1] == inputs[2] != inputs[3]


def test_only_what_may_train_is_found():
    case = case_of("in jit")
    (found,) = find(case.model, case.variables, case.x, names=["last"])
    assert (found.kernel, found.bias, found.depth) == ("last", None, 0)
    assert find(case.model, case.variables, case.x, names=["bias"]) == ()


VECTORS = {
    "one for each position": (lambda v, x: x @ v["w"] + v["b"][None, :, None], 2),
    "one for all": (lambda v, x: x @ v["w"] + v["b"][None, None], 1),
    "shared with another layer": (
        lambda v, x: jnp.tanh(x @ v["w"] + v["b"][None, None]) @ v["v"] + v["b"][None, None],
        4,
    ),
    "after an activation": (lambda v, x: jnp.tanh(x @ v["w"]) + v["b"][None, None], 4),
}


@pytest.mark.parametrize("name", VECTORS)
def test_a_vector_that_has_no_element_for_each_neuron_is_no_bias(name):
    model, size = VECTORS[name]
    variables = weights(w=(3, 4), b=(size,), v=(4, 4))
    first = find(model, variables, normal(5, 2, 3), names=["w", "b", "v"])[0]
    assert (first.kernel, first.bias) == ("w", None)


def convolution_in_numpy(x, kernel, strides, padding, groups=1):
    """Channels last, a loop over pixels; in float64."""
    x, kernel = np.pad(np.float64(x), ((0, 0), *padding, (0, 0))), np.float64(kernel)
    (h, w), (channels, neurons) = kernel.shape[:2], kernel.shape[2:]
    sizes = [(size - window) // stride + 1 for size, window, stride in zip(x.shape[1:3], (h, w), strides, strict=True)]
    out = np.zeros((len(x), *sizes, neurons))
    for row, column in np.ndindex(*sizes):
        window = x[:, row * strides[0] :, column * strides[1] :][:, :h, :w]
        for neuron in range(neurons):
            first = neuron // (neurons // groups) * channels
            out[:, row, column, neuron] = np.sum(
                window[..., first : first + channels] * kernel[None, ..., neuron], axis=(1, 2, 3)
            )
    return out


def last(x):
    """Channels last, from channels first."""
    return np.moveaxis(np.asarray(x), 1, -1)


ONE = ((1, 1), (1, 1))
TWINS = {
    "x @ w": lambda w, x: x @ w,
    "x @ w over positions": lambda w, x: x @ w,
    "w @ x": lambda w, x: x @ w.T,
    "x @ w.T": lambda w, x: x @ w.T,
    "to heads": lambda w, x: np.einsum("nti,ihd->nthd", x, w).reshape(5, 2, 8),
    "to heads, another order": lambda w, x: np.einsum("nti,dih->ntdh", x, w).reshape(5, 2, 8),
    "from heads": lambda w, x: np.einsum("nthd,dho->nto", x, w),
    "convolution": lambda w, x: convolution_in_numpy(x, w, (1, 1), ONE),
    "strided": lambda w, x: convolution_in_numpy(x, w, (2, 1), ((1, 0), (0, 2))),
    "grouped": lambda w, x: convolution_in_numpy(x, w, (1, 1), ONE, 2),
    "depthwise": lambda w, x: convolution_in_numpy(x, w, (2, 2), ((0, 1), (0, 1)), 3),
    "depthwise, two of each channel": lambda w, x: convolution_in_numpy(x, w, (1, 1), ONE, 3),
    "channels first": lambda w, x: convolution_in_numpy(last(x), w.transpose(2, 3, 1, 0), (1, 1), ONE),
    "channels first, grouped and strided": lambda w, x: convolution_in_numpy(
        last(x), w.transpose(2, 3, 1, 0), (2, 2), ((1, 1), (0, 1)), 2
    ),
}


@pytest.mark.parametrize("name", TWINS)
def test_outputs_are_those_of_numpy(name):
    case = SINGLE[name]
    found = outputs(case.model, case.variables, case.x, names=["w"])["w"]
    expected = TWINS[name](np.float64(case.variables["w"]), np.float64(case.x))
    np.testing.assert_allclose(found, expected.reshape(len(expected), -1, expected.shape[-1]), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["in jit", "in remat"])
def test_outputs_of_every_layer_in_jit_and_remat(name):
    case = case_of(name)
    found = jax.jit(lambda v, x: outputs(case.model, v, x, names=["first", "middle/w", "last"]))(case.variables, case.x)
    v, x = jax.tree.map(np.float64, (case.variables, case.x))
    first = x @ v["first"]
    middle = np.tanh(first) @ v["middle"]["w"]
    expected = {"first": first, "middle/w": middle, "last": np.tanh(middle + v["middle"]["b"]) @ v["last"]}
    for kernel, values in expected.items():
        np.testing.assert_allclose(found[kernel][:, 0], values, rtol=1e-5, atol=1e-6)


def test_outputs_of_every_use_stand_in_turn():
    case = case_of("tied")
    found = outputs(case.model, case.variables, case.x, names=["w"])["w"]
    w, x = np.float64(case.variables["w"]), np.float64(case.x)
    assert found.shape == (5, 2, 3)
    np.testing.assert_allclose(found, np.stack([x @ w, np.tanh(x @ w) @ w], axis=1), rtol=1e-5, atol=1e-6)


def numbers_of(layer):
    """Every other neuron, backwards, and two numbers that stand for nothing."""
    return jnp.int32([*range(layer.neurons - 1, -1, -2), layer.neurons, layer.neurons + 3])


def assert_near(found, expected):
    """To float rounding of the largest number."""
    scale = float(jnp.max(jnp.abs(expected)))
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5 * scale)


@functools.cache
def gradients(name):
    """(value, gradient of all leaves) in full, and (value, of some columns, of all biases) by columns."""
    case = case_of(name)
    numbers = {layer.kernel: numbers_of(layer) for layer in found_in(case)}
    views = {layer.kernel: layer.view for layer in found_in(case)}
    biases = [layer.bias for layer in found_in(case) if layer.bias]

    def loss(variables, x):
        return jnp.mean(jnp.sin(3 * case.model(variables, x).astype(jnp.float32)))

    def in_columns(columns, held, variables, x):
        chosen = {kernel: Columns(numbers[kernel], values) for kernel, values in columns.items()}
        return evaluate(loss, trees.replace(variables, held), chosen, x)

    @jax.jit
    def both(variables, x):
        named = trees.named_leaves(variables)
        columns = {kernel: take(named[kernel], view, numbers[kernel]) for kernel, view in views.items()}
        held = {bias: named[bias] for bias in biases}
        value, (of_columns, of_biases) = jax.value_and_grad(in_columns, (0, 1))(columns, held, variables, x)
        return jax.value_and_grad(lambda leaves: loss(trees.replace(variables, leaves), x))(named), (
            value,
            of_columns,
            of_biases,
        )

    full, chosen = both(case.variables, case.x)
    return full, chosen, views, numbers


@EVERY
def test_columns_have_the_gradients_of_the_whole_kernel(name):
    (value, full), (found, of_columns, of_biases), views, numbers = gradients(name)
    assert_near(found, value)
    assert of_columns.keys() == {kernel for kernel, *_ in case_of(name).layers}
    for kernel, gradient in of_columns.items():
        expected = take(full[kernel], views[kernel], numbers[kernel])
        assert jnp.max(jnp.abs(expected)) > 1e-6
        assert_near(gradient, expected)
        assert not np.any(gradient[:, -2:])
    for bias, gradient in of_biases.items():
        assert_near(gradient, full[bias])


@pytest.mark.parametrize("taken", [True, False])
def test_a_branch_of_one_convolution_is_no_convolution_as_such(taken):
    """Other branches may be anything, as with stochastic depth."""

    def model(v, x):
        return lax.cond(x[0, 0, 0, 0] > 0, lambda x, w: conv(x, w), lambda x, w: x, x, v["w"])

    variables, x = weights(w=(3, 3, 2, 2)), jnp.full((1, 4, 4, 2), 1.0 if taken else -1.0)
    assert find(model, variables, x, names=["w"]) == ()
    columns = Columns(jnp.int32([0]), variables["w"].reshape(18, 2)[:, :1])
    with pytest.raises(LeafError, match="leaf 'w': expected only products and convolutions with it, found 'cond'"):
        evaluate(model, variables, {"w": columns}, x)


def test_without_columns_it_is_the_function():
    case = case_of("in jit")
    assert evaluate(lambda v, x: (v, x), case.variables, {}, case.x) == (case.variables, case.x)


def test_below_the_lowest_chosen_layer_nothing_is_differentiated():
    """A layer whose backward pass would fail."""

    @jax.custom_vjp
    def lower(kernel, x):
        return x @ kernel

    def refuse(residuals, gradient):
        raise AssertionError("differentiated")

    lower.defvjp(lambda kernel, x: (lower(kernel, x), None), refuse)

    def loss(v, x):
        return jnp.sum(jnp.tanh(jnp.tanh(lower(v["lower"], x) @ v["w"]) @ v["v"]))

    variables, x = weights(lower=(3, 3), w=(3, 4), v=(4, 2)), normal(5, 3)
    columns = lambda values: evaluate(loss, variables, {"w": Columns(jnp.int32([1]), values)}, x)  # noqa: E731
    assert np.any(jax.grad(columns)(variables["w"][:, 1:2]))
    with pytest.raises(AssertionError, match="differentiated"):
        jax.grad(loss)(variables, x)


LEAVES = {
    "in out": (3, 4),
    "out in": (4, 3),
    "in out out": (3, 2, 2),
    "out in out": (2, 3, 2),
    "in in in out": (2, 2, 3, 4),
    "out in in in": (4, 2, 1, 3),
    "out": (4,),
}


@pytest.mark.parametrize("axes", LEAVES)
def test_taking_and_putting_are_inverse(axes):
    leaf, view = jnp.array(normal(*LEAVES[axes])), BIAS if axes == "out" else of_words(axes)
    numbers = jnp.int32([2, 0, 4, 9])  # of four columns
    values = take(leaf, view, numbers)
    np.testing.assert_array_equal(put(leaf, view, numbers, values), leaf)
    new = put(leaf, view, numbers, values + 1)
    assert new.shape == leaf.shape
    np.testing.assert_array_equal(take(new, view, numbers)[..., :2], values[..., :2] + 1)
    assert not np.any(take(new, view, numbers)[..., 2:])
    others = jnp.int32([1, 3])
    np.testing.assert_array_equal(take(new, view, others), take(leaf, view, others))
    assert len(np.unique(values[..., :2])) == values[..., :2].size


def flops_and_bytes(chosen_of, variables, x, loss):
    """Of the gradient of some columns, by the compiler; all kernels where there is no choice."""

    def step(variables, x):
        columns = {name: take(variables[name], view, numbers) for name, (view, numbers) in chosen_of.items()}

        def by_columns(values):
            chosen = {name: Columns(chosen_of[name][1], own) for name, own in values.items()}
            return evaluate(loss, variables, chosen, x)

        return jax.grad(by_columns)(columns) if chosen_of else jax.grad(loss)(variables, x)

    with convolution.native():
        compiled = jax.jit(step).lower(variables, x).compile()
    return compiled.cost_analysis()["flops"], compiled.memory_analysis().temp_size_in_bytes


def mlp_loss(v, x):
    for name in ("a", "b", "c"):
        x = jnp.maximum(x @ v[name], 0)
    return jnp.sum(x)


def cnn_loss(v, x):
    for name in ("a", "b", "c"):
        x = jnp.maximum(convolve(x, v[name], (1, 1), "VALID", dimension_numbers=NHWC), 0)
    return jnp.sum(x)


NETWORKS = {
    "mlp": (mlp_loss, weights(a=(64, 96), b=(96, 96), c=(96, 48)), (128, 64)),
    "cnn": (cnn_loss, weights(a=(3, 3, 16, 16), b=(3, 3, 16, 24), c=(3, 3, 24, 32)), (4, 14, 14, 16)),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_columns_save_the_operations_and_the_memory_of_the_rest(name):
    loss, variables, shape = NETWORKS[name]
    x = jax.ShapeDtypeStruct(shape, jnp.float32)
    first, middle, last = find(loss, variables, x, names=variables)
    every = lambda layer: (layer.view, jnp.arange(layer.neurons))  # noqa: E731
    full, held = flops_and_bytes({}, variables, x, loss)
    forward = sum(layer.flops for layer in (first, middle, last))
    assert full == pytest.approx(2 * forward + middle.flops + last.flops, rel=0.05)
    few = {"c": (last.view, jnp.arange(last.neurons // 4))}
    found, fewer = flops_and_bytes(few, variables, x, loss)
    assert found == pytest.approx(forward + last.flops / 4, rel=0.05)
    above, _ = flops_and_bytes({"b": every(middle)}, variables, x, loss)
    assert above == pytest.approx(forward + last.flops + middle.flops, rel=0.05)
    whole, _ = flops_and_bytes({"c": every(last)}, variables, x, loss)
    assert whole == pytest.approx(forward + last.flops, rel=0.05)
    assert fewer < 0.8 * held
