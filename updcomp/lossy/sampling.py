"""What is known of a leaf's change before it is coded: some rows, how far rows and columns move, its spectrum."""

from typing import NamedTuple

import numpy as np

from updcomp.lossy import low_rank, rounding, sizes
from updcomp.wire import views
from updcomp.wire.kinds.exact import Exact

_SAMPLE = 1 << 16  # weights looked at, and
_SHARE = 32  # one in so many of a large leaf
_FEWEST_ROWS = 32
_LINE = 1 << 10  # weights of a row of what has hardly any rows
_SWEEPS = 2
_CLASSES = 64  # half-octaves
_SMALLEST = 2.0**-40  # of the largest changes that are looked at as matrices


class Leaf(NamedTuple):
    """A lossy leaf that changes, in rows that stand for all of them."""

    shape: tuple[int, int]  # rows and columns of the whole
    old: np.ndarray  # held, (some rows, columns)
    new: np.ndarray  # the same
    change: np.ndarray  # float
    counts: np.ndarray  # float64 (some rows,): how many rows each stands for
    sensitivity: np.ndarray  # float, () or of the shape of the change: what a squared error counts
    rows: np.ndarray  # float64 (some rows,): log2 of how far a row moves, and
    columns: np.ndarray  # float64 (columns,): a column; their sums are of mean |change|
    energy: float  # of the whole change: the sum of its squares
    spectrum: low_rank.Spectrum | None  # of the whole change
    exact_bits: float

    @property
    def weight(self) -> float:
        """The mean sensitivity."""
        return float(self.sensitivity.mean())


def matrix_of(leaf: np.ndarray) -> np.ndarray:
    """The leaf as the one matrix that the coder sees, its last axis across."""
    return views.split(leaf, views.last_axis_out(leaf.ndim))[0]


def survey(old: np.ndarray, new: np.ndarray, sensitivity: np.ndarray) -> Leaf | None:
    """Looks at a leaf.

    Args:
      old: held float leaf.
      new: the same shape and dtype.
      sensitivity: non-negative, of the leaf's shape or of shape ().

    Returns:
      None where a weight that changes is not finite, or its square, so that the leaf has to be exact.
    """
    change = matrix_of(rounding.change(old, new))
    if not np.isfinite(change).all():
        return None
    squares = np.einsum("ij,ij->i", change, change, dtype=np.float64, casting="unsafe")
    largest = float(np.abs(change).max(initial=0))
    if not np.isfinite(squares).all():
        return None
    # Of what is larger or smaller by far, squares leave the range of float32.
    is_matrix = len(change) >= low_rank.LEAST_SIDE and _SMALLEST <= largest <= 1 / _SMALLEST
    spectrum = low_rank.spectrum(change) if is_matrix else None
    olds, news = matrix_of(old), matrix_of(new)
    weights = matrix_of(sensitivity) if sensitivity.ndim else sensitivity
    if is_matrix:
        some, counts = _rows(squares, change.shape[1])
    else:
        olds, news, change = (_lines(part) for part in (olds, news, change))
        weights = _lines(weights) if weights.ndim else weights
        some, counts = _rows(np.einsum("ij,ij->i", change, change, dtype=np.float64, casting="unsafe"), _LINE)
    part = np.ascontiguousarray(change[some])
    rows, columns = _scales(part, counts) if is_matrix else (np.zeros(len(some)), np.zeros(part.shape[1]))
    olds, news = np.ascontiguousarray(olds[some]), np.ascontiguousarray(news[some])
    exact = sizes.bits(Exact(news), olds) * old.size / max(olds.size, 1)
    return Leaf(
        matrix_of(old).shape if is_matrix else (1, old.size),
        olds,
        news,
        part,
        counts * (old.size / max(counts.sum() * part.shape[1], 1)),
        weights[some] if weights.ndim else weights,
        rows,
        columns,
        float(squares.sum()),
        spectrum,
        exact,
    )


def _lines(matrix: np.ndarray) -> np.ndarray:
    """Rows of at most 2^10 weights, of all but the last few."""
    flat = matrix.reshape(-1)
    width = min(_LINE, max(flat.size, 1))
    return flat[: flat.size // width * width].reshape(-1, width)


def _rows(squares: np.ndarray, columns: int) -> tuple[np.ndarray, np.ndarray]:
    """Some rows, and how many each stands for: those that move most, and every so manyth of the others in order."""
    count = max(_FEWEST_ROWS, max(_SAMPLE, len(squares) * columns // _SHARE) // max(columns, 1))
    if count >= len(squares):
        return np.arange(len(squares)), np.ones(len(squares))
    order = np.argsort(squares)[::-1]
    most = count // 8
    others = order[most:]
    places = ((np.arange(count - most) + 0.5) * len(others) / (count - most)).astype(np.int64)
    some = np.concatenate([order[:most], others[places]])
    counts = np.concatenate([np.ones(most), np.full(count - most, len(others) / (count - most))])
    ascending = np.argsort(some)
    return some[ascending], counts[ascending]


def _scales(change: np.ndarray, counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Logarithms of x, y with mean |change_ij| about x_i y_j, as the coder finds them."""
    magnitudes = np.abs(change)
    tiny = float(magnitudes.mean()) * 2.0**-12 + 1e-30
    y = np.ones(change.shape[1])
    for _ in range(_SWEEPS):
        x = magnitudes @ (1 / y).astype(change.dtype) / len(y) + tiny
        y = (counts / x).astype(change.dtype) @ magnitudes / counts.sum() + 2.0**-12
    return np.log2(x.astype(np.float64)), np.log2(y.astype(np.float64))


def classes(leaf: Leaf) -> np.ndarray:
    """uint8 of the shape of the sample: the half-octave in which a weight moves, from 0."""
    rows, columns = np.rint(2 * leaf.rows), np.rint(2 * leaf.columns)
    sums = rows[:, None] + columns
    return np.clip(sums - sums.max(initial=0) + _CLASSES - 1, 0, _CLASSES - 1).astype(np.uint8)
