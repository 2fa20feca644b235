import numpy as np
import pytest

from tests.wire import samples, twin_basis
from updcomp.wire import basis, dtypes, errors, views


def stacked(leaf, rank, **kwargs):
    return basis.of(leaf, rank, **({"seed": 3, "index": 1} | kwargs))


def of(leaf, rank, **kwargs):
    """The bases of the only matrix."""
    return [columns[0] for columns in stacked(leaf, rank, **kwargs)]


def decaying(fan_in, fan_out, decay=0.85):
    rng = np.random.default_rng(0)
    rank = min(fan_in, fan_out)
    left, right = (np.linalg.qr(rng.normal(size=(n, rank)))[0] for n in (fan_in, fan_out))
    return (left * decay ** np.arange(rank) @ right.T).astype(np.float32)


@pytest.mark.parametrize(
    ("shape", "rank"), [((60, 40), 8), ((40, 60), 40), ((64, 10), 32), ((3, 3, 4, 8), 5), ((7,), 7), ((), 1)]
)
def test_columns_are_orthonormal_integers(shape, rank):
    leaf = samples.floats(shape, 1).astype(np.float32)
    fan_in, fan_out = samples.as_matrix_shape(shape)
    left, right = of(leaf, rank)
    assert left.shape == (fan_in, min(rank, fan_in))
    assert right.shape == (fan_out, min(rank, fan_out))
    for columns in (left, right):
        np.testing.assert_array_equal(columns, np.rint(columns))
        gram = columns.T @ columns / 4.0**basis.FRACTION
        np.testing.assert_allclose(gram, np.eye(columns.shape[1]), atol=1e-3)


@pytest.mark.parametrize("rank", [4, 16])
def test_the_basis_captures_nearly_the_energy_of_the_singular_vectors(rank):
    weights = decaying(120, 80)
    left, right = of(weights, rank)
    captured = np.linalg.norm(left.T @ weights.astype(np.float64) @ right) / 4.0**basis.FRACTION
    best = np.linalg.norm(np.linalg.svd(weights, compute_uv=False)[:rank])
    assert 0.97 * best < captured <= 1.001 * best


@pytest.mark.parametrize(("shape", "rank"), [((9, 6), 4), ((12, 3), 7), ((2, 11), 5), ((1, 1), 1), ((5,), 3)])
@pytest.mark.parametrize("kind", ["random", "zero", "dependent"])
def test_the_basis_is_that_of_python_integers(shape, rank, kind):
    leaf = samples.floats(shape, 2).astype(np.float32)
    if kind == "zero":
        leaf = np.zeros_like(leaf)
    if kind == "dependent":
        leaf = (np.ones(leaf.shape) * leaf.reshape(-1, leaf.shape[-1])[0]).astype(np.float32)
    shape = (1, *samples.as_matrix_shape(shape))
    expected = twin_basis.basis(leaf.ravel().astype(float).tolist(), shape, rank, 3, 1)
    for found, columns in zip(stacked(leaf, rank), expected, strict=True):
        np.testing.assert_array_equal(found.transpose(0, 2, 1), columns)


@pytest.mark.parametrize(("shape", "words"), samples.VIEWS.values())
@pytest.mark.parametrize("rank", [1, 4])
def test_the_bases_of_a_stack_are_those_of_python_integers(shape, words, rank):
    view = views.of_words(words)
    leaf = samples.floats(shape, 4).astype(np.float32)
    rank = min(rank, basis.max_rank(shape, view))
    matrices = views.split(leaf, view)
    expected = twin_basis.basis(matrices.ravel().astype(float).tolist(), matrices.shape, rank, 3, 1)
    for found, columns in zip(stacked(leaf, rank, view=view), expected, strict=True):
        np.testing.assert_array_equal(found.transpose(0, 2, 1), columns)


def test_the_matrices_of_a_stack_have_one_scale_and_one_stream_of_signs():
    leaf = np.zeros((2, 3, 3), np.float32)
    left, right = stacked(leaf, 2, view=views.of_words("stack in out"))
    assert (left[0] != left[1]).any()
    for found, alone in zip((left, right), of(leaf[0], 2), strict=True):
        np.testing.assert_array_equal(found[0], alone)
    tiny = np.stack([samples.floats((4, 4), 5), 2.0**-40 * samples.floats((4, 4), 6)])
    left, _ = stacked(tiny, 1, view=views.of_words("stack in out"))
    assert set(np.abs(left[1]).ravel()) == {2.0**13}  # its weights round to zero: signs remain


@pytest.mark.parametrize(
    ("shape", "words", "expected"),
    [
        ((4, 64, 32), "stack in out", 64),
        ((64, 2048, 2048), "stack in out", 1024),
        ((512, 3, 3), "stack in out", 3),
        ((1 << 15, 3, 3), "stack in out", 2),
        ((1 << 16, 3, 3), "stack in out", 1),
        ((1 << 17, 3, 3), "stack in out", 0),
        ((0, 3, 3), "stack in out", 0),
        ((100, 5000), "stack out", 3),
    ],
)
def test_ranks_of_stacks_are_bounded(shape, words, expected):
    assert basis.max_rank(shape, views.of_words(words)) == expected


def test_the_basis_does_not_depend_on_the_order_of_summation():
    leaf = decaying(96, 64)
    expected = of(leaf, 16)
    strided = np.asfortranarray(leaf)
    for found, wanted in zip(of(dtypes.hold(strided), 16), expected, strict=True):
        np.testing.assert_array_equal(found, wanted)
    assert any((found != wanted).any() for found, wanted in zip(of(leaf, 16, seed=4), expected, strict=True))


@pytest.mark.parametrize("dtype", [np.float16, np.float64, dtypes.BFLOAT16])
def test_other_dtypes_have_a_basis_of_their_values(dtype):
    values = samples.floats((8, 5), 3).astype(np.float64 if dtype is np.float64 else np.float32)
    leaf = dtypes.round_floats(values, np.dtype(dtype))
    exact = dtypes.to_floats(leaf).astype(np.float64)
    for found, expected in zip(of(leaf, 4), of(exact, 4), strict=True):
        np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_weights_that_are_not_finite_are_refused(bad):
    with pytest.raises(errors.NonFiniteError, match="finite"):
        of(np.float32([[1, bad]]), 1)


@pytest.mark.parametrize(("shape", "rank"), [((4, 4), 0), ((4, 4), 5), ((0, 4), 1), ((200_000, 2), 100)])
def test_ranks_out_of_range_are_refused(shape, rank):
    with pytest.raises(errors.LeafError, match="rank"):
        of(np.ones(shape, np.float32), rank)
