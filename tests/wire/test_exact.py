"""Exact blocks from version 3 on: any change of any bits returns, in pieces or not, by any number of threads."""

import collections
import itertools
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.wire import fuzz, samples, twin
from tests.wire.test_vectors import plain
from updcomp.wire import (
    cells,
    changes,
    container,
    density,
    dtypes,
    errors,
    fingerprint,
    header,
    inspection,
    packet,
    pieces,
    streams,
    whole,
    workers,
)
from updcomp.wire.kinds import changes as changes_kind
from updcomp.wire.kinds.exact import Exact

DTYPES = ["<f2", "<f4", "<f8", "bfloat16", "float8_e4m3fn", "|i1", "<i2", "<u4", "<i8", "?", "<c8", "<c16"]
LAYOUTS = {"<u2": (7, 8), "<u4": (23, 8), "<u8": (52, 11)}


def as_leaf(patterns, dtype, shape):
    """A leaf with these bits, cut to the dtype's width."""
    if dtype == "?":
        return (patterns & 1).astype(np.uint8).view(bool).reshape(shape)
    if dtype.startswith(("bf", "float8")):
        width = "<u2" if dtype.startswith("bf") else "|u1"
        return patterns.astype(width).view([(dtype, width)]).reshape(shape)
    if "c" in dtype:
        half = np.dtype(f"<u{int(dtype[2:]) // 2}")
        return np.repeat(patterns, 2).astype(half).view(dtype).reshape(shape)
    return patterns.astype(f"<u{np.dtype(dtype).itemsize}").view(dtype).reshape(shape)


def returns(old, new):
    """The update, which gives the new bits."""
    base = {"w": old}
    update = container.encode(packet.Packet({"w": Exact(new)}), base)
    found = container.apply_update(update, base)["w"]
    assert found.dtype == dtypes.hold(new).dtype
    assert found.tobytes() == new.tobytes()
    return update


@pytest.fixture
def small_pieces(monkeypatch):
    """Small leaves come in pieces, several of them."""
    monkeypatch.setattr(pieces, "LEAST", 16)
    monkeypatch.setattr(changes_kind, "_PIECE", 256)
    monkeypatch.setattr(whole, "_PIECE", 128)


@settings(derandomize=True, max_examples=120, deadline=None)
@given(st.sampled_from(DTYPES), st.lists(st.integers(0, 40), max_size=3), st.data())
def test_any_change_of_any_bits_returns(dtype, shape, data):
    count = int(np.prod(shape, dtype=int))
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    patterns = rng.integers(0, 2**64, count, np.uint64) >> np.uint64(data.draw(st.sampled_from([0, 1, 9, 33, 60])))
    moves = rng.integers(0, 2**64, count, np.uint64) >> np.uint64(data.draw(st.sampled_from([0, 12, 40, 62])))
    chosen = rng.random(count) < data.draw(st.sampled_from([0.01, 0.1, 0.5, 1.0]))
    moves = np.where(rng.random(count) < 0.5, moves, np.uint64(0) - moves)
    returns(as_leaf(patterns, dtype, shape), as_leaf(np.where(chosen, patterns + moves, patterns), dtype, shape))


def test_payloads_of_nan_signed_zeros_and_infinities_are_kept():
    patterns = np.array([0, 1 << 31, 0x7F800000, 0xFF800000, 0x7FC00001, 0xFFC12345, 1, 0x80000001], np.uint32)
    for repeats in (1, 40):
        old = np.tile(patterns, repeats).view(np.float32)
        for shift in (1, 3):
            new = old.copy()
            new[:8] = np.roll(old[:8].view(np.uint32), shift).view(np.float32)
            returns(old, new)
            returns(old, np.roll(old.view(np.uint32), shift).view(np.float32))


@pytest.mark.parametrize("share", [0.06, 0.5])
@pytest.mark.parametrize("dtype", ["<f4", "<f2", "bfloat16", "|i1"])
def test_pieces_and_a_second_reader_agree(small_pieces, dtype, share):
    old, new = pair(dtype, (40, 32), share)
    update = returns(old, new)
    assert inspection.inspect(update)["bytes_by_part"]["raw"] > 0
    assert container.encode(packet.Packet({"w": Exact(new)}), {"w": old}) == update


