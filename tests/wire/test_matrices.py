"""Ways of coding matrices: they return, they cost less where there is structure, and any bytes are refused or read."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.wire import fuzz, samples
from updcomp.wire import container, contexts, errors, fitted, matrices, scattered, sequential, streams


def size_of(write, values, *options):
    writer = streams.Writer()
    write(writer, values, *options)
    return writer.cost / 8


def best_size(values):
    return size_of(matrices.write_matrix, values, values.shape)


def plain_size(values):
    return size_of(contexts.write_matrix, values, values.shape)


def assert_returns(values, write, read, option):
    writer = streams.Writer()
    write(writer, values, option)
    reader = streams.Reader(*writer.finish())
    np.testing.assert_array_equal(read(reader, values.shape, option), values)
    reader.finish()


def uniform(shape, largest):
    values = samples.bits(int(np.prod(shape)), 1, 32).astype(np.int64) % (2 * largest + 1) - largest
    return values.astype(np.int32).reshape(shape)


SIDES = st.integers(1, 20)


@given(SIDES, SIDES, st.sampled_from([1, 40, 2**10, 2**31 - 1]), st.sampled_from([0, 12, 48]))
@settings(max_examples=30, deadline=None)
def test_a_matrix_of_any_shape_and_size_returns_from_tiles_of_any_rank(rows, columns, largest, rank):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fitted, "_TILE", 1 << 6)  # so that there are several
        patch.setattr(fitted, "_TILE_COLUMNS", 1 << 3)
        assert_returns(uniform((rows, columns), largest), fitted.write, fitted.read, rank)


@given(SIDES, SIDES, st.sampled_from([1, 3, 7, 15]))
@settings(max_examples=30, deadline=None)
def test_a_matrix_of_small_integers_returns_from_choices(rows, columns, bound):
    assert_returns(uniform((rows, columns), bound), sequential.write, sequential.read, bound)
    assert_returns(np.zeros((rows, columns), np.int32), sequential.write, sequential.read, bound)


def noisy(shape, rank, noise, rng):
    low = rng.normal(size=(shape[0], rank)) @ rng.normal(size=(rank, shape[1]))
    return np.rint(low + rng.laplace(0, noise, shape)).astype(np.int32)


def test_low_rank_rows_that_resemble_their_neighbours_and_scales_are_found():
    rng = np.random.default_rng(0)
    low = noisy((300, 200), 3, 0.7, rng)
    smooth = np.rint(np.cumsum(rng.normal(0, 0.5, (300, 200)), axis=0)).astype(np.int32)
    scaled = np.rint(rng.laplace(0, np.exp(rng.normal(0, 1.5, (300, 1))), (300, 200))).astype(np.int32)
    plain = rng.integers(-3, 4, (300, 200)).astype(np.int32)
    for values, share in ((low, 0.85), (smooth, 0.75), (scaled, 1.01), (plain, 1.001)):
        assert best_size(values) < share * plain_size(values)


def test_rows_and_columns_of_a_small_matrix_that_go_together_are_found():
    rng = np.random.default_rng(0)
    together = np.sign(rng.normal(size=(40, 1)) * rng.normal(size=(1, 30))).astype(np.int32)
    together *= rng.random((40, 30)) < 0.8
    some_rows = rng.integers(-1, 2, (40, 30)).astype(np.int32) * (rng.random((40, 1)) < 0.5)
    noise = rng.integers(-1, 2, (8, 8)).astype(np.int32)
    for values, share in ((together, 0.6), (some_rows, 0.92), (noise, 1.0)):
        assert best_size(values) < share * plain_size(values)


def test_tiles_fit_the_memory_and_a_matrix_of_several_returns():
    assert {(a.stop - a.start) * (b.stop - b.start) for a, b in fitted._tiles((2048, 512))} == {1 << 19}
    shapes = {(a.stop - a.start, b.stop - b.start) for a, b in fitted._tiles((300, 5000))}
    assert shapes == {(256, 2048), (256, 904), (44, 2048), (44, 904)}
    assert_returns(noisy((260, 2100), 1, 0.1, np.random.default_rng(1)), fitted.write, fitted.read, 12)


@given(st.integers(1, 12), st.integers(1, 12), st.floats(0.01, 1), st.integers(0, 9))
@settings(max_examples=60, deadline=None)
def test_positions_return_row_by_row_and_as_gaps(rows, columns, share, seed):
    places = np.flatnonzero(np.random.default_rng(seed).random(rows * columns) < share)
    writer = streams.Writer()
    matrices.write_positions(writer, places, (rows, columns))
    is_possible = scattered.is_possible(len(places), (rows, columns))
    if is_possible:
        scattered.write(writer, places, (rows, columns))
    reader = streams.Reader(*writer.finish())
    np.testing.assert_array_equal(matrices.read_positions(reader, len(places), (rows, columns)), places)
    if is_possible:
        np.testing.assert_array_equal(scattered.read(reader, len(places), (rows, columns)), places)
    reader.finish()


def test_rows_and_columns_with_many_positions_are_found():
    rng = np.random.default_rng(0)
    chance = np.outer(np.exp(rng.normal(0, 1.5, 200)), np.exp(rng.normal(0, 1.5, 100)))
    crowded = np.flatnonzero(rng.random((200, 100)) < 0.02 * chance / chance.mean())
    even = np.flatnonzero(rng.random((200, 100)) < 0.02)
    for places, share in ((crowded, 0.85), (even, 1.001)):
        sizes = [size_of(write, places, (200, 100)) for write in (matrices.write_positions, contexts.write_positions)]
        assert sizes[0] < share * sizes[1] + 1


def test_positions_that_are_missing_or_cannot_be_coded_row_by_row_are_refused():
    writer = streams.Writer()
    writer.symbol(1, 1)
    writer.choices(np.array([0, 0]), np.array([8192, 10922]))  # two rows that have none
    sections = writer.finish()
    with pytest.raises(errors.CorruptUpdateError, match="positions: expected 3, found 0"):
        matrices.read_positions(streams.Reader(*sections), 3, (2, 5))
    for count, shape in ((2, (10, 1)), (2, (5, 2000)), (2**15 + 1, (1000, 100))):
        with pytest.raises(errors.CorruptUpdateError, match="found rows"):
            matrices.read_positions(streams.Reader(*sections), count, shape)


def test_a_writer_takes_no_more_than_it_may():
    values = noisy((80, 90), 2, 0.5, np.random.default_rng(2))
    low, high = (matrices._extra(mode, values.shape).operations for mode in (6, 7))
    sizes = []
    for allowed in (0, low, 2 * high):
        writer = streams.Writer(allowed)
        for _ in range(2):
            matrices.write_matrix(writer, values, values.shape)
        assert writer.taken.operations <= allowed
        assert writer.allowed == allowed - writer.taken.operations
        sizes.append(writer.cost)
    assert sizes[0] > sizes[1] > sizes[2]


def test_a_mode_is_charged_before_it_is_paid():
    def never(cost):
        raise errors.CostError(f"{cost.operations}")

    for mode, size in ((1, 2**14 * 6), (5, 2**24 + 256 * 6), (7, 2**24 + 256 * 6 + 63 * 48 * 6 // 8)):
        writer = streams.Writer()
        writer.symbol(mode, 3)
        with pytest.raises(errors.CostError, match=f"^{size}$"):
            matrices.read_matrix(streams.Reader(*writer.finish(), charge=never), (2, 3))


def test_many_integers_one_after_another_are_refused():
    writer = streams.Writer()
    writer.symbol(1, 3)
    with pytest.raises(errors.CorruptUpdateError, match="expected at most 4096 integers one after another"):
        matrices.read_matrix(streams.Reader(*writer.finish()), (4097, 1))


def test_random_edits_of_fitted_matrices_give_a_model_or_an_error():
    base = samples.fitted_model()
    update = container.encode(samples.fitted_packet(), base)
    edits = itertools.islice(fuzz.random_edits([update], np.random.default_rng(0)), 60)
    assert {fuzz.outcome(edit, base) for edit in edits} <= {"CorruptUpdateError", "CostError", "model"}
