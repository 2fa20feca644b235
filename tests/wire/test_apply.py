import struct

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from tests.wire import samples
from updcomp.wire import apply, basis, dtypes, errors, increments, packet, positions, views
from updcomp.wire.increments import round_step
from updcomp.wire.kinds.coefficients import Coefficients
from updcomp.wire.kinds.dense import Dense
from updcomp.wire.kinds.exact import Exact
from updcomp.wire.kinds.factors import Factors
from updcomp.wire.kinds.half import Half
from updcomp.wire.kinds.magnitude import Magnitude
from updcomp.wire.kinds.raw import Raw
from updcomp.wire.kinds.seeded import Seeded
from updcomp.wire.kinds.sparse import Sparse

FLOATS = ["float16", "bfloat16", "float32", "float64"]


def leaf_of(values, dtype):
    """float64 values as a held leaf."""
    with np.errstate(over="ignore"):
        return dtypes.hold(np.asarray(values).astype(ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype))


def to_float32(number):
    """A Python float rounded to float32, overflow to infinity."""
    try:
        return struct.unpack("<f", struct.pack("<f", number))[0]
    except OverflowError:
        return np.copysign(np.inf, number)


def reference(old, integers, step):
    """The increment rule in Python floats, one weight at a time; returns the new bits."""
    bits, floats = dtypes.flat_bits(old).tolist(), dtypes.to_floats(old).reshape(-1).tolist()
    new = []
    for bit, weight, integer in zip(bits, floats, integers, strict=True):
        if integer == 0 or not np.isfinite(weight):
            new.append(bit)
        elif old.dtype == np.float64:
            new.append(int(np.float64(weight + integer * step).view(np.uint64)))
        else:
            # The sum of two float32 in double precision, rounded to float32, is their float32 sum.
            total = np.float32(to_float32(weight + to_float32(integer * step)))
            with np.errstate(over="ignore"):
                narrow = total.astype(ml_dtypes.bfloat16) if old.dtype == dtypes.BFLOAT16 else total.astype(old.dtype)
            new.append(int(np.array(narrow).view(f"u{old.dtype.itemsize}")))
    return new


def bits_after(block, old, seed=0, index=0):
    return dtypes.flat_bits(apply.apply_block(block, old, seed=seed, index=index)).tolist()


@pytest.mark.parametrize("dtype", FLOATS)
@given(
    data=hnp.arrays(np.float64, 20, elements=st.floats(width=64)),
    integers=hnp.arrays(np.int32, 20, elements=st.one_of(st.just(0), st.integers(-(2**31), 2**31 - 1))),
    step=st.floats(1e-37, 1e38),
)
def test_dense_increments_are_those_of_python_floats(dtype, data, integers, step):
    old, step = leaf_of(data, dtype), round_step(step)
    assert bits_after(Dense(integers, step), old) == reference(old, integers.tolist(), step)


@pytest.mark.parametrize("dtype", FLOATS)
def test_half_adds_the_delta_and_keeps_bits_where_it_is_zero(dtype):
    old = leaf_of([1.0, -0.0, np.nan, 0.1, -np.inf], dtype)
    delta = np.float16([0.5, -0.0, 1, 6e-8, 3])
    assert bits_after(Half(delta), old) == reference(old, delta.tolist(), 1.0)


@pytest.mark.parametrize("dtype", FLOATS)
def test_the_three_sparse_kinds_increment_their_positions_only(dtype):
    old, values = leaf_of(samples.floats((12, 8), 60), dtype), samples.integers((30,), 61)
    places = {
        "sparse": np.arange(1, 61, 2),
        "seeded": positions.seeded(9, 4, 96, 30),
        "magnitude": positions.largest(old, 30),
    }
    blocks = {
        "sparse": Sparse(places["sparse"], values, samples.STEP),
        "seeded": Seeded(values, samples.STEP),
        "magnitude": Magnitude(values, samples.STEP),
    }
    for kind, block in blocks.items():
        integers = np.zeros(96, np.int64)
        integers[places[kind]] = values
        assert bits_after(block, old, seed=9, index=4) == reference(old, integers.tolist(), samples.STEP)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("shape", [(11, 7), (3, 2, 5), (6,)])
def test_products_are_those_of_python_integers(dtype, shape):
    old = leaf_of(samples.floats(shape, 62), dtype)
    fan_in, fan_out = samples.as_matrix_shape(shape)
    rank = min(fan_in, fan_out, 4)
    left, right = samples.integers((fan_in, rank), 63, 900), samples.integers((fan_out, rank), 65, 900)
    product = (left.astype(object) @ right.T.astype(object)).ravel().tolist()
    assert bits_after(Factors(left, right, samples.STEP), old) == reference(old, product, samples.STEP)

    values = samples.integers((min(rank, fan_in), min(rank, fan_out)), 67)
    a, b = (side[0].astype(int).astype(object) for side in basis.of(old, rank, seed=2, index=1))
    product = (a @ values.astype(object) @ b.T).ravel().tolist()
    found = bits_after(Coefficients(values, rank, samples.STEP), old, seed=2, index=1)
    assert found == reference(old, product, samples.STEP * 2.0**-28)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize(("shape", "words"), samples.VIEWS.values())
