"""Matrices that are fitted: they return, they cost less where there is structure, and any bytes are refused or read."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.wire import fuzz, samples
from updcomp.wire import container, contexts, costs, dtypes, fitted, header, packet, streams
from updcomp.wire.kinds import columns, dense
from updcomp.wire.kinds.dense import Dense


def size_of(write, values):
    writer = streams.Writer()
    write(writer, values, values.shape)
    return writer.cost / 8


def assert_returns(values):
    writer = streams.Writer()
    fitted.write(writer, values, values.shape)
    reader = streams.Reader(*writer.finish())
    np.testing.assert_array_equal(fitted.read(reader, values.shape), values)
    reader.finish()


@given(st.integers(0, 20), st.integers(0, 20), st.sampled_from([1, 40, 2**10, 2**31 - 1]), st.integers(0, 3))
@settings(max_examples=30, deadline=None)
def test_a_matrix_of_any_shape_and_size_returns_in_every_mode(rows, across, largest, mode):
    values = (samples.bits(rows * across, 1, 32).astype(np.int64) % (2 * largest + 1) - largest).astype(np.int32)
    values = values.reshape(rows, across)
    with pytest.MonkeyPatch.context() as patch:
        # Only this mode, under its own number, and tiles of which there are several.
        patch.setattr(fitted, "_choices", lambda: [mode])
        patch.setattr(fitted, "_TILE", 1 << 6)
        patch.setattr(fitted, "_TILE_COLUMNS", 1 << 3)
        assert_returns(values)


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
        assert size_of(fitted.write, values) < share * size_of(contexts.write_matrix, values)


def test_tiles_fit_the_memory_and_a_matrix_of_several_returns():
    assert {(a.stop - a.start) * (b.stop - b.start) for a, b in fitted._tiles((2048, 512))} == {1 << 19}
    shapes = {(a.stop - a.start, b.stop - b.start) for a, b in fitted._tiles((300, 5000))}
    assert shapes == {(256, 2048), (256, 904), (44, 2048), (44, 904)}
    assert_returns(noisy((260, 2100), 1, 0.1, np.random.default_rng(1)))


def test_what_a_budget_does_not_allow_to_be_fitted_is_coded_by_the_cheaper_kind():
    base = {name: np.ones((80, 90), np.float32) for name in "abc"}
    sent = packet.Packet({name: Dense(noisy((80, 90), 2, 0.5, np.random.default_rng(2)), 0.5) for name in base})
    spec = dtypes.specs(base)["a"]
    one = dense.FITTED.cost(header.Head(dense.FITTED, 0, 0.5), spec, 1).operations

    def kinds(budget):
        update = container.encode(sent, base, budget=budget)
        assert (container.apply_update(update, base)["c"] != base["c"]).any()
        return [head.kind.name for head in header.parse(update).heads]

    share = one / costs.allowed(dtypes.specs(base), 1.0).operations
    assert kinds(1.0) == ["fitted"] * 3
    assert kinds(4 * share) == ["fitted", "fitted", "dense"]
    assert kinds(share) == ["dense"] * 3
    assert columns.FITTED.cheaper is columns.KIND


def test_random_edits_of_fitted_blocks_give_a_model_or_an_error():
    base = samples.fitted_model()
    updates = [container.encode(sent, base) for sent in samples.fitted_packets().values()]
    edits = itertools.islice(fuzz.random_edits(updates, np.random.default_rng(0)), 60)
    assert {fuzz.outcome(edit, base) for edit in edits} <= {"CorruptUpdateError", "model"}