def pair(dtype, shape, share, scale=0.01):
    count = int(np.prod(shape))
    weights = samples.floats(shape, 3).reshape(-1)
    chosen = samples.bits(count, 700, 20) < np.uint64(share * 2**20)
    moved = weights + np.where(chosen, samples.floats(shape, 4).reshape(-1) * scale, 0)
    if dtype == "bfloat16":
        old, new = (dtypes.round_floats(x.astype(np.float32), dtypes.BFLOAT16) for x in (weights, moved))
    elif dtype == "|i1":
        old, new = ((x * 100).astype(np.int8) for x in (weights, moved))
    else:
        old, new = weights.astype(dtype), moved.astype(dtype)
    return old.reshape(shape), new.reshape(shape)


@pytest.mark.parametrize("share", [0.02, 0.6])
def test_the_bytes_do_not_depend_on_the_threads(monkeypatch, small_pieces, share):
    base, blocks = {}, {}
    for i, dtype in enumerate(("<f4", "bfloat16", "<f2")):
        base[f"{i}"], new = pair(dtype, (60, 50), share)
        blocks[f"{i}"] = Exact(new)
    found = set()
    for count in (1, 2, 5):
        monkeypatch.setattr(workers, "cores", lambda count=count: count)
        update = container.encode(packet.Packet(blocks), base)
        new = container.apply_update(update, base)
        found.add((update, fingerprint.of(new)))
    assert len(found) == 1


def test_a_process_without_threads_to_spare_works_without(monkeypatch, small_pieces):
    def fail(self):
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(workers, "cores", lambda: 3)
    monkeypatch.setattr(workers.threading.Thread, "start", fail)
    returns(*pair("<f4", (60, 50), 0.02))