def test_products_of_a_stack_are_those_of_each_matrix(dtype, shape, words):
    view = views.of_words(words)
    old = leaf_of(samples.floats(shape, 77), dtype)
    blocks = samples.blocks_of(shape, view, 78)
    stack, fan_in, fan_out = views.shape_of(shape, view)

    def expected(left, right, step):
        left, right = left.reshape(stack, fan_in, -1), right.reshape(stack, fan_out, -1)
        products = np.stack([a @ b.T for a, b in zip(left, right, strict=True)])
        return reference(old, views.join(products, shape, view).ravel().tolist(), step)

    factors, coefficients = blocks["factors"], blocks["coefficients"]
    left, right = factors.left.astype(object), factors.right.astype(object)
    assert bits_after(factors, old) == expected(left, right, samples.STEP)
    a, b = (side.astype(int).astype(object) for side in basis.of(old, coefficients.rank, seed=2, index=1, view=view))
    values = coefficients.values.astype(object).reshape(stack, a.shape[2], b.shape[2])
    inner = np.stack([x @ y for x, y in zip(a, values, strict=True)])
    assert bits_after(coefficients, old, seed=2, index=1) == expected(inner, b, samples.STEP * 2.0**-28)


@pytest.mark.parametrize("words", ["stack in out", "stack out in", "in stack out", "out in in"])
def test_large_stacks_are_the_same_as_small_ones(words):
    for shape in ((3000, 5, 7), (7, 130, 140), (2, 700, 300)):
        view = views.of_words(words)
        old = samples.floats(shape, 90).astype(np.float32)
        factors = samples.blocks_of(shape, view, 91)["factors"]
        stack, fan_in, fan_out = views.shape_of(shape, view)
        left, right = factors.left.reshape(stack, fan_in, -1), factors.right.reshape(stack, fan_out, -1)
        dense = Dense(views.join(left @ right.transpose(0, 2, 1), shape, view), samples.STEP, view)
        np.testing.assert_array_equal(
            apply.apply_block(factors, old, seed=0, index=0), apply.apply_block(dense, old, seed=0, index=0)
        )


def test_large_leaves_are_the_same_as_small_ones_slice_by_slice():
    size = 3 * increments._SLICE + 17
    old = samples.floats((size,), 70).astype(np.float32)
    values = samples.integers((size,), 71)
    whole = apply.apply_block(Dense(values, samples.STEP), old, seed=0, index=0)
    expected = old + (values.astype(np.float64) * samples.STEP).astype(np.float32)
    np.testing.assert_array_equal(whole, np.where(values == 0, old, expected))
    sparse = Sparse(np.arange(size), values, samples.STEP)
    np.testing.assert_array_equal(apply.apply_block(sparse, old, seed=0, index=0), whole)
    matrix, left, right = (
        old[: 650 * 290].reshape(650, 290),
        samples.integers((650, 3), 73),
        samples.integers((290, 3), 75),
    )
    whole = apply.apply_block(Factors(left, right, samples.STEP), matrix, seed=0, index=0)
    product = left.astype(np.int64) @ right.T.astype(np.int64)
    dense = Dense(product.astype(np.int32), samples.STEP)
    np.testing.assert_array_equal(whole, apply.apply_block(dense, matrix, seed=0, index=0))


def test_the_model_is_not_changed_and_kept_leaves_are_the_same_objects():
    model = samples.model()
    before = {name: leaf.tobytes() for name, leaf in model.items()}
    new = apply.apply(samples.packets()["together"], model)
    assert {name: leaf.tobytes() for name, leaf in model.items()} == before
    assert list(new) == list(model)
    kept = set(model) - set(samples.packets()["together"].blocks)
    assert kept
    assert all(new[name] is model[name] for name in kept)
    assert not any(np.shares_memory(new[name], model[name]) for name in samples.packets()["together"].blocks)


VALUES = np.ones((24, 10), np.int32)
STEP = samples.STEP
OUT_IN, STACKED = views.View((1,), (0,)), views.View((), (1,))


