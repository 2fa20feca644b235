"""Bases that both sides derive from the deployed weights, the same bits on every machine.

A randomised range finder (Halko, Martinsson, Tropp 2011, arXiv:0909.4061) in fixed point. Every matrix product is one
of integers whose partial sums stay below 2^53 in float64, so it is exact in any order of summation and on any BLAS;
between products there are only elementwise multiply, divide, square root and rint, which IEEE 754 defines to the bit.
"""

import math

import numpy as np

from updcomp.wire import dtypes, errors, hashing

FRACTION = 14  # fractional bits of the basis vectors
MAX_RANK = 1024
_WEIGHT_BITS = 15
_EXACT_BITS = 53
_POWER_ITERATIONS = 2
_DEPENDENT = 2.0**-8  # a column that loses so much of its length to the earlier ones is replaced


def of(leaf: dtypes.Array, rank: int, *, seed: int, index: int) -> tuple[dtypes.Array, dtypes.Array]:
    """Nearly orthonormal columns that span the leaf's strongest directions, filled up with random ones.

    B_0 = random signs; A = orth(W B), B = orth(W^T A), three times.

    Args:
      leaf: a held float leaf, seen as a matrix W (fan_in, fan_out).
      rank: from 1 to `max_rank` of its shape.
      seed: uint32, the packet's.
      index: of the leaf in sorted name order.

    Returns:
      (A, B): float64 (fan_in, min(rank, fan_in)) and (fan_out, min(rank, fan_out)) of integers; the columns have length
      2^14 within rounding.

    Raises:
      NonFiniteError: a weight is NaN or infinite.
      LeafError: the rank is out of range, or the leaf too large for exact sums.
    """
    fan_in, fan_out = dtypes.as_matrix_shape(leaf.shape)
    if not 1 <= rank <= max_rank(leaf.shape):
        raise errors.LeafError(f"rank: expected 1 to {max_rank(leaf.shape)} for shape {leaf.shape}, found {rank}")
    weights = _to_integers(leaf).reshape(fan_in, fan_out)
    signs = _Signs(hashing.stream_key(seed, index, hashing.BASIS))
    columns_in, columns_out = min(rank, fan_in), min(rank, fan_out)
    right = signs.draw(fan_out, columns_out)
    for _ in range(1 + _POWER_ITERATIONS):
        left = _orthonormal(_product(weights, right), columns_in, signs)
        right = _orthonormal(_product(weights.T, left[:, :columns_out]), columns_out, signs)
    return left, right


def max_rank(shape: tuple[int, ...]) -> int:
    """The largest rank: bounds the memory and time that a few bytes of an update can ask for.

    rank (fan_in + fan_out) <= 8 max(size, 2^16), rank <= 1024, rank <= max(fan_in, fan_out).

    >>> max_rank((512, 10)), max_rank((0, 10))
    (512, 0)
    """
    fan_in, fan_out = dtypes.as_matrix_shape(shape)
    if not fan_in * fan_out:
        return 0
    affordable = 8 * max(fan_in * fan_out, 1 << 16) // (fan_in + fan_out)
    return min(affordable, MAX_RANK, max(fan_in, fan_out))


class _Signs:
    """A stream of random signs."""

    def __init__(self, key: int) -> None:
        self._key = key
        self._next = 0

    def draw(self, rows: int, columns: int) -> dtypes.Array:
        """float64 (rows, columns) of -1 and 1, filled column by column."""
        signs = hashing.signs(self._key, self._next, rows * columns)
        self._next += rows * columns
        return signs.reshape(columns, rows).T


def _to_integers(leaf: dtypes.Array) -> dtypes.Array:
    """rint(W / max |W| 2^15) in float64; zeros stay zeros."""
    weights = dtypes.to_floats(leaf).astype(np.float64).reshape(-1)
    largest = float(np.abs(weights).max())
    if not math.isfinite(largest):
        raise errors.NonFiniteError("basis: expected finite deployed weights, found NaN or infinity; send the leaf whole")
    if largest == 0:
        return weights
    weights /= largest
    weights *= 2.0**_WEIGHT_BITS
    return np.rint(weights, out=weights)


def _product(left: dtypes.Array, right: dtypes.Array) -> dtypes.Array:
    """left @ right of integers, exactly.

    Raises:
      LeafError: a partial sum could reach 2^53.
    """
    if left.size and right.size:
        bound = left.shape[1] * int(np.abs(left).max()) * int(np.abs(right).max())
        if bound >= 1 << _EXACT_BITS:
            raise errors.LeafError(f"basis: expected sums below 2^53, found up to {bound}; the leaf is too large")
    return left @ right


def _orthonormal(columns: dtypes.Array, count: int, signs: _Signs) -> dtypes.Array:
    """Gram-Schmidt, twice per column, in fixed point.

    Args:
      columns: float64 (n, m) of integers; a column that depends on the earlier ones gives way to random signs.
      count: number of columns wanted, at least m and at most n.
      signs: source of the random columns.

    Returns:
      float64 (n, count) of integers, columns of length about 2^14.
    """
    size = len(columns)
    basis = np.zeros((size, count))
    # A column scaled to 2^bits has a squared length below 2^52, and fits in it: exact.
    bits = (_EXACT_BITS - 1 - (size - 1).bit_length()) // 2
    for j in range(count):
        column = _residual(_scaled(columns[:, j], bits), basis[:, :j], bits) if j < columns.shape[1] else None
        while column is None:
            # Signs span the space, so one of them has enough outside any smaller span.
            column = _residual(_scaled(signs.draw(size, 1)[:, 0], bits), basis[:, :j], bits)
        basis[:, j] = np.rint(column * (2.0**FRACTION / math.sqrt(float(column @ column))))
    return basis


def _scaled(column: dtypes.Array, bits: int) -> dtypes.Array:
    """The column scaled so that its largest magnitude is 2^bits; zeros stay zeros."""
    largest = float(np.abs(column).max())
    return np.rint(column / largest * 2.0**bits) if largest else column


def _residual(column: dtypes.Array, basis: dtypes.Array, bits: int) -> dtypes.Array | None:
    """What the column has outside the span of the basis, scaled; None where that is next to nothing."""
    for _ in range(2):
        before = float(column @ column)
        # Exact: the column is shorter than 2^26 and the basis vectors than 2^15, which bounds the first sums by 2^41 and
        # the weights by 2^27; 1024 products of those with entries up to 2^14 stay below 2^51.
        weights = np.rint((basis.T @ column) * 2.0**-FRACTION)
        column = column - np.rint((basis @ weights) * 2.0**-FRACTION)
        if before == 0 or float(column @ column) < before * _DEPENDENT**2:
            return None
        column = _scaled(column, bits)
    return column
