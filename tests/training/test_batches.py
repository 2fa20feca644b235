"""Training data as arrays, memory maps and streams: the same batches in the same order."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.methods.worlds import KEY, applied, assert_same, regression
from updcomp.methods import full, partial
from updcomp.training import Stream, batches, devices
from updcomp.training.compilation import measured
from updcomp.wire.errors import Error

METHOD = full(bits=8)


def test_an_epoch_visits_every_sample_and_each_has_an_order_of_its_own():
    order = batches.shuffled(KEY, 0, np.arange(7, 130), 50)
    assert order.shape == (3, 50)
    assert set(order.ravel()) == set(range(7, 130))
    assert np.any(order != batches.shuffled(KEY, 1, np.arange(7, 130), 50))
    assert np.any(order != batches.shuffled(jax.random.key(1), 0, np.arange(7, 130), 50))
    np.testing.assert_array_equal(order, batches.shuffled(KEY, 0, np.arange(7, 130), 50))


def host(tree):
    return jax.tree.map(np.asarray, tree)


def batches_of(task, key):
    """What training on the arrays takes, in its order."""
    for number in range(task.epochs):
        for rows in batches.shuffled(key, number, np.arange(120), task.batch_size):
            yield jax.tree.map(lambda leaf, rows=rows: leaf[rows], host(task.train))


@pytest.mark.parametrize("mesh", [None, devices.make_mesh()], ids=["one device", "mesh"])
@pytest.mark.parametrize("chunk", [1, 4, 100])
def test_a_stream_of_the_same_batches_trains_to_the_same_bits(chunk, mesh, monkeypatch):
    """Six batches an epoch, in chunks of one, of four (the second one is not full) and of all."""
    deployed, task = regression()
    task = task._replace(mesh=mesh)
    batch_bytes = 20 * (6 + 2) * 4
    expected = METHOD(KEY, deployed, task)
    monkeypatch.setattr(batches, "CHUNK_BYTES", chunk * batch_bytes + batch_bytes - 1)
    stream = Stream(batches_of(task, KEY), steps=6)
    found = METHOD(KEY, deployed, task._replace(train=stream))
    assert_same(applied(found, deployed), applied(expected, deployed))


@pytest.mark.parametrize("chunk", [1, 4])
def test_arrays_on_the_host_train_to_the_same_bits(chunk, tmp_path, monkeypatch):
    deployed, task = regression()
    task = task._replace(samples=np.arange(5, 113))
    expected = METHOD(KEY, deployed, task)
    monkeypatch.setattr(batches, "CHUNK_BYTES", chunk * 20 * 8 * 4)
    np.save(tmp_path / "x.npy", task.train["features"]["x"])
    train = {"features": {"x": np.load(tmp_path / "x.npy", mmap_mode="r")}, "target": np.asarray(task.train["target"])}
    portions = []
    epoch = batches.epoch
    monkeypatch.setattr(batches, "epoch", lambda *a, **b: (portions.append(p) or p for p in epoch(*a, **b)))
    found = METHOD(KEY, deployed, task._replace(train=train))
    assert_same(applied(found, deployed), applied(expected, deployed))
    assert {batches.rows(portion.data) for portion in portions} == {chunk}
    assert len(portions) == task.epochs * -(-6 // chunk)


def test_one_leaf_on_the_host_is_enough_to_stream():
    deployed, task = regression()
    mixed = {**task.train, "target": np.asarray(task.train["target"])}
    found = METHOD(KEY, deployed, task._replace(train=mixed))
    assert_same(applied(found, deployed), applied(METHOD(KEY, deployed, task), deployed))


def test_a_second_training_from_a_stream_compiles_nothing():
    deployed, task = regression()
    METHOD(KEY, deployed, task._replace(train=Stream(batches_of(task, KEY), steps=6)))
    with measured() as compilation:
        METHOD(KEY, deployed, task._replace(train=Stream(batches_of(task, jax.random.key(5)), steps=6)))
    assert compilation.count == 0


def numbered(count, size=2):
    return [{"x": np.full(size, number)} for number in range(count)]


def seen(stream, count):
    return [int(batch["x"][0]) for batch in stream.take(count)]


def test_a_stream_that_can_be_iterated_over_again_starts_anew_at_its_end():
    stream = Stream(numbered(3), steps=2)
    assert [seen(stream, 2) for _ in range(4)] == [[0, 1], [2, 0], [1, 2], [0, 1]]


def test_looking_at_the_next_batch_takes_nothing():
    stream = Stream(iter(numbered(3)), steps=3)
    assert [stream.example["x"][0] for _ in range(3)] == [0, 0, 0]
    assert seen(stream, 2) == [0, 1]
    assert stream.example["x"][0] == 2


def test_an_iterator_has_to_last():
    stream = Stream(iter(numbered(3)), steps=2)
    assert seen(stream, 2) == [0, 1]
    with pytest.raises(
        Error, match="expected 2 more batches for an epoch, but the iterable has ended; give an iterable"
    ):
        stream.take(2)
    with pytest.raises(Error, match="the iterable has ended"):
        _ = Stream([], steps=1).example


def test_an_iterator_lasts_for_all_epochs_of_all_trainings_of_a_method():
    deployed, task = regression()
    task = task._replace(train=Stream(batches_of(task, KEY), steps=6))
    with pytest.raises(Error, match="the iterable has ended"):
        partial(ratio=0.5)(KEY, deployed, task)


def test_batches_of_other_shapes_are_refused_by_name():
    last = {"x": np.zeros(1, int)}
    stream = Stream([*numbered(1), last], steps=2)
    with pytest.raises(
        Error, match=r"like the first, {'x': 'int64 \(2,\)'}, found {'x': 'int64 \(1,\)'}; drop the last"
    ):
        stream.take(2)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda task: task._replace(train=Stream([host(task.train)], steps=1), samples=np.arange(3)),
            "samples: expected",
        ),
        (lambda task: task._replace(train=Stream([host(task.train)], steps=0)), "steps: expected at least 1"),
        (
            lambda task: task._replace(samples=np.arange(7)),
            "batch_size: .* training samples, 7, found 20; use a smaller",
        ),
        (lambda task: task._replace(batch_size=121), "batch_size: .* training samples, 120, found 121"),
    ],
)
def test_data_that_make_no_epoch_are_refused(make, message):
    deployed, task = regression()
    with pytest.raises(Error, match=message):
        METHOD(KEY, deployed, make(task))


def test_wide_integers_are_as_wide_as_on_devices():
    example = batches.example({"x": np.zeros((5, 2), np.int64), "y": np.zeros(5)}, 3)
    assert jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), example) == {
        "x": ((3, 2), jnp.int32),
        "y": ((3,), jnp.float32),
    }


def test_an_iterable_may_use_its_buffer_again():
    def reused():
        buffer = {"x": np.empty(2, np.float32)}
        for number in range(4):
            buffer["x"][:] = number
            yield buffer

    assert [batch["x"][0] for batch in Stream(reused(), steps=4).take(4)] == [0, 1, 2, 3]


def test_batches_of_other_shapes_are_noticed_in_a_later_epoch_as_well():
    stream = Stream(iter([{"x": np.zeros(3)}, {"x": np.zeros(3)}, {"x": np.zeros(2)}]), steps=2)
    stream.take(2)
    with pytest.raises(Error, match="expected batches like the first"):
        stream.take(1)