@pytest.mark.parametrize(
    ("block", "message"),
    [
        (Raw(np.zeros((24, 10), np.float64)), "float64"),
        (Exact(np.zeros((10, 24), np.float32)), r"\(24, 10\)"),
        (Half(np.zeros(240, np.float16)), "delta"),
        (Half(np.full((24, 10), np.nan, np.float16)), "finite"),
        (Dense(VALUES[:3], STEP), "shape of values"),
        (Dense(VALUES.astype(np.float32), STEP), "values: expected integers that fit int32, found float32"),
        (Dense(VALUES.astype(np.int64) << 31, STEP), "values: expected integers that fit int32, found 0 to"),
        (Sparse(np.array([1.0]), np.ones(1, np.int32), STEP), "positions: expected integers that fit int64"),
        (Sparse(np.array([2**63], np.uint64), np.ones(1, np.int32), STEP), "positions: .* found 0 to 9223"),
        (VALUES, "block: expected one of Raw, .*Dense.*, found ndarray"),
        (Dense(VALUES, STEP, "in out"), "view: expected a View as views.of_words returns it, found 'in out'"),
        (Dense(VALUES, STEP, views.View((0,), (2,))), "view: expected ascending axes below 2"),
        (Dense(VALUES, STEP, views.View((), ())), "at least one of them in or out"),
        (Factors(VALUES, VALUES, STEP, views.View((0, 0), (1,))), "none of them twice"),
        (Factors(VALUES[:, :1], VALUES[:10, :1], STEP, OUT_IN), "factors"),
        (Factors(VALUES[:, :2], np.ones((240, 2), np.int32), STEP, STACKED), "rank: expected 1 to 1"),
        (Coefficients(VALUES[:3, :3], 3, STEP, STACKED), "shape of values"),
        (Dense(VALUES, 0.1), "step"),
        (Dense(VALUES, float("nan")), "step"),
        (Sparse(np.array([1, 1]), np.ones(2, np.int32), STEP), "ascending"),
        (Sparse(np.array([1, 240]), np.ones(2, np.int32), STEP), "239"),
        (Sparse(np.array([-1, 2]), np.ones(2, np.int32), STEP), "positions"),
        (Sparse(np.array([1, 2, 3]), np.ones(2, np.int32), STEP), "positions"),
        (Seeded(np.ones(241, np.int32), STEP), "at most 240"),
        (Magnitude(np.ones((2, 2), np.int32), STEP), "one axis"),
        (Factors(np.ones((24, 2), np.int32), np.ones((10, 3), np.int32), STEP), "factors"),
        (Factors(np.ones((24, 11), np.int32), np.ones((10, 11), np.int32), STEP), "rank"),
        (Factors(np.full((24, 2), 2**30, np.int32), np.full((10, 2), 2**30, np.int32), STEP), "2\\^53"),
        (Coefficients(np.ones((4, 5), np.int32), 4, STEP), "shape of values"),
        (Coefficients(np.ones((0, 0), np.int32), 0, STEP), "rank"),
        (Coefficients(np.full((9, 9), 2**30, np.int32), 9, STEP), "2\\^53"),
    ],
)
def test_blocks_that_do_not_fit_name_the_leaf_and_what_was_expected(block, message):
    with pytest.raises(errors.Error, match=message) as caught:
        apply.apply(packet.Packet({"dense/kernel": block}), samples.model())
    assert "'dense/kernel'" in str(caught.value)
    assert "expected" in str(caught.value)


@pytest.mark.parametrize("leaf", ["step", "quantised", "wave", "seen"])
def test_lossy_blocks_take_float_leaves_only(leaf):
    shape = samples.model()[leaf].shape
    with pytest.raises(errors.DtypeError, match="float32"):
        apply.apply(packet.Packet({leaf: Dense(np.ones(shape, np.int32), STEP)}), samples.model())


def test_a_block_for_a_leaf_that_is_not_there_is_refused():
    with pytest.raises(errors.LeafError, match=r"'kernel'.*dense/kernel"):
        apply.apply(packet.Packet({"kernel": Raw(np.zeros(1))}), samples.model())


def test_integers_of_any_width_are_taken_where_they_fit():
    model = samples.model()
    sparse = samples.packets()["sparse"].blocks["dense/kernel"]
    for integers, places in ((np.int8, np.uint8), (np.int64, np.int16), (">i4", ">u2")):
        narrow = Sparse(sparse.positions.astype(places), sparse.values.astype(integers), np.float32(sparse.step))
        held = packet.held(packet.Packet({"dense/kernel": narrow})).blocks["dense/kernel"]
        assert [field.dtype for field in held[:2]] == [np.int64, np.int32]
        new = [apply.apply(packet.Packet({"dense/kernel": block}), model)["dense/kernel"] for block in (sparse, narrow)]
        np.testing.assert_array_equal(*new)


def test_arrays_that_are_right_are_not_copied():
    sent = samples.packets()["together"]
    held = packet.held(sent)
    assert held.seed == sent.seed
    assert all(a is b for name in sent.blocks for a, b in zip(held.blocks[name], sent.blocks[name], strict=True))
