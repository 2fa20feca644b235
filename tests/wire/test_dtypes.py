import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from tests.wire import samples
from updcomp.wire import dtypes, errors, fingerprint

HELD = [leaf.dtype for leaf in samples.model().values()]


@pytest.mark.parametrize("leaf", samples.model().values(), ids=samples.model())
def test_flat_bits_and_back_give_the_same_leaf(leaf):
    held = dtypes.hold(leaf)
    again = dtypes.from_bits(dtypes.flat_bits(held), held)
    assert again.dtype == leaf.dtype
    assert again.shape == leaf.shape
    assert again.tobytes() == leaf.tobytes()
    assert dtypes.flat_bits(held).dtype.kind == "u"


def test_hold_makes_strided_big_endian_and_0d_leaves_contiguous_and_little_endian():
    strided = np.arange(24, dtype=">f4").reshape(4, 6)[::2, ::-3]
    held = dtypes.hold(strided)
    assert held.dtype.str == "<f4"
    assert held.flags.c_contiguous
    np.testing.assert_array_equal(held, strided)
    assert dtypes.hold(np.array(3, ">i8")).shape == ()
    assert dtypes.flat_bits(dtypes.hold(np.zeros((0, 3), ">u2"))).shape == (0,)


def test_hold_copies_nothing_that_is_already_in_order():
    leaf = np.ones((3, 4), np.float32)
    assert np.shares_memory(dtypes.hold(leaf), leaf)


@pytest.mark.parametrize("name", ["bfloat16", "float8_e4m3fn", "float8_e5m2", "int4"])
def test_hold_keeps_the_bits_and_name_of_dtypes_that_numpy_lacks(name):
    leaf = np.arange(6).reshape(2, 3).astype(getattr(ml_dtypes, name))
    held = dtypes.hold(leaf)
    assert dtypes.name(held.dtype) == name
    assert held.shape == (2, 3)
    assert held.tobytes() == leaf.tobytes()


@pytest.mark.parametrize("dtype", ["U3", "O", "M8[s]", "V4", [("a", "u2"), ("b", "u2")], [("float32", "u2")], "f16"])
def test_dtypes_that_are_no_numbers_are_refused(dtype):
    with pytest.raises(errors.DtypeError, match="dtype"):
        dtypes.hold(np.zeros(2, dtype))


@given(hnp.arrays(np.float32, st.integers(0, 50), elements=st.floats(width=32, allow_nan=False)))
def test_bfloat16_rounds_as_ml_dtypes_does_and_reads_back_exactly(values):
    rounded = dtypes.round_floats(values, dtypes.BFLOAT16)
    with np.errstate(over="ignore"):
        expected = values.astype(ml_dtypes.bfloat16)
    np.testing.assert_array_equal(rounded.view("<u2"), expected.view("<u2"))
    np.testing.assert_array_equal(dtypes.to_floats(rounded), expected.astype(np.float32))


@pytest.mark.parametrize("name", ["float16", "bfloat16", "float32", "float64"])
def test_exponents_are_those_of_frexp(name):
    dtype = dtypes.BFLOAT16 if name == "bfloat16" else np.dtype(name)
    bias = {"float16": 15, "float64": 1023}.get(name, 127)
    values = np.array([1.0, -1.5, 0.25, 3.0, 100.0], np.float64 if name == "float64" else np.float32)
    leaf = dtypes.round_floats(values, dtype)
    np.testing.assert_array_equal(dtypes.exponents(leaf), np.frexp(values)[1] - 1 + bias)


def test_integers_have_no_exponents_and_no_compute_dtype():
    assert dtypes.exponents(np.arange(3)) is None
    with pytest.raises(errors.DtypeError, match="int64"):
        dtypes.compute_dtype(np.arange(3))


def test_fingerprint_depends_on_names_dtypes_shapes_and_every_bit_but_not_on_order_or_layout():
    model = {"a": np.float32([[1, 2], [3, 4]]), "b": np.float32([])}
    found = fingerprint.of(model)
    assert len(found) == fingerprint.SIZE
    same = {"b": model["b"], "a": np.asfortranarray(model["a"].astype(">f4"))}
    assert fingerprint.of(same) == found
    flipped = model["a"].copy()
    flipped.view(np.uint32)[1, 1] ^= 1
    for other in (
        {**model, "a": flipped},
        {"a": model["a"].reshape(4), "b": model["b"]},
        {"a": model["a"].view(np.uint32), "b": model["b"]},
        {"aa": model["a"], "b": model["b"]},
        {"a": model["a"]},
        {"a": model["b"], "b": model["a"]},
    ):
        assert fingerprint.of(other) != found