def test_what_fails_in_a_thread_fails_here(monkeypatch, small_pieces):
    monkeypatch.setattr(workers, "cores", lambda: 3)
    old, new = pair("<f4", (60, 50), 0.02)
    parts = header.parse(returns(old, new))
    raw = bytearray(parts.raw)
    raw[len(raw) // 2] ^= 1
    with pytest.raises(errors.CorruptUpdateError):
        container.apply_update(header.pack(parts._replace(raw=bytes(raw))), {"w": old})


def test_few_changes_take_bytes_and_work_in_proportion():
    sizes = []
    for count in (10, 100, 1000):
        old = np.zeros(100_000, np.float32)
        new = old.copy()
        new[:: len(old) // count] = 1
        update = returns(old, new)
        assert inspection.inspect(update)["kinds"] == {"changes": 1}
        sizes.append(len(update))
    assert sizes[1] - sizes[0] < 500
    assert sizes[2] < 4000


def test_a_dense_leaf_is_smaller_on_a_grid_and_by_rows():
    rng = np.random.default_rng(0)
    old = rng.normal(0, 0.05, (128, 256)).astype(np.float32)
    rows = np.exp(rng.normal(0, 1.5, 128))[:, None]
    new = (old + rng.normal(0, 0.002, old.shape) * rows).astype(np.float32)
    size = len(returns(old, new))
    writer = streams.Writer()
    from updcomp.wire import contexts

    contexts.write_differences(writer, new, old)
    assert size < 0.96 * writer.cost / 8


@settings(derandomize=True, max_examples=60, deadline=None)
@given(st.integers(1, 3000), st.lists(st.integers(1, 255), max_size=15, unique=True), st.integers(0, 2**32))
def test_ranks_and_places_are_inverse(size, starts, seed):
    rng = np.random.default_rng(seed)
    exponents = rng.integers(0, 256, size).astype(np.uint8)
    starts = np.array(sorted(starts), np.int64)
    classes = density.Classes.of(exponents, starts)
    own = np.searchsorted(starts, exponents, side="right")
    assert classes.sizes == np.bincount(own, minlength=len(starts) + 1).tolist()
    members = [np.flatnonzero(own == i) for i in range(len(starts) + 1)]
    chosen = [np.flatnonzero(rng.random(len(one)) < 0.3) for one in members]
    places = np.concatenate([one[which] for one, which in zip(members, chosen, strict=True)])
    changed = np.array([len(one) for one in chosen])
    np.testing.assert_array_equal(classes.places(np.concatenate(chosen), changed), places)
    np.testing.assert_array_equal(classes.ranks(places, changed), np.concatenate(chosen))


@pytest.mark.parametrize("count", [density._count_bits, density._counts])
def test_bits_are_counted_with_and_without_numpy_2(count):
    words = np.array([0, 1, 2**64 - 1, 0x8000000000000001, 0x5555555555555555, 0x123456789ABCDEF0], np.uint64)
    found = count(words)
    assert found.dtype == np.uint8
    assert found.tolist() == [int(word).bit_count() for word in words]


@settings(derandomize=True, max_examples=80, deadline=None)
@given(st.sampled_from(sorted(LAYOUTS)), st.integers(0, 2**32), st.integers(0, 60))
def test_cells_and_what_is_within_give_the_pattern(dtype, seed, below):
    mantissa, exponent = LAYOUTS[dtype]
    patterns = np.random.default_rng(seed).integers(0, 2**64, 200, np.uint64).astype(dtype)
    grid = cells.Grid(mantissa, exponent, max(1, (1 << exponent) - 1 - min(below, 51)))
    found = grid.cells(patterns)
    low = grid.low(patterns, grid.widths(found))
    assert (low < np.uint64(1) << grid.widths(found).astype(np.uint64)).all()
    np.testing.assert_array_equal(grid.bits(found, low, patterns.dtype), patterns)
    ordered = np.argsort(patterns[patterns < 1 << mantissa + exponent])
    assert (np.diff(found[patterns < 1 << mantissa + exponent][ordered]) >= 0).all()


def test_a_weight_beyond_the_grid_is_refused():
    with pytest.raises(errors.CorruptUpdateError, match="grid: expected weights below"):
        cells.Grid(23, 8, 100).cells(np.array([160 << 23], np.uint32))
    with pytest.raises(errors.CorruptUpdateError, match="grid: expected cells and bits"):
        cells.Grid(23, 8, 250).bits(np.array([1 << 40]), np.zeros(1, np.uint64), np.dtype("<u4"))


@pytest.mark.parametrize(("members", "changed"), [(10, 1), (10**6, 3), (5000, 4000), (2**22, 2**18), (7, 7), (7, 0)])
def test_the_scale_of_gaps_is_that_of_their_geometric_distribution(members, changed):
    mean = (members - changed) / changed if changed else 0
    expected = 20 + round(2 * np.log2(1 / np.sinh(np.log1p(1 / mean)))) if mean else 0
    assert abs(changes.scale_of(members, changed) - np.clip(expected, 0, 127)) <= 1


def test_memory_is_what_the_cost_says():
    old = samples.floats((600, 700), 5).astype(np.float16)
    for share in (0.1, 0.9):
        new = np.where(samples.bits(old.size, 8, 16).reshape(old.shape) < share * 2**16, old * 1.01, old)
        update = returns(old, new.astype(np.float16))
        (cost,) = samples.costs_of(update, {"w": old})
        tracemalloc.start()
        try:
            container.apply_update(update, {"w": old})
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
        assert peak - old.nbytes < cost.working_bytes + (4 << 20)


def test_edits_of_exact_updates_give_a_model_or_an_error(small_pieces):
    base, few, many = {}, {}, {}
    for i, dtype in enumerate(("<f4", "bfloat16", "|i1")):
        base[f"{i}"], new = pair(dtype, (8, 16), 0.05)
        few[f"{i}"] = Exact(new)
        many[f"{i}"] = Exact(pair(dtype, (8, 16), 0.6)[1])
    updates = [container.encode(packet.Packet(blocks), base) for blocks in (few, many)]
    edits = fuzz.random_edits(updates, np.random.default_rng(0))
    found = collections.Counter(fuzz.outcome(edit, base) for edit in itertools.islice(edits, 5000))
    assert found.total() == 5000
    assert found.keys() <= {"CorruptUpdateError", "LeafError", "DtypeError", "NonFiniteError", "CostError", "model"}


def test_a_reader_written_from_the_specification_reads_pieces_of_a_leaf():
    old, new = pair("bfloat16", (200, 200), 0.07)
    update = returns(old, new)
    assert inspection.inspect(update)["kinds"] == {"changes": 1}
    assert twin.apply(update, {"w": plain(old)})["w"].data == new.tobytes()
