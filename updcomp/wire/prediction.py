"""What the known integers of a matrix say of the others: their means, and how far they lie from them.

The update of a layer is close to a matrix of low rank, and its rows and columns differ in how much they move. So the
known integers X, of which the mask M tells, are fitted by U V^T: ridge regressions in turn, each as one step of Newton
for all rows at once,

  U += ((M * (X - U V^T)) V - l U) (p V^T V + l)^-1,  p the share that is known, l a multiple of the noise's norm,

and the same for V. What is left is predicted from its neighbours in the column and in the row. Integers, or products of
integers that float64 holds, go through matrix products; all else is elementwise, so that every machine gets the same.
"""

import math

import numpy as np

from updcomp.wire import dtypes, hashing

UNIT = 1 << 6  # means are in 64ths of an integer
CLASSES = 64  # of distances, half-octaves; 20 is a mean of 1, as in priors
_FACTOR = 1 << 10  # units of the factors' entries
_LARGEST_FACTOR = 1 << 15
_LARGEST_ERROR = 1 << 17  # of what is fitted: sums of 2^20 products with factors stay below 2^53
_LARGEST_NEIGHBOUR = 1 << 15
_LARGEST_VALUE = 1 << 31
_SEED = 1 << 8  # of a direction that begins
_SLICE = 1 << 14  # integers at a time: they stay in the cache
_PRODUCTS = 1 << 18  # at a time: more, BLAS shares out among threads, which on busy cores takes many times as long
_PER_DIRECTION = 2  # known integers for each entry of a factor at least
_SWEEPS = 2
_SHRINKAGE = 5  # l is the noise's norm by this
_PRIOR = 4  # integers of the mean magnitude that a row, or a column, has before any is known
_UNIT_LOG = 8 * 6  # eighths of octaves of 2^6
_MANTISSAS = np.array([round(2 ** (16 - 1 + k / 8)) for k in range(1, 8)]) / 2.0**16  # 2^(k/8) / 2


