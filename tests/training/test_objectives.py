"""Losses and scores over batches of any kind."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import updcomp
from updcomp.training import Extra, Mean, Objective, classification, make_score, models, objectives
from updcomp.training.compilation import measured
from updcomp.training.data import Dataset
from updcomp.wire.errors import Error

MODEL = models.mlp(hidden=(8,), num_classes=4)
IMAGES = classification(MODEL.apply)


def samples(n, dtype=np.uint8):
    generator = np.random.default_rng(n)
    images = generator.integers(0, 256, (n, 3, 3, 1)).astype(np.uint8)
    images = images if dtype == np.uint8 else (images / 255).astype(dtype)
    return Dataset(images, generator.integers(0, 4, n).astype(np.int32))


@pytest.fixture(scope="module")
def variables():
    return MODEL.init(jax.random.key(0), np.zeros((1, 3, 3, 1)))


def accuracy(variables, dataset):
    """In NumPy, float64."""
    layers = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), variables["params"])
    images = dataset.images.reshape(len(dataset.images), -1) / (255 if dataset.images.dtype == np.uint8 else 1)
    hidden = np.maximum(images @ layers["Dense_0"]["kernel"] + layers["Dense_0"]["bias"], 0)
    logits = hidden @ layers["Dense_1"]["kernel"] + layers["Dense_1"]["bias"]
    return (logits.argmax(1) == dataset.labels).mean()


@pytest.mark.parametrize("n", [1, 7, 8, 9, 40])
@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_accuracy_counts_every_image_once_on_the_host_and_in_a_compiled_function(variables, n, dtype):
    dataset = samples(n, dtype)
    expected = accuracy(variables, dataset)
    assert 0 < expected < 1 or n == 1
    assert make_score(IMAGES, batch_size=8)(variables, dataset) == pytest.approx(expected, abs=1e-7)
    compiled = jax.jit(lambda v, d: objectives.mean_score(IMAGES, v, d, batch_size=8))
    assert float(compiled(variables, dataset)) == pytest.approx(expected, abs=1e-7)


def squared(variables, batch, key):
    return jnp.mean((batch["x"] * variables - batch["y"]) ** 2)


def pairs(n):
    generator = np.random.default_rng(n)
    return {"x": generator.normal(size=n).astype(np.float32), "y": generator.normal(size=n).astype(np.float32)}


@pytest.mark.parametrize("n", [1, 7, 24, 37, 64, 100])
@pytest.mark.parametrize("batch_size", [1, 8, 64])
def test_without_a_score_it_is_minus_the_loss_of_all_rows(n, batch_size):
    data = pairs(n)
    expected = -np.mean((np.float64(data["x"]) * 1.5 - data["y"]) ** 2)
    assert make_score(Objective(squared), batch_size=batch_size)(jnp.float32(1.5), data) == pytest.approx(
        expected, 1e-5
    )
    inside = objectives.mean_score(Objective(squared), jnp.float32(1.5), jax.device_put(data), batch_size=batch_size)
    assert float(inside) == pytest.approx(expected, 1e-5)


@pytest.mark.parametrize("n", [5, 23, 64])
def test_means_merge_by_weight(n):
    """Against NumPy: rows with other numbers of valid entries, in batches whose last one is smaller."""
    generator = np.random.default_rng(n)
    data = {
        "x": generator.normal(size=(n, 6)).astype(np.float32),
        "valid": np.arange(6)[None] < generator.integers(0, 7, (n, 1)),
    }

    def score(variables, batch):
        return Mean(jnp.sum(batch["x"], where=batch["valid"]) * variables, jnp.sum(batch["valid"], dtype=jnp.float32))

    objective = Objective(squared, score)
    expected = 2 * data["x"][data["valid"]].mean(dtype=np.float64)
    assert make_score(objective, batch_size=8)(jnp.float32(2), data) == pytest.approx(expected, rel=1e-4)
    inside = objectives.mean_score(objective, jnp.float32(2), jax.device_put(data), batch_size=8)
    assert float(inside) == pytest.approx(expected, rel=1e-4)


def test_without_rows_there_is_no_score(variables):
    empty = Dataset(np.zeros((0, 3, 3, 1), np.uint8), np.zeros(0, np.int32))
    assert np.isnan(make_score(IMAGES)(variables, empty))
    assert np.isnan(objectives.mean_score(IMAGES, variables, jax.device_put(empty)))


def test_other_variables_and_as_many_whole_batches_compile_nothing(variables):
    score = make_score(IMAGES, batch_size=16)
    score(variables, samples(16))
    with measured() as compilation:
        score(jax.tree.map(np.asarray, variables), samples(32))
        score(jax.tree.map(lambda leaf: leaf * np.float32(2), jax.device_get(variables)), samples(48))
    assert compilation.count == 0


def test_evaluation_is_never_in_the_training_mode(variables):
    modes = []

    def apply(variables, images, *, train):
        modes.append(train)
        return MODEL.apply(variables, images, train=train)

    make_score(classification(apply))(variables, samples(3))
    assert modes == [False]


def test_the_loss_is_told_the_mode_where_it_asks_for_it():
    def with_mode(variables, batch, key, train):
        return jnp.float32(train)

    def without(variables, batch, key):
        return jnp.float32(7)

    for train in (True, False):
        found, extra = objectives.loss_of(Objective(with_mode), None, pairs(2), jax.random.key(0), train=train)
        assert float(found) == train
        assert extra == Extra()
        assert float(objectives.loss_of(Objective(without), None, pairs(2), jax.random.key(0), train=train)[0]) == 7


def test_without_a_score_the_loss_is_asked_in_the_mode_of_evaluation():
    objective = Objective(lambda variables, batch, key, train: jnp.float32(100 if train else 3))
    assert make_score(objective)(None, pairs(4)) == -3


@pytest.mark.parametrize(
    ("found", "message"),
    [
        (jnp.zeros(3), r"loss: expected a floating scalar, found float32 \(3,\); take its mean"),
        (jnp.int32(3), r"loss: expected a floating scalar, found int32 \(\)"),
        ((jnp.float32(0), {"accuracy": 1.0}), "loss: expected a scalar, or a scalar and an Extra, found dict beside"),
    ],
)
def test_a_loss_of_another_form_is_refused(found, message):
    with pytest.raises(Error, match=message):
        objectives.loss_of(Objective(lambda *_: found), None, pairs(2), jax.random.key(0), train=True)


@pytest.mark.parametrize("found", [jnp.zeros(3), jnp.int32(1), Mean(jnp.zeros(3), jnp.float32(3))])
def test_a_score_that_is_no_mean_is_refused(found):
    with pytest.raises(Error, match="score: .*expected a floating scalar, found .*; return the mean over the rows, or"):
        make_score(Objective(squared, lambda variables, batch: found))(jnp.float32(0), pairs(3))


def test_narrow_losses_and_scores_become_float32():
    objective = Objective(lambda *_: jnp.bfloat16(0.5), lambda *_: jnp.float16(0.25))
    assert objectives.loss_of(objective, None, pairs(2), jax.random.key(0), train=True)[0].dtype == jnp.float32
    assert make_score(objective)(None, pairs(3)) == 0.25


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"x": np.zeros(4), "deep": {"y": np.zeros(5)}}, r"'x'.*leading axis as long as that of 'deep/y', \(5,\)"),
        ({"x": np.zeros(4), "n": np.float32(4)}, r"data leaf 'x'.*'n', \(\)|data leaf 'n'"),
        ({}, "expected arrays with a common leading axis, found none in dict"),
    ],
)
def test_data_without_common_rows_name_the_leaf(data, message):
    with pytest.raises(Error, match=message):
        make_score(Objective(squared))(jnp.float32(0), data)


def test_equal_classifications_are_the_same_objective():
    assert classification(MODEL.apply) is IMAGES
    assert classification(MODEL.apply, loss=optax.squared_error) is not IMAGES
    assert updcomp.training.Objective is Objective
