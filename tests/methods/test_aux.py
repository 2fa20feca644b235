"""Leaves that are no kernels: biases, norms and moving statistics."""

import jax
import numpy as np
import pytest

from tests.methods.worlds import KEY, digits
from updcomp import trees
from updcomp.methods import full, partial, rounding
from updcomp.wire import apply, packet
from updcomp.wire.kinds.exact import Exact


def test_statistics_travel_with_the_aux_leaves_only():
    deployed, task = digits("cnn")
    statistics = {name for name in trees.named_leaves(deployed) if name.startswith("batch_stats")}
    assert statistics <= full(bits=4)(KEY, deployed, task).blocks.keys()
    assert not statistics & partial(ratio=1.0, scores="local", aux=None)(KEY, deployed, task).blocks.keys()


@pytest.mark.parametrize("bits", [4, 8, 16])
def test_rounding_keeps_variances_positive(bits):
    old = {"var": np.float32([1.0, 0.5, 5.0])}
    new = np.float32([1e-6, 0.5, 5e-5])
    block = rounding.aux_block(old["var"], new, bits)
    result = apply.apply(packet.Packet({"var": block}), old)["var"]
    assert (result > 0).all()
    np.testing.assert_allclose(result, new, atol=0.4)


def test_a_change_beyond_float16_still_travels():
    old = {"mean": np.float32([0.0, 1.0])}
    block = rounding.aux_block(old["mean"], np.float32([1e6, 1.0]), 16)
    np.testing.assert_array_equal(apply.apply(packet.Packet({"mean": block}), old)["mean"], [1e6, 1.0])


def test_counters_travel_exactly():
    old = {"count": np.int32([2**31 - 2, 5])}
    block = rounding.aux_block(old["count"], np.int32([2**31 - 1, 6]), 4)
    assert isinstance(block, Exact)
    assert apply.apply(packet.Packet({"count": block}), old)["count"].tolist() == [2**31 - 1, 6]


@pytest.mark.parametrize("bits", [4, 8, 16, rounding.RAW])
def test_fewer_bits_are_no_nearer(bits):
    old, change = np.float32(np.arange(50)), np.asarray(jax.random.normal(jax.random.key(0), (50,)))
    block = rounding.aux_block(old, old + change, bits)
    found = apply.apply(packet.Packet({"bias": block}), {"bias": old})["bias"]
    atol = {4: 0.5, 8: 3e-2, 16: 2e-3, rounding.RAW: 0}[bits]
    np.testing.assert_allclose(found, old + change, atol=atol)
