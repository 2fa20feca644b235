"""Integers as tokens of a small alphabet plus plain low bits.

A signed v is first folded to u = 2 v (v >= 0) or -2 v - 1. u < 16 is its own token. A larger u with top bit e >= 4 has
the token 16 + 2 (e - 4) + (the bit below the top one) and e - 1 low bits, which are as good as random and stay plain.
"""

import numpy as np

from updcomp.wire import dtypes

DIRECT = 16
COUNT = DIRECT + 2 * 60  # u < 2^64


def fold(values: dtypes.Array) -> dtypes.Array:
    """Signed to unsigned: 0, -1, 1, -2 ... become 0, 1, 2, 3 ...

    Args:
      values: int64 (n,).

    Returns:
      uint64 (n,).

    >>> fold(np.array([0, -1, 1, -2])).tolist()
    [0, 1, 2, 3]
    """
    return ((values << 1) ^ (values >> 63)).view(np.uint64)


def unfold(folded: dtypes.Array) -> dtypes.Array:
    """The inverse of `fold`; int64 (n,)."""
    half = (folded >> np.uint64(1)).view(np.int64)
    return half ^ -(folded & np.uint64(1)).view(np.int64)


def split(folded: dtypes.Array) -> tuple[dtypes.Array, dtypes.Array]:
    """Tokens and plain low bits.

    Args:
      folded: uint64 (n,).

    Returns:
      (uint8 (n,) tokens, uint64 low bits of those tokens that have some).

    >>> split(np.array([3, 16, 31], np.uint64))
    (array([ 3, 16, 17], dtype=uint8), array([0, 7], dtype=uint64))
    """
    tokens = folded.astype(np.uint8)
    large = np.flatnonzero(folded >= DIRECT)
    if not len(large):
        return tokens, np.empty(0, np.uint64)
    u = folded[large]
    # frexp of the upper half where there is one: converting all 64 bits could round up to the next power of two.
    upper = u >> np.uint64(32)
    exponent = np.where(upper > 0, np.frexp(upper)[1] + 31, np.frexp(u & np.uint64(0xFFFFFFFF))[1] - 1)
    width = (exponent - 1).astype(np.uint64)
    second = (u >> width).astype(np.int64) & 1
    tokens[large] = DIRECT + 2 * (exponent - 4) + second
    return tokens, u & ((np.uint64(1) << width) - np.uint64(1))


def widths(tokens: dtypes.Array) -> dtypes.Array:
    """The number of low bits of every token that has some; uint8."""
    large = tokens[tokens >= DIRECT]
    return (large - np.uint8(DIRECT)) // np.uint8(2) + np.uint8(3)


def join(tokens: dtypes.Array, low: dtypes.Array) -> dtypes.Array:
    """The inverse of `split`.

    Args:
      tokens: uint8 (n,), below `COUNT`.
      low: uint64, the low bits of those tokens that have some.

    Returns:
      uint64 (n,).
    """
    folded = tokens.astype(np.uint64)
    large = np.flatnonzero(tokens >= DIRECT)
    if len(large):
        second = (folded[large] & np.uint64(1)) | np.uint64(2)
        folded[large] = (second << widths(tokens).astype(np.uint64)) | low
    return folded
