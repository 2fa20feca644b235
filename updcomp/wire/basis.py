"""Bases that both sides derive from the deployed weights, the same bits on every machine.

A randomised range finder (Halko, Martinsson, Tropp 2011, arXiv:0909.4061) in fixed point. Every matrix product is one
of integers whose partial sums stay below 2^53 in float64, so it is exact in any order of summation and on any BLAS;
between products there are only elementwise multiply, divide, square root and rint, which IEEE 754 defines to the bit.
"""

import math

import numpy as np

from updcomp.wire import costs, dtypes, errors, hashing, views

FRACTION = 14  # fractional bits of the basis vectors
MAX_RANK = 1024
_MAX_COLUMNS = 1 << 16  # of all matrices of a stack: each takes some time, however short it is
_SLICE = 1 << 20
_WEIGHT_BITS = 15
_LONGEST = (1 << 24) - 1  # rows or columns, for which all sums stay below 2^53
_POWER_ITERATIONS = 2
_PER_VECTOR = 1 << 15  # operations of orthogonalising one, however short
_PER_ENTRY = 96
_DEPENDENT = 2.0**-8  # a vector of which the earlier ones leave no more than this is replaced


def of(
    leaf: dtypes.Array, rank: int, *, seed: int, index: int, view: views.View | None = None
) -> tuple[dtypes.Array, dtypes.Array]:
    """Nearly orthonormal columns that span the leaf's strongest directions, filled up with random ones.

    For each matrix W of the leaf: B_0 = random signs; A = orth(W B), B = orth(W^T A), three times.

    Args:
      leaf: a held float leaf, seen as matrices (stack, fan_in, fan_out).
      rank: from 1 to `max_rank` of its shape.
      seed: uint32, the packet's.
      index: of the leaf in sorted name order.
      view: of the leaf; None: the default one.

    Returns:
      (A, B): float64 (stack, fan_in, min(rank, fan_in)) and (stack, fan_out, min(rank, fan_out)) of integers; the
      columns have length 2^14 within rounding.

    Raises:
      NonFiniteError: a weight is NaN or infinite.
      LeafError: the rank is out of range, or the leaf too long for exact sums.
    """
    view = views.resolve(view, leaf.ndim)
    _, fan_in, fan_out = views.shape_of(leaf.shape, view)
    largest = max_rank(leaf.shape, view)
    if not 1 <= rank <= largest:
        raise errors.LeafError(f"rank: expected 1 to {largest} for shape {leaf.shape}, found {rank}")
    if max(fan_in, fan_out) > _LONGEST:
        raise errors.LeafError(f"basis: expected at most {_LONGEST} rows and columns, found shape {leaf.shape}")
    signs = _Signs(hashing.stream_key(seed, index, hashing.BASIS))
    found = [_of_matrix(weights, rank, signs) for weights in _to_integers(views.split(leaf, view))]
    left, right = (np.stack(columns).transpose(0, 2, 1) for columns in zip(*found, strict=True))
    return left, right


