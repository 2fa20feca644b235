"""Structured random rotations and cosines in integers: the same on every machine."""

from typing import Any

import numpy as np

from updcomp.wire import dtypes

_LARGEST = 12  # log2 of the entries that are rotated together
PRODUCTS = 128  # of an entry in both products of a rotation, at most
_TURN = 1 << 20
_QUARTER = _TURN // 4
_TERMS = (26, 964, 21877, 265992, 1293629)  # (pi / 2)^2k / (2k)! for k = 5 to 1, times 2^20


def _bits(size: int) -> int:
    """Of the block that entries are rotated in: the least power of two that holds all, at most 2^12."""
    return min(max(size - 1, 0).bit_length(), _LARGEST)


def block(size: int) -> int:
    """The entries that are rotated together.

    >>> block(5000), block(10)
    (4096, 16)
    """
    return 1 << _bits(size)


def padded(size: int) -> int:
    """The entries of all blocks.

    >>> padded(5000), padded(10)
    (8192, 16)
    """
    return -(-size // block(size)) * block(size)


def hadamard(size: int) -> tuple[dtypes.Array, dtypes.Array]:
    """Two Walsh-Hadamard matrices, whose Kronecker product is that of a block; float64 of -1 and 1."""
    bits = _bits(size)
    found = []
    for order in (bits // 2, bits - bits // 2):
        matrix = np.ones((1, 1))
        for _ in range(order):
            matrix = np.block([[matrix, matrix], [matrix, -matrix]])
        found.append(matrix)
    return found[0], found[1]


def back(entries: Any, constants: Any, size: int) -> Any:
    """The first `size` of S H x: x rotated block by block, and signs changed; NumPy or JAX.

    Args:
      entries: x, (padded,).
      constants: the signs S, (padded,), and both `hadamard` matrices, of the same kind.
      size: of the leaf.

    Returns:
      (size,); H H = block, so `forth` is its inverse times that.
    """
    signs, left, right = constants
    blocks = left @ entries.reshape(-1, len(left), len(right)) @ right
    return (blocks.reshape(-1) * signs)[:size]


def forth(entries: Any, constants: Any) -> Any:
    """H S x of padded entries, block by block: `back` of it is the block's size times x.

    >>> constants = (np.array([1.0, -1, 1, 1]), *hadamard(4))
    >>> back(forth(np.array([1.0, 2, 3, 4]), constants), constants, 4)
    array([ 4.,  8., 12., 16.])
    """
    signs, left, right = constants
    return (left @ (entries * signs).reshape(-1, len(left), len(right)) @ right).reshape(-1)


def cosines(turns: dtypes.Array, of: int) -> dtypes.Array:
    """2^14 cos(2 pi turns / of) within 1, in integers alone.

    Args:
      turns: int64, from 0 to of - 1.
      of: below 2^24.

    Returns:
      float64 of integers.

    >>> cosines(np.array([0, 1, 2, 3, 4]), 8)
    array([ 16384.,  11585.,      0., -11585., -16384.])
    """
    return _of_phases((turns * _TURN + of // 2) // of)


def sines(turns: dtypes.Array, of: int) -> dtypes.Array:
    """2^14 sin(2 pi turns / of), as `cosines`."""
    return _of_phases((turns * _TURN + of // 2) // of - _QUARTER)


def _of_phases(phases: dtypes.Array) -> dtypes.Array:
    """The cosine's series to z^10 in the quarter turns z, mirrored."""
    phases = phases % _TURN
    phases = np.minimum(phases, _TURN - phases)
    is_negative = phases > _QUARTER
    quarters = np.where(is_negative, 2 * _QUARTER - phases, phases)
    square = quarters * quarters >> 16  # z^2 times 2^20
    sums = np.zeros_like(square)
    for term in _TERMS:
        sums = term - (square * sums >> 20)
    found = ((1 << 20) - (square * sums >> 20) + (1 << 5)) >> 6
    return np.where(is_negative, -found, found).astype(np.float64)
