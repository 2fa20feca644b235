import math

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.wire import samples, twin
from updcomp.wire import (
    apply,
    container,
    contexts,
    dtypes,
    errors,
    fingerprint,
    header,
    inspection,
    kind,
    matrices,
    packet,
    positions,
    streams,
    versions,
    views,
)
from updcomp.wire.kinds import columns
from updcomp.wire.kinds.columns import Columns
from updcomp.wire.kinds.dense import Dense
from updcomp.wire.kinds.sparse import Sparse

STEP = samples.STEP
SHAPES = [
    ((), ""),
    ((7,), "out"),
    ((7,), "in"),
    ((24, 10), "in out"),
    ((24, 10), "out in"),
    ((3, 3, 8, 16), "in in in out"),
    ((16, 8, 3, 3), "out in in in"),
    ((3, 3, 6), "in in stack"),
    ((3, 6, 4), "stack in out"),
    ((6, 3, 4), "out stack in"),
    ((6, 3, 4), "stack stack out"),
    ((8, 2, 4), "in out out"),
    ((700, 300), "in out"),
    ((3, 300, 400), "stack out in"),
]


def as_dense(block, shape):
    """The same change, with zeros in all other columns."""
    view = views.resolve(block.view, len(shape))
    stack, fan_in, fan_out = views.shape_of(shape, view)
    values = np.zeros((fan_in, stack * fan_out), np.int32)
    values[:, block.columns] = block.values
    matrices = values.reshape(fan_in, stack, fan_out).transpose(1, 0, 2)
    return Dense(views.join(matrices, shape, view), block.step, block.view)