class Predictor:
    """Predicts the integers of a matrix from those that are known."""

    def __init__(self, shape: tuple[int, int], rank: int) -> None:
        """Knows nothing.

        Args:
          shape: (rows, columns), at most 2^20 integers.
          rank: at most so many directions are fitted.
        """
        self._count, self._rank = 0, rank
        self._mask, self._values = np.zeros(shape), np.zeros(shape)
        self._left, self._right = np.zeros((shape[0], rank)), np.zeros((shape[1], rank))
        self._seeds = hashing.signs(0, 0, rank * shape[1]).reshape(shape[1], rank) * _SEED
        self._means, self._errors = np.zeros(shape), np.zeros(shape)
        self._logs: tuple[dtypes.Array, dtypes.Array] | None = None

    def learn(self, places: dtypes.Array, values: dtypes.Array) -> None:
        """More integers are known.

        Args:
          places: int64 (n,), in the flattened matrix.
          values: int64 (n,).
        """
        self._mask.reshape(-1)[places] = 1
        bound = _LARGEST_VALUE // UNIT
        self._values.reshape(-1)[places] = UNIT * np.clip(values, -bound, bound)
        self._count += len(places)

    def fit(self, *, is_deep: bool) -> None:
        """Works out what `at` says, from all that is known.

        Args:
          is_deep: whether means are fitted, if the rank allows any; else they are 0.
        """
        if is_deep and self._rank:
            self._fit_directions()
            for axis in (0, 1):
                self._use_neighbours(axis)
        self._find_errors()
        magnitudes = np.abs(self._errors)
        mean = (magnitudes.sum() + 1) / max(self._count, 1)
        rows, columns = ((magnitudes.sum(axis) + _PRIOR * mean) / (self._mask.sum(axis) + _PRIOR) for axis in (1, 0))
        self._logs = _logs(rows), _logs(columns / mean)

    def at(self, places: dtypes.Array) -> tuple[dtypes.Array, dtypes.Array]:
        """What is expected of integers.

        Args:
          places: int64 (n,).

        Returns:
          (means in 64ths, classes of the mean distance from it): int64 (n,).
        """
        assert self._logs is not None, "something has been fitted"
        row, column = np.divmod(places, self._mask.shape[1])
        logs = self._logs[0][row] + self._logs[1][column]
        classes = np.clip((logs - _UNIT_LOG + 2 >> 2) + 20, 0, CLASSES - 1)
        return self._means.reshape(-1)[places].astype(np.int64), classes

    def _subtract(self) -> None:
        """Means by the directions, and how far the known integers lie above them."""
        height = max(1, _SLICE // self._means.shape[1])
        for top in range(0, len(self._means), height):
            part = slice(top, top + height)
            means = _product(self._left[part], self._right.T, self._means[part])
            means *= UNIT / _FACTOR**2
            np.rint(means, out=means)
            np.subtract(self._values[part], means, out=self._errors[part])
            self._errors[part] *= self._mask[part]

    def _find_errors(self) -> None:
        np.subtract(self._values, self._means, out=self._errors)
        self._errors *= self._mask

    def _fit_directions(self) -> None:
        """Means by as many directions as what is known can bear."""
        rows, columns = self._mask.shape
        active = min(self._rank, self._count // (_PER_DIRECTION * (rows + columns)))
        for k in range(active):
            if not (self._left[:, k].any() and self._right[:, k].any()):
                self._left[:, k], self._right[:, k] = 0, self._seeds[:, k]
        self._subtract()
        errors = self._clipped()
        noise = math.sqrt(_sum(errors, errors) / max(self._count, 1)) / UNIT
        penalty = max(noise * (math.sqrt(rows) + math.sqrt(columns)) / _SHRINKAGE, 0.25)
        share = self._count / (rows * columns)
        if active:
            for _ in range(_SWEEPS):
                _step(self._clipped(), self._left[:, :active], self._right[:, :active], share, penalty)
                self._subtract()
                _step(self._clipped().T, self._right[:, :active], self._left[:, :active], share, penalty)
                self._subtract()

    def _clipped(self) -> dtypes.Array:
        return np.clip(self._errors, -_LARGEST_ERROR, _LARGEST_ERROR, out=self._errors)

    def _use_neighbours(self, axis: int) -> None:
        """Adds what the known neighbours before and after lie above their means, times how much that has told."""
        self._find_errors()
        errors = np.clip(self._errors, -_LARGEST_NEIGHBOUR, _LARGEST_NEIGHBOUR, out=self._errors)
        before, after = ((slice(None),) * axis + (part,) for part in (slice(None, -1), slice(1, None)))
        sums = np.zeros_like(errors)
        sums[after] += errors[before]
        sums[before] += errors[after]
        known = sums * self._mask
        below = _sum(known, known)
        share = min(math.floor(128 * _sum(known, errors) / below), 64) if below else 0
        if share > 0:
            sums *= share / 128
            np.rint(sums, out=sums)
            self._means += sums


def _step(errors: dtypes.Array, left: dtypes.Array, right: dtypes.Array, share: float, penalty: float) -> None:
    """A step of Newton for all rows of the left factor, in place."""
    gradient = _product(errors, right, np.empty(left.shape))
    gradient *= _FACTOR / UNIT
    gradient -= left * (penalty * _FACTOR)
    count = right.shape[1]
    squares = share * _product(right.T, right, np.empty((count, count)))
    inverse = _inverse(squares + penalty * _FACTOR**2 * np.eye(count))
    found = gradient[:, :1] * inverse[0]
    for k in range(1, len(inverse)):
        found += gradient[:, k : k + 1] * inverse[k]
    found *= _FACTOR
    left += found
    np.rint(left, out=left)
    np.clip(left, -_LARGEST_FACTOR, _LARGEST_FACTOR, out=left)


def _product(left: dtypes.Array, right: dtypes.Array, out: dtypes.Array) -> dtypes.Array:
    """Left @ right, of integers that float64 holds, a few rows at a time."""
    height = max(1, _PRODUCTS // max(left.shape[1] * right.shape[1], 1))
    for top in range(0, len(left), height):
        part = slice(top, top + height)
        np.matmul(left[part], right, out=out[part])
    return out


def _sum(one: dtypes.Array, other: dtypes.Array) -> float:
    """The sum of all products of integers."""
    return float(np.einsum("ij,ij->", one, other))


def _inverse(matrix: dtypes.Array) -> dtypes.Array:
    """By Gauss and Jordan, in this order of operations."""
    size = len(matrix)
    both = np.concatenate([matrix, np.eye(size)], axis=1)
    for k in range(size):
        both[k] /= both[k, k]
        column = both[:, k].copy()
        column[k] = 0
        both -= column[:, None] * both[k]
    return both[:, size:]


def _logs(ratios: dtypes.Array) -> dtypes.Array:
    """int64: floor(8 log2(ratio)), by comparing mantissas."""
    mantissas, exponents = np.frexp(ratios)
    return 8 * (exponents.astype(np.int64) - 1) + np.searchsorted(_MANTISSAS, mantissas, side="right")
