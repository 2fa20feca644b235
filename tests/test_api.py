"""diff, encode, apply and inspect on real and awkward models."""

import json

import jax.numpy as jnp
import numpy as np
import pytest

import updcomp
from updcomp import trees
from updcomp.wire.kinds.dense import Dense
from updcomp.wire.kinds.exact import Exact
from updcomp.wire.kinds.factors import Factors
from updcomp.wire.kinds.sparse import Sparse
from updcomp.wire.packet import Packet, plain_bytes


def pair(seed=0, changed=1.0):
    """Two float32 models of which a share of the weights differs."""
    generator = np.random.default_rng(seed)
    old = {"a/kernel": generator.normal(size=(40, 30)).astype(np.float32), "a/bias": np.zeros(30, np.float32)}
    move = {
        name: 0.01 * generator.normal(size=leaf.shape) * (generator.random(leaf.shape) < changed)
        for name, leaf in old.items()
    }
    return old, {name: (leaf + move[name]).astype(np.float32) for name, leaf in old.items()}


def sent(packet, old):
    return updcomp.apply(updcomp.encode(packet, old), old)


def test_a_diff_is_exact_by_default():
    old, new = pair()
    result = sent(updcomp.diff(old, new), old)
    assert all(result[name].tobytes() == new[name].tobytes() for name in new)


def test_exact_includes_signed_zeros_nans_and_infinities():
    old = {"w": np.float32([0.0, 1.0, 2.0, np.nan])}
    new = {"w": np.float32([-0.0, np.nan, np.inf, 3.0])}
    assert sent(updcomp.diff(old, new), old)["w"].tobytes() == new["w"].tobytes()


def test_a_step_bounds_the_error_and_shrinks_the_update():
    old, new = pair()
    sizes = []
    for step in (1e-4, 1e-3, 1e-2):
        packet = updcomp.diff(old, new, step=step)
        result = sent(packet, old)
        for name in new:
            assert np.abs(result[name] - new[name]).max() <= step * 0.51
        sizes.append(len(updcomp.encode(packet, old)))
    assert sizes == sorted(sizes, reverse=True)


def test_a_scalar_is_rounded_as_any_leaf():
    old, new = {"n": np.float32(1)}, {"n": np.float32(1.26)}
    assert sent(updcomp.diff(old, new, step=0.25), old)["n"] == 1.25
    assert sent(updcomp.diff(old, new, max_bytes=200), old)["n"] == new["n"]


def test_few_changes_travel_as_positions():
    old, new = pair(changed=0.005)
    assert isinstance(updcomp.diff(old, new, step=1e-3).blocks["a/kernel"], Sparse)
    assert isinstance(updcomp.diff(*pair(), step=1e-3).blocks["a/kernel"], Dense)


def test_leaves_that_rounding_would_break_stay_exact():
    old = {"ids": np.arange(4), "w": np.float32([1, 2])}
    new = {"ids": np.arange(4) + 1, "w": np.float32([np.inf, 2])}
    packet = updcomp.diff(old, new, step=0.5)
    assert all(isinstance(block, Exact) for block in packet.blocks.values())
    assert sent(packet, old)["w"].tolist() == [np.inf, 2]


def test_infinities_that_stay_cost_nothing():
    old, new = pair()
    old["a/kernel"][0, 0] = new["a/kernel"][0, 0] = np.inf
    packet = updcomp.diff(old, new, step=1e-3)
    assert isinstance(packet.blocks["a/kernel"], Dense)
    assert sent(packet, old)["a/kernel"][0, 0] == np.inf


@pytest.mark.parametrize("dtype", [">f4", ">i8", "<c8"])
def test_byte_orders_and_scalars_come_back_as_they_were(dtype):
    old, new = ({"w": (np.arange(6) * scale).astype(dtype), "n": np.float32(scale)} for scale in (1, 3))
    result = sent(updcomp.diff(old, new), old)
    assert (result["w"].dtype, type(result["n"])) == (np.dtype(dtype), np.float32)
    np.testing.assert_array_equal(result["w"], new["w"])
    assert result["n"] == 3


@pytest.mark.parametrize("budget", [150, 400, 1000, 3000])
def test_a_budget_is_kept_and_used(budget):
    old, new = pair()
    packet = updcomp.diff(old, new, max_bytes=budget)
    size = len(updcomp.encode(packet, old))
    assert 0.7 * budget < size <= budget


def test_more_budget_is_never_worse():
    old, new = pair()
    errors = [
        np.abs(sent(updcomp.diff(old, new, max_bytes=budget), old)["a/kernel"] - new["a/kernel"]).mean()
        for budget in (300, 600, 1200, 100_000)
    ]
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] == 0


