import jax
import jax.numpy as jnp
import numpy as np
import pytest

from updcomp.training.data import Dataset
from updcomp.training.evaluation import count_correct, make_accuracy
from updcomp.training.models import mlp

MODEL = mlp(hidden=(8,), num_classes=4)


def samples(n, dtype=np.uint8):
    generator = np.random.default_rng(n)
    images = generator.integers(0, 256, (n, 3, 3, 1)).astype(np.uint8)
    images = images if dtype == np.uint8 else (images / 255).astype(dtype)
    return Dataset(images, generator.integers(0, 4, n).astype(np.int32))


@pytest.fixture(scope="module")
def variables():
    return MODEL.init(jax.random.key(0), np.zeros((1, 3, 3, 1)))


def reference(variables, dataset):
    """The number of hits in NumPy, float64."""
    layers = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), variables["params"])
    images = dataset.images.reshape(len(dataset.images), -1) / (255 if dataset.images.dtype == np.uint8 else 1)
    hidden = np.maximum(images @ layers["Dense_0"]["kernel"] + layers["Dense_0"]["bias"], 0)
    logits = hidden @ layers["Dense_1"]["kernel"] + layers["Dense_1"]["bias"]
    return int((logits.argmax(1) == dataset.labels).sum())


@pytest.mark.parametrize("n", [1, 7, 8, 9, 40])
@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_only_real_samples_count(variables, n, dtype):
    dataset = samples(n, dtype)
    hits = reference(variables, dataset)
    assert 0 < hits < n or n == 1
    assert make_accuracy(MODEL.apply, batch_size=8)(variables, dataset) == hits / n
    count = jax.jit(lambda v, d: count_correct(MODEL.apply, v, d, batch_size=8))(variables, dataset)
    assert count.dtype == jnp.int32
    assert count == hits


def test_one_compilation_serves_all_sizes(variables):
    traces = []

    def apply(variables, images, *, train):
        traces.append(images.shape)
        return MODEL.apply(variables, images, train=train)

    accuracy = make_accuracy(apply, batch_size=16)
    for n in (5, 16, 40):
        accuracy(variables, samples(n))
    accuracy(jax.tree.map(jnp.zeros_like, variables), samples(5))
    accuracy(jax.tree.map(np.asarray, variables), samples(5))
    assert traces == [(16, 3, 3, 1)]


def test_statistics_are_those_of_the_model_and_never_of_the_batch(variables):
    modes = []

    def apply(variables, images, *, train):
        modes.append(train)
        return MODEL.apply(variables, images, train=train)

    make_accuracy(apply)(variables, samples(3))
    assert modes == [False]


def test_an_empty_dataset_has_no_accuracy(variables):
    empty = Dataset(np.zeros((0, 3, 3, 1), np.uint8), np.zeros(0, np.int32))
    assert np.isnan(make_accuracy(MODEL.apply)(variables, empty))
    assert count_correct(MODEL.apply, variables, empty) == 0
