"""Any pytree becomes a device's model and comes back."""

import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import optax
import pytest
from flax import nnx

import updcomp
from updcomp import trees


class LinenNet(nn.Module):
    @nn.compact
    def __call__(self, x, train: bool):
        x = nn.BatchNorm(use_running_average=not train)(nn.Dense(4)(x))
        return nn.Dense(2, dtype=jnp.bfloat16, param_dtype=jnp.bfloat16)(x.astype(jnp.bfloat16))


class NnxNet(nnx.Module):
    def __init__(self, rngs):
        self.hidden = nnx.Linear(3, 4, rngs=rngs)
        self.drop = nnx.Dropout(0.5, rngs=rngs)
        self.out = nnx.Linear(4, 2, rngs=rngs)


def linen_tree():
    return LinenNet().init(jax.random.key(0), jnp.ones((1, 3)), train=False)


def nnx_tree():
    return nnx.state(NnxNet(nnx.Rngs(0)))


def equinox_tree():
    return eqx.nn.MLP(3, 2, 4, 2, key=jax.random.key(0))


def dict_tree():
    return {
        "w": np.linspace(-1, 1, 6, dtype=np.float32).reshape(2, 3),
        "layers": [np.float64(3), np.zeros((0, 2))],
        "n": 3,
    }


def optimizer_tree():
    return optax.adam(1e-3).init({"w": jnp.ones((2, 3))})


def mixed_tree():
    return {
        "bf16": jnp.ones((2, 2), jnp.bfloat16),
        "fp8": jnp.ones(3, jnp.float8_e4m3fn),
        "int": jnp.arange(4),
        "strided": np.arange(12.0)[::3],
        "key": jax.random.key(7),
        "flag": np.array(True),
    }


TREES = [linen_tree, nnx_tree, equinox_tree, dict_tree, optimizer_tree, mixed_tree]


def changed(leaf):
    """Another leaf of the same shape and dtype."""
    if isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        return jax.random.key(8)
    if leaf.dtype == np.bool_:
        return ~leaf
    return (
        leaf + np.ones((), leaf.dtype) if isinstance(leaf, np.ndarray | np.generic) else leaf + jnp.ones((), leaf.dtype)
    )


def assert_same_bits(one, other):
    first, second = trees.to_model(one), trees.to_model(other)
    assert first.keys() == second.keys()
    for name, leaf in first.items():
        assert leaf.dtype == second[name].dtype
        assert leaf.shape == second[name].shape
        assert leaf.tobytes() == second[name].tobytes()


@pytest.mark.parametrize("make", TREES, ids=lambda make: make.__name__)
def test_a_tree_goes_to_a_model_and_back(make):
    tree = make()
    back = trees.from_model(trees.to_model(tree), tree)
    assert jax.tree.structure(back) == jax.tree.structure(tree)
    assert_same_bits(back, tree)


@pytest.mark.parametrize("make", TREES, ids=lambda make: make.__name__)
def test_an_exact_update_of_any_tree_arrives_bit_for_bit(make):
    old = make()
    new = trees.replace(old, {name: changed(leaf) for name, leaf in trees.named_leaves(old).items()})
    update = updcomp.encode(updcomp.diff(old, new), old)
    applied = updcomp.apply(update, old)
    assert jax.tree.structure(applied) == jax.tree.structure(old)
    assert_same_bits(applied, new)
    for name, leaf in trees.named_leaves(applied).items():
        assert isinstance(leaf, jax.Array) == isinstance(trees.named_leaves(old)[name], jax.Array)


def test_names_are_paths_in_sorted_order():
    assert list(trees.named_leaves({"b": [jnp.ones(1)], "a": {"x": jnp.ones(1)}})) == ["a/x", "b/0"]


def test_two_leaves_of_one_path_are_refused():
    with pytest.raises(updcomp.Error, match="'a/b'.*two leaves"):
        trees.named_leaves({"a/b": jnp.ones(1), "a": {"b": jnp.ones(1)}})


def test_replacing_a_leaf_that_is_not_there_lists_the_paths():
    with pytest.raises(updcomp.Error, match=r"'x'.*\['w'\]"):
        trees.replace({"w": jnp.ones(1)}, {"x": jnp.ones(1)})


@pytest.mark.parametrize(
    ("model", "message"),
    [({}, "'w'.*expected in the model"), ({"w": np.ones(3, np.float32)}, r"'w'.*\(2,\).*\(3,\)")],
)
def test_a_model_that_does_not_fit_the_tree_is_refused(model, message):
    with pytest.raises(updcomp.Error, match=message):
        trees.from_model(model, {"w": jnp.ones(2)})


def test_leaves_that_are_no_arrays_are_refused_by_name_where_functions_compile():
    with pytest.raises(updcomp.Error, match="leaf 'activation': expected an array, found .*; keep what is no array"):
        trees.check_arrays({"w": jnp.ones(1), "activation": jax.nn.relu})
    trees.check_arrays(mixed_tree())


@pytest.mark.parametrize("make", TREES, ids=lambda make: make.__name__)
def test_subtrees_stand_in_the_places_of_leaves_and_are_found_there(make):
    """A method's factors stand where optimizers expect a kernel; every other place has the default."""
    tree = make()
    first, *others = trees.named_leaves(tree)
    placed = trees.with_subtrees(tree, {first: {"left": 1, "right": 2}}, default="nothing")
    found = trees.subtrees_at(tree, placed)
    assert found[first] == {"left": 1, "right": 2}
    assert {found[name] for name in others} <= {"nothing"}
    assert found.keys() >= set(others)


def test_optimizers_see_params_alone_where_there_are_collections():
    collections = {"params": {"w": jnp.ones(1)}, "batch_stats": {"m": jnp.ones(1)}}
    assert trees.parameters(collections) == ("params/", collections["params"])
    assert trees.parameters(collections["params"]) == ("", collections["params"])


def test_bfloat16_keeps_its_bits():
    values = np.array([1.5, -0.0, np.nan], ml_dtypes.bfloat16)
    held = trees.to_model({"w": values})["w"]
    assert held.dtype.names == ("bfloat16",)
    assert held.view("<u2").tolist() == values.view("<u2").tolist()
