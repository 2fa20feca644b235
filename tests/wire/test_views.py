import itertools
import math

import jax.numpy as jnp
import numpy as np
import pytest

from tests.wire import samples
from updcomp.wire import errors, views

EVERY = [
    (" ".join(words), len(words))
    for ndim in range(5)
    for words in itertools.product(("stack", "in", "out"), repeat=ndim)
    if not words or set(words) != {"stack"}
]


@pytest.mark.parametrize(("words", "ndim"), EVERY)
def test_splitting_reads_every_matrix_and_joining_is_its_inverse(words, ndim):
    shape, view, axes = (2, 3, 4, 5)[:ndim], views.of_words(words), words.split()
    leaf = np.arange(math.prod(shape)).reshape(shape)
    matrices = views.split(leaf, view)
    assert matrices.shape == views.shape_of(shape, view)
    for index in np.ndindex(shape):
        place = []
        for word in ("stack", "in", "out"):
            flat = 0
            for axis in range(ndim):
                if axes[axis] == word:
                    flat = flat * shape[axis] + index[axis]
            place.append(flat)
        assert matrices[tuple(place)] == leaf[index]
    np.testing.assert_array_equal(views.join(matrices, shape, view), leaf)
    assert views.words_of(view, ndim) == words


@pytest.mark.parametrize("ndim", range(5))
def test_numbers_are_a_bijection(ndim):
    every = [views.of_words(words) for words, axes in EVERY if axes == ndim]
    numbers = [views.number(view, ndim) for view in every]
    assert sorted(numbers) == list(range(min(ndim, 1), 3**ndim))
    assert [views.of_number(number, ndim) for number in numbers] == every


@pytest.mark.parametrize(("number", "ndim"), [(-1, 2), (0, 2), (9, 2), (1, 0), (3**64, 64)])
def test_other_numbers_are_refused(number, ndim):
    with pytest.raises(errors.CorruptUpdateError, match=f"view: expected .* found {number}"):
        views.of_number(number, ndim)


@pytest.mark.parametrize("shape", [(), (7,), (3, 5), (2, 3, 4, 5), (0, 3), (3, 0)])
def test_the_default_is_the_matrix_of_the_last_axis(shape):
    view = views.resolve(None, len(shape))
    assert views.shape_of(shape, view) == (1, *samples.as_matrix_shape(shape))
    leaf = np.zeros(shape)
    assert np.shares_memory(views.split(leaf, view), leaf) == (leaf.size > 0)
    assert views.join(views.split(leaf, view), shape, view).shape == shape


@pytest.mark.parametrize(("shape", "words"), samples.VIEWS.values())
def test_jax_arrays_stay_such(shape, words):
    leaf, view = samples.floats(shape, 1).astype(np.float32), views.of_words(words)
    matrices = views.split(jnp.asarray(leaf), view)
    assert isinstance(matrices, jnp.ndarray)
    np.testing.assert_array_equal(matrices, views.split(leaf, view))
    np.testing.assert_array_equal(views.join(matrices, shape, view), leaf)


@pytest.mark.parametrize(
    ("words", "message"),
    [("in oot", "'in oot': expected a word per axis, stack, in or out, found 'oot'"), ("stack stack", "at least one")],
)
def test_other_words_are_refused(words, message):
    with pytest.raises(errors.Error, match=message):
        views.of_words(words)


@pytest.mark.parametrize(
    "view", [((1, 0), (2,)), ((0, 1), (1,)), ((0,), (3,)), ((-1,), (0,)), ((), ()), ((0, 0), (1,))], ids=str
)
def test_views_that_do_not_fit_are_refused(view):
    with pytest.raises(errors.LeafError, match="view: expected ascending axes below 3"):
        views.shape_of((2, 3, 4), views.View(*view))
