"""Integers as tokens of a small alphabet plus plain low bits.

A signed v is first folded to u = 2 v (v >= 0) or -2 v - 1. u < 16 is its own token. A larger u with top bit e >= 4 has
the token 16 + 2 (e - 4) + (the bit below the top one) and e - 1 low bits, which are as good as random and stay plain.
"""

import numpy as np

from updcomp.wire import dtypes

DIRECT = 16
COUNT = DIRECT + 2 * 60  # u < 2^64
_EXACT = 1 << 53  # every integer up to here is a float64


def fold(values: dtypes.Array) -> dtypes.Array:
    """Signed to unsigned: 0, -1, 1, -2 ... become 0, 1, 2, 3 ...

    Args:
      values: int64 (n,).

    Returns:
      uint64 (n,).

    >>> fold(np.array([0, -1, 1, -2])).tolist()
    [0, 1, 2, 3]
    """
    folded = values << 1
    folded ^= values >> 63
    return folded.view(np.uint64)


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
    # In a float64's bits the exponent, and the bit below the top one, stand before all others.
    floats = u.view(np.int64).astype(np.float64) if int(u.max()) <= _EXACT else _cut(u).astype(np.float64)
    found = floats.view(np.uint64) >> np.uint64(51)
    found -= np.uint64(2 * (1023 + 4) - DIRECT)
    tokens[large] = found
    found -= np.uint64(10)
    found >>= np.uint64(1)
    return tokens, u & ((np.uint64(1) << found) - np.uint64(1))


def _cut(u: dtypes.Array) -> dtypes.Array:
    """The same integers, those beyond 2^53 without their lowest bits: conversion could round up to a power of two."""
    return np.where(u > np.uint64(_EXACT), u & ~np.uint64((1 << 11) - 1), u)


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