def test_an_impossible_budget_says_the_smallest_possible():
    old, new = pair()
    with pytest.raises(updcomp.Error, match=r"max_bytes: expected at least (\d+)") as caught:
        updcomp.diff(old, new, max_bytes=10)
    smallest = int(str(caught.value).split("at least ")[1].split()[0])
    assert len(updcomp.encode(updcomp.diff(old, new, max_bytes=smallest), old)) <= smallest


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda new: {"b/kernel": new["a/kernel"], "a/bias": new["a/bias"]}, "'a/kernel'.*old one only"),
        (lambda new: {**new, "z": np.zeros(1)}, "'z'.*new one only"),
        (lambda new: {**new, "a/bias": np.zeros(31, np.float32)}, r"'a/bias'.*\(30,\).*\(31,\)"),
        (lambda new: {**new, "a/bias": np.zeros(30)}, "'a/bias'.*float32.*float64"),
    ],
    ids=["renamed", "added", "another shape", "another dtype"],
)
def test_models_that_do_not_fit_each_other_are_refused(change, message):
    old, new = pair()
    with pytest.raises(updcomp.Error, match=message):
        updcomp.diff(old, change(new))


def test_step_and_budget_exclude_each_other():
    with pytest.raises(updcomp.Error, match="at most one"):
        updcomp.diff(*pair(), step=1.0, max_bytes=100)


def test_inspect_says_what_is_inside_as_json():
    old, new = pair()
    update = updcomp.encode(updcomp.diff(old, new), old)
    told = json.loads(json.dumps(updcomp.inspect(update)))
    assert told["bytes"] == len(update) == sum(told["bytes_by_part"].values())
    assert sum(told["kinds"].values()) == 2


def test_inspect_with_the_model_says_which_leaves_change():
    old, new = pair()
    update = updcomp.encode(updcomp.diff(old, new), old)
    told = json.loads(json.dumps(updcomp.inspect(update, old)))["blocks"]
    assert [block["leaf"] for block in told] == ["a/bias", "a/kernel"]
    assert (told[1]["shape"], told[1]["dtype"]) == ([40, 30], "float32")
    with pytest.raises(updcomp.Error, match="base model"):
        updcomp.inspect(update, new)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda old: updcomp.encode(old, old),
            "packet: expected a Packet from updcomp.diff or a method, found dict; did",
        ),
        (
            lambda old: updcomp.encode(b"updc", old),
            r"found bytes; did you mean updcomp.encode\(updcomp.diff\(old, new\)",
        ),
        (
            lambda old: updcomp.apply(updcomp.diff(old, old), old),
            r"found Packet; did you mean updcomp.apply\(updcomp.enc",
        ),
        (lambda old: updcomp.apply("update.updc", old), "update: expected bytes from updcomp.encode .* found str"),
        (lambda old: updcomp.inspect(old), "update: expected bytes .* found dict; did you mean updcomp.inspect"),
    ],
)
def test_arguments_of_another_kind_are_named(call, message):
    with pytest.raises(updcomp.Error, match=message):
        call(pair()[0])


def test_updates_in_other_buffers_are_read():
    old, new = pair()
    update = updcomp.encode(updcomp.diff(old, new), old)
    for buffer in (bytearray(update), memoryview(update)):
        assert updcomp.apply(buffer, old)["a/kernel"].tobytes() == new["a/kernel"].tobytes()
        assert updcomp.inspect(buffer, old)["bytes"] == len(update)


def test_blocks_hold_arrays_of_any_kind():
    old, _ = pair()
    values = np.arange(30) - 15
    blocks = {
        "a/kernel": Factors(jnp.ones((40, 1), jnp.int8), jnp.arange(30, dtype=jnp.int16)[:, None], jnp.float32(0.5)),
        "a/bias": Dense(jnp.asarray(values, jnp.int32), 0.5),
    }
    plain = {
        "a/kernel": Factors(np.ones((40, 1), np.int32), np.arange(30, dtype=np.int32)[:, None], 0.5),
        "a/bias": Dense(values.astype(np.int32), 0.5),
    }
    assert updcomp.encode(Packet(blocks), old) == updcomp.encode(Packet(plain), old)
    assert plain_bytes(Packet(blocks)) == plain_bytes(Packet(plain)) == 4 * (40 + 30 + 30)
    floats = Packet({"a/bias": Dense(jnp.zeros(30), 0.5)})
    with pytest.raises(updcomp.Error, match="leaf 'a/bias': values: expected integers that fit int32, found float32"):
        updcomp.encode(floats, old)


def test_nothing_changed_costs_nothing_but_the_container():
    old, _ = pair()
    assert len(updcomp.encode(updcomp.diff(old, old), old)) <= 64


def test_names_do_not_travel():
    old, new = pair()
    longer = [{name.replace("a/", "a" * 500 + "/"): leaf for name, leaf in model.items()} for model in (old, new)]
    assert len(updcomp.encode(updcomp.diff(*longer), longer[0])) == len(updcomp.encode(updcomp.diff(old, new), old))


def test_the_package_lists_its_names():
    assert {"diff", "encode", "apply", "inspect", "Error"} <= set(dir(updcomp))
    with pytest.raises(AttributeError, match="nothing_like_this"):
        _ = updcomp.nothing_like_this
    assert trees.named_leaves({"w": np.ones(1)})