@pytest.mark.parametrize("dtype", ["float16", ml_dtypes.bfloat16, "float32", "float64"])
@pytest.mark.parametrize(("shape", "words"), SHAPES)
def test_columns_are_a_dense_block_of_zeros_elsewhere(shape, words, dtype):
    view = views.of_words(words)
    old = samples.floats(shape, 120).astype(dtype)
    old.reshape(-1)[:: max(1, old.size // 5)] = np.inf
    for block in (samples.columns_of(shape, view, 121), samples.columns_of(shape, view, 123)._replace(step=2.0**16)):
        new, expected = (
            apply.apply(packet.Packet({"w": one}), {"w": old})["w"] for one in (block, as_dense(block, shape))
        )
        assert dtypes.flat_bits(new).tobytes() == dtypes.flat_bits(expected).tobytes()


@settings(derandomize=True)
@given(st.data())
def test_any_columns_return_and_a_second_reader_gives_the_same_bits(data):
    shape, words = data.draw(st.sampled_from(SHAPES[:-2]))
    view = views.of_words(words)
    stack, fan_in, fan_out = views.shape_of(shape, view)
    count = stack * fan_out
    chosen = data.draw(st.lists(st.booleans(), min_size=count, max_size=count))
    values = samples.integers((fan_in, count), data.draw(st.integers(0, 9)))[:, chosen]
    sent = Columns(np.flatnonzero(chosen), values, STEP, view)
    base = {"w": samples.floats(shape, 124).astype(np.float32)}
    update = container.encode(packet.Packet({"w": sent}), base)
    leaf = dtypes.hold(base["w"])
    new = twin.apply(update, {"w": twin.Leaf("float32", shape, 4, dtypes.flat_bits(leaf).tolist())})
    assert new["w"].data == apply.apply(packet.Packet({"w": sent}), base)["w"].tobytes()
    for received in container.decode(update, base).blocks.values():
        some = values.any(axis=0)
        assert received.columns.tolist() == sent.columns[some].tolist()
        np.testing.assert_array_equal(received.values, values[:, some])
        assert received.view == (None if view == views.last_axis_out(len(shape)) else view)
        assert container.encode(packet.Packet({"w": received}), base) == update


def entropy(count, size):
    return sum(-part * math.log2(part / size) for part in (count, size - count) if part)


@pytest.mark.parametrize("size", [1, 2, 3, 10, 64, 65, 512, 1000, 4096, 60_000])
def test_places_cost_their_entropy_and_at_most_a_bit_each(size):
    for count in {0, 1, size // 100, size // 10, size // 3, size // 2, size - 1, size} & set(range(size + 1)):
        writer = streams.Writer()
        places = positions.seeded(3, 0, size, count)
        writer.places(places, size)
        assert writer.cost <= min(size, entropy(count, size)) + 2
        if size < 10_000:  # a lane takes its time
            read = streams.Reader(*writer.finish())
            assert read.places(count, size).tolist() == places.tolist()
            read.finish()


def test_places_cost_little_more_where_there_are_more_than_frequencies():
    writer = streams.Writer()
    writer.places(np.array([5, 70_000]), 1 << 18)
    assert writer.cost < (1 << 18) / 10_000 + 30
    read = streams.Reader(*writer.finish())
    assert read.places(2, 1 << 18).tolist() == [5, 70_000]
    read.finish()


def crafted(base, count, write):
    """An update of columns of one leaf as no writer makes it."""
    writer = streams.Writer()
    write(writer)
    heads = [kind.Head(columns.KIND, 0, STEP, count)]
    return header.pack(header.Parts(versions.NEWEST, fingerprint.of(base), bytes(16), 0, heads, *writer.finish()))


@pytest.mark.parametrize(("found", "said"), [(2, "fewer"), (4, "more")])
def test_another_number_of_places_is_refused(monkeypatch, found, said):
    base, frequencies = {"w": np.zeros((4, 10), np.float32)}, streams._two_symbols(3, 10)

    def write(writer):
        with monkeypatch.context() as patch:
            patch.setattr(streams, "_two_symbols", lambda *_: frequencies)
            writer.places(np.arange(found), 10)
        matrices.write_matrix(writer, np.ones((4, 3), np.int32), (4, 3))

    with pytest.raises(errors.CorruptUpdateError, match=f"leaf 'w': places: expected 3 of 10, found {said}"):
        container.apply_update(crafted(base, 3, write), base)


def test_a_sent_column_of_zeros_is_refused():
    base = {"w": np.zeros((4, 10), np.float32)}

    def write(writer):
        writer.places(np.arange(3), 10)
        matrices.write_matrix(writer, np.ones((4, 3), np.int32) * np.int32([1, 0, 1]), (4, 3))

    with pytest.raises(errors.CorruptUpdateError, match="leaf 'w': values: expected integers other than 0 in every"):
        container.apply_update(crafted(base, 3, write), base)


@pytest.mark.parametrize("shape", [(0, 3), (3, 0), (0,), (1 << 60, 0), (0, 1 << 60)])
def test_an_empty_leaf_has_no_columns(shape):
    base = {"w": np.zeros(shape, np.float32)}
    none = crafted(base, 0, lambda _: None)
    with pytest.raises(errors.CorruptUpdateError, match="result: expected the model 00000000"):
        container.apply_update(none, base)
    with pytest.raises(errors.CorruptUpdateError, match="count or rank: expected at most 0, found 1"):
        container.apply_update(crafted(base, 1, lambda _: None), base)


@pytest.mark.parametrize("shape", [(0, 3), (3, 0), (0,)])
def test_columns_of_an_empty_leaf_are_not_sent(shape):
    base = {"w": np.zeros(shape, np.float32)}
    rows, all_columns = samples.as_matrix_shape(shape)
    sent = packet.Packet({"w": Columns(np.arange(all_columns), np.zeros((rows, all_columns)).astype(int), STEP)})
    update = container.encode(sent, base)
    assert container.decode(update, base).blocks == {}


def test_more_columns_than_there_are_are_refused():
    base = {"w": np.zeros((4, 10), np.float32)}
    with pytest.raises(errors.CorruptUpdateError, match="count or rank: expected at most 10, found 11"):
        container.apply_update(crafted(base, 11, lambda _: None), base)


VALUES = np.ones((24, 2), np.int32)


@pytest.mark.parametrize(
    ("block", "message"),
    [
        (Columns(np.array([1, 10]), VALUES, STEP), "columns: expected int64, strictly ascending, from 0 to 9"),
        (Columns(np.array([2, 1]), VALUES, STEP), "columns: expected int64, strictly ascending"),
        (Columns(np.array([1, 1]), VALUES, STEP), "columns: expected int64, strictly ascending"),
        (Columns(np.array([[1], [2]]), VALUES, STEP), "columns: expected int64, strictly ascending"),
        (Columns(np.array(1), VALUES[:, 0], STEP), "columns: expected int64, strictly ascending"),
        (Columns(np.array([0.5]), VALUES, STEP), "columns: expected integers that fit int64"),
        (Columns(np.array([1, 2, 3]), VALUES, STEP), r"shape of values: expected \(24, 3\), found \(24, 2\)"),
        (Columns(np.array([1, 2]), VALUES, STEP, views.of_words("out in")), r"shape of values: expected \(10, 2\)"),
        (Columns(np.array([1, 2]), VALUES, STEP, "in out"), "view: expected a View"),
        (Columns(np.array([1, 2]), VALUES, 0.1), "step"),
    ],
)
def test_columns_that_do_not_fit_are_refused(block, message):
    with pytest.raises(errors.LeafError, match=f"leaf 'dense/kernel': {message}"):
        apply.apply(packet.Packet({"dense/kernel": block}), samples.model())


def test_version_1_does_not_know_them():
    base = samples.model()
    update = container.encode(packet.Packet({"scale": samples.packets()["columns"].blocks["scale"]}), base)
    parts = header.parse(update)
    with pytest.raises(errors.CorruptUpdateError, match="block kind: expected 0 to 8, found 9"):
        header.parse(header.pack(parts._replace(version=versions.VERSIONS[1])))


def test_a_report_says_how_many():
    base = samples.viewed_model()
    told = inspection.inspect(container.encode(samples.viewed_columns(), base), base)
    assert told["kinds"] == {"columns": len(samples.VIEWS)}
    said = {block["leaf"]: (block["size"], block["axes"]) for block in told["blocks"]}
    assert said["attention/dense"] == (4, "in out out")
    assert said["layers/dense"] == (6, "stack in out")


def test_a_tenth_of_the_columns_takes_fewer_bytes_than_as_other_kinds():
    shape = (512, 512)
    rng = np.random.default_rng(0)
    places = np.sort(rng.choice(512, 51, replace=False))
    block = Columns(places, np.rint(np.clip(rng.normal(0, 40, (512, 51)), -127, 127)).astype(np.int32), STEP)
    base, dense = {"w": np.zeros(shape, np.float32)}, as_dense(block, shape)
    where = np.flatnonzero(dense.values)
    blocks = (block, Sparse(where, dense.values.reshape(-1)[where], STEP), dense)
    sizes = [len(container.encode(packet.Packet({"w": one}), base)) for one in blocks]
    assert sizes[0] < sizes[1]
    assert sizes[0] < sizes[2]
    assert sizes[0] < streams_bytes(block.values) + 64 + 512 / 8


def streams_bytes(values):
    """The values alone."""
    writer = streams.Writer()
    contexts.write_matrix(writer, values, values.shape)
    return writer.cost / 8 * 1.01