def max_rank(shape: tuple[int, ...], view: views.View | None = None) -> int:
    """The largest rank: bounds the memory and time that a few bytes of an update can ask for.

    stack rank (fan_in + fan_out) <= 4 max(size, 2^16), stack rank <= 2^16, rank <= 1024, rank <= max(fan_in, fan_out).

    Args:
      shape: of the leaf.
      view: of the leaf; None: the default one.

    Returns:
      The rank, 0 where no basis can be had.

    >>> max_rank((512, 10)), max_rank((0, 10))
    (502, 0)
    """
    stack, fan_in, fan_out = views.shape_of(shape, views.resolve(view, len(shape)))
    size = stack * fan_in * fan_out
    if not size:
        return 0
    affordable = 4 * max(size, 1 << 16) // (stack * (fan_in + fan_out))
    return min(affordable, _MAX_COLUMNS // stack, MAX_RANK, max(fan_in, fan_out))


def cost(spec: dtypes.Spec, rank: int, view: views.View, *, is_copied: bool) -> costs.Cost:
    """The cost of `of`: six products with the leaf, and the orthogonalisation of its vectors on both sides.

    operations = (stack (6 r fan_in fan_out + 6 r^2 (fan_in + fan_out))) / 8 + 6 stack r 2^15
                 + 96 stack r (fan_in + fan_out) + 16 size;
    working bytes = 8 size, for the weights as integers in float64, and the leaf's where they are copied, without
    those of the new leaf, which is not there yet.

    Args:
      spec: of the leaf.
      rank: from 1 to `max_rank`.
      view: of the leaf.
      is_copied: whether its matrices are copied out of the leaf.

    Returns:
      The cost.
    """
    stack, fan_in, fan_out = views.shape_of(spec.shape, view)
    products = 2 * (1 + _POWER_ITERATIONS) * rank * fan_in * fan_out + 6 * rank**2 * (fan_in + fan_out)
    vectors = _PER_VECTOR * 6 * rank + _PER_ENTRY * rank * (fan_in + fan_out)
    operations = costs.products(stack * products) + stack * vectors + 16 * spec.size
    return costs.Cost(operations, 8 * spec.size - (not is_copied) * spec.nbytes)


def _of_matrix(weights: dtypes.Array, rank: int, signs: "_Signs") -> tuple[dtypes.Array, dtypes.Array]:
    """The columns of one matrix, (fan_in, fan_out) of integers up to 2^15, as rows."""
    fan_in, fan_out = weights.shape
    columns_in, columns_out = min(rank, fan_in), min(rank, fan_out)
    right = signs.draw(columns_out, fan_out)
    for _ in range(1 + _POWER_ITERATIONS):
        # Weights up to 2^15 times entries up to 2^14, fewer than 2^24 of them: sums below 2^53.
        left = _orthonormal(right @ weights.T, columns_in, signs)
        right = _orthonormal(left[:columns_out] @ weights, columns_out, signs)
    return left, right


class _Signs:
    """A stream of random signs."""

    def __init__(self, key: int) -> None:
        self._key = key
        self._next = 0

    def draw(self, rows: int, columns: int) -> dtypes.Array:
        """float64 (rows, columns) of -1 and 1."""
        signs = hashing.signs(self._key, self._next, rows * columns)
        self._next += rows * columns
        return signs.reshape(rows, columns)


def _to_integers(leaf: dtypes.Array) -> dtypes.Array:
    """rint(w / max |w| 2^15) of the whole leaf in float64; zeros stay zeros."""
    weights, flat = np.empty(leaf.shape), np.ascontiguousarray(leaf).reshape(-1)
    for start in range(0, leaf.size, _SLICE):  # so that a narrow dtype takes no wider copy beside
        part = slice(start, start + _SLICE)
        weights.reshape(-1)[part] = dtypes.to_floats(flat[part])
    largest = max(float(weights.max()), -float(weights.min()))  # NaN stays NaN
    if not math.isfinite(largest):
        raise errors.NonFiniteError("basis: expected finite deployed weights, found NaN or infinity; send it exactly")
    if largest == 0:
        return weights
    weights /= largest
    weights *= 2.0**_WEIGHT_BITS
    return np.rint(weights, out=weights)


def _orthonormal(vectors: dtypes.Array, count: int, signs: _Signs) -> dtypes.Array:
    """Gram-Schmidt, twice per vector, in fixed point.

    Args:
      vectors: float64 (m, n) of integers; a row that depends on the earlier ones gives way to random signs.
      count: number of vectors wanted, at least m and at most n.
      signs: source of the random vectors.

    Returns:
      float64 (count, n) of integers, rows of length about 2^14.
    """
    size = vectors.shape[1]
    basis = np.empty((count, size))
    # With entries up to 2^bits, the squared length is at most 2^52 and exact.
    bits = (52 - (size - 1).bit_length()) // 2
    for j in range(count):
        vector = _residual(_scaled(vectors[j], bits), basis[:j], bits) if j < len(vectors) else None
        while vector is None:
            # Signs span the space, so one of them has enough outside any smaller span.
            vector = _residual(_scaled(signs.draw(1, size)[0], bits), basis[:j], bits)
        basis[j] = np.rint(vector * (2.0**FRACTION / math.sqrt(float(vector @ vector))))
    return basis


def _scaled(vector: dtypes.Array, bits: int) -> dtypes.Array:
    """The vector scaled so that its largest magnitude is 2^bits; zeros stay zeros."""
    largest = float(np.abs(vector).max())
    return np.rint(vector / largest * 2.0**bits) if largest else vector


def _residual(vector: dtypes.Array, basis: dtypes.Array, bits: int) -> dtypes.Array | None:
    """What the vector has outside the span of the basis, scaled; None where that is next to nothing."""
    for _ in range(2):
        before = float(vector @ vector)
        # Exact: the vector is shorter than 2^26.5 and the basis vectors are shorter than 2^15, which bounds the first
        # sums by 2^42 and the weights by 2^28; 1024 products of those with entries up to 2^14 stay below 2^53.
        weights = np.rint((basis @ vector) * 2.0**-FRACTION)
        vector = vector - np.rint((weights @ basis) * 2.0**-FRACTION)
        if float(vector @ vector) <= before * _DEPENDENT**2:
            return None
        vector = _scaled(vector, bits)
    return vector
