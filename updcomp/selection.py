"""Which weights are sent: exact top-k masks over all leaves together."""

import math
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from updcomp.trees import PyTree
from updcomp.wire.errors import Error

_LIMB = 16  # totals are pairs of uint32 limbs of this many bits: exact above 2^31 weights without 64-bit integers
_DIGIT = 2  # bits of the threshold found in one pass, by counting at 2^bits - 1 bounds
_NONE = np.uint32(2**32 - 1)  # a bound above every rank
_Total = tuple[jax.Array, jax.Array]


def top_k(scores: PyTree, k: int | jax.Array) -> PyTree:
    """The mask of the k largest scores over all leaves together.

    Ties go to the earlier leaf (in flattening order) and there to the lower index, so exactly k weights are True. The
    threshold, the k-th largest score, is found digit by digit of its ordered bit pattern, and so is the last index that
    is sent where a leaf's ties are cut: every pass is a count, summed over leaves and shards, so that nothing is
    sorted or gathered, and stored (as the ranks of ties) only where ties are cut.

    Args:
      scores: a pytree of floating arrays of at most 32 bits; NaN counts as the lowest score.
      k: how many to choose, from 0 to the number of scores: an int, or an integer scalar of at most 32 bits where it is
        an argument of a compiled function, which then no other k recompiles (and which cannot check it).

    Returns:
      A pytree of booleans, True = sent, sharded like the scores.

    Raises:
      Error: k is out of range, or a leaf has 2^32 elements or more.

    >>> top_k({"a": jnp.array([3.0, 1.0]), "b": jnp.array([2.0, 3.0])}, 2)
    {'a': Array([ True, False], dtype=bool), 'b': Array([False,  True], dtype=bool)}
    """
    leaves, structure = jax.tree.flatten(scores)
    total = sum(leaf.size for leaf in leaves)
    if isinstance(k, int) and not 0 <= k <= total:
        raise Error(f"k: expected from 0 to {total} (the number of scores), found {k}")
    if any(leaf.size >= 2**32 for leaf in leaves):
        raise Error("scores: expected leaves of less than 2^32 elements; split the larger ones")
    if isinstance(k, int) and k in (0, total):
        return jax.tree.unflatten(structure, [jnp.full(leaf.shape, k > 0) for leaf in leaves])
    threshold = _largest(_ordered, leaves, _split(k))
    masks = []
    for leaf, bound in zip(leaves, _tie_bounds(leaves, threshold, k), strict=True):
        key = _ordered(leaf)
        masks.append((key > threshold) | ((key == threshold) & (_rank(leaf.shape) >= bound)))
    return jax.tree.unflatten(structure, masks)


def top_ratio(scores: PyTree, ratio: float) -> PyTree:
    """The mask of the floor(ratio * n) largest of n scores (at least one), ties as in `top_k`.

    Args:
      scores: a pytree of floating arrays.
      ratio: the updating ratio, above 0 and at most 1.

    Returns:
      A pytree of booleans, True = sent.

    Raises:
      Error: the ratio is outside (0, 1].

    >>> top_ratio({"w": jnp.array([1.0, 4.0, 2.0, 3.0])}, 0.5)["w"].tolist()
    [False, True, False, True]
    """
    return top_k(scores, budget(ratio, sum(leaf.size for leaf in jax.tree.leaves(scores))))


def budget(ratio: float, size: int) -> int:
    """How many of `size` weights an updating ratio allows: floor(ratio * size), at least one where there is any.

    >>> budget(0.005, 535_040)
    2675
    """
    if not 0 < ratio <= 1:
        raise Error(f"ratio: expected above 0 and at most 1, found {ratio}")
    # As written in decimals: 0.29 of 100 is 29, though the float 0.29 is a little less.
    return min(size, max(1, math.floor(Fraction(str(ratio)) * size)))


def _ordered(scores: jax.Array) -> jax.Array:
    """uint32 keys in the order of the scores; both zeros are equal, NaN is the lowest.

    Bits alone decide: float comparisons would flush subnormal scores to zero on some backends.
    """
    bits = jax.lax.bitcast_convert_type(scores.astype(jnp.float32), jnp.uint32)
    magnitude = bits & np.uint32(0x7FFFFFFF)
    key = jnp.where(bits >> 31 == 0, bits | np.uint32(1 << 31), ~bits)
    key = jnp.where(magnitude == 0, np.uint32(1 << 31), key)
    return jnp.where(magnitude > np.uint32(0x7F800000), ~np.uint32(0xFF800000), key)


def _rank(shape: tuple[int, ...]) -> jax.Array:
    """2^32 - 2 - the flat index of every element, as uint32, built without reshaping so that shards keep theirs."""
    rank = jnp.full(shape, 2**32 - 2, jnp.uint32)
    stride = 1
    for axis in reversed(range(len(shape))):
        rank = rank - jax.lax.broadcasted_iota(jnp.uint32, shape, axis) * np.uint32(stride)
        stride *= shape[axis]
    return rank


def _tie_bounds(leaves: list[jax.Array], threshold: jax.Array, k: int | jax.Array) -> list[jax.Array]:
    """For every leaf the rank from which scores that equal the threshold are chosen.

    Of the first leaves all of these are chosen, of the last ones none; the leaf between, if there is one, is cut.
    """
    reached = [_counts(_ordered(leaf), [threshold, threshold + np.uint32(1)]) for leaf in leaves]
    missing = _subtract(_split(k), _total([above for _, above in reached]))
    whole = jnp.array(True)
    cuts, others = [], []
    for at_least, above in reached:
        ties = _total([at_least - above])
        fits = _at_least(missing, ties)
        cuts.append(whole & ~fits)
        whole = whole & fits
        others.append(jnp.where(whole, np.uint32(0), _NONE))
        rest = _subtract(missing, ties)
        missing = jnp.where(whole, rest[0], missing[0]), jnp.where(whole, rest[1], missing[1])

    def search() -> jax.Array:
        ranks = [
            jnp.where(cut & (_ordered(leaf) == threshold), _rank(leaf.shape), np.uint32(0))
            for leaf, cut in zip(leaves, cuts, strict=True)
        ]
        return _largest(lambda rank: rank, ranks, missing)

    bound = jax.lax.cond(_at_least(missing, _split(1)), search, lambda: jnp.uint32(_NONE))
    return [jnp.where(cut, bound, other) for cut, other in zip(cuts, others, strict=True)]


def _largest(key: Callable[[jax.Array], jax.Array], leaves: list[jax.Array], wanted: _Total) -> jax.Array:
    """The largest uint32 bound that at least `wanted` of the leaves' keys reach, found digit by digit."""

    def next_digit(i: Any, bound: jax.Array) -> jax.Array:
        # The barrier keeps the keys inside the loop: stored outside, they would take 4 bytes per score.
        held, bound = jax.lax.optimization_barrier((leaves, bound))
        shift = jnp.uint32(32 - _DIGIT) - np.uint32(_DIGIT) * i.astype(jnp.uint32)
        trials = [bound | (np.uint32(digit) << shift) for digit in range(1, 2**_DIGIT)]
        totals = _total([jnp.stack(_counts(key(leaf), trials)) for leaf in held])
        return bound | (jnp.sum(_at_least(totals, wanted), dtype=jnp.uint32) << shift)

    return jax.lax.fori_loop(0, 32 // _DIGIT, next_digit, jnp.uint32(0))


def _counts(keys: jax.Array, bounds: list[jax.Array]) -> list[jax.Array]:
    """How many keys reach each bound, as uint32.

    One reduction with several results: it reads the keys once, and XLA:CPU fuses it with what makes them, where it
    stores the operand of a reduction with one result.
    """
    reached = [(keys >= bound).astype(jnp.uint32) for bound in bounds]
    zeros = [np.uint32(0)] * len(bounds)

    def add(a: list[jax.Array], b: list[jax.Array]) -> list[jax.Array]:
        return [x + y for x, y in zip(a, b, strict=True)]

    return jax.lax.reduce(reached, zeros, add, range(keys.ndim))


def _split(count: int | jax.Array) -> _Total:
    if not isinstance(count, int):
        count = count.astype(jnp.uint32)
        return count >> _LIMB, count & np.uint32(2**_LIMB - 1)
    return jnp.uint32(count >> _LIMB), jnp.uint32(count & (2**_LIMB - 1))


def _total(counts: list[jax.Array]) -> _Total:
    stacked = jnp.stack(counts)
    high = jnp.sum(stacked >> _LIMB, axis=0, dtype=jnp.uint32)
    low = jnp.sum(stacked & np.uint32(2**_LIMB - 1), axis=0, dtype=jnp.uint32)
    return high + (low >> _LIMB), low & np.uint32(2**_LIMB - 1)


def _subtract(a: _Total, b: _Total) -> _Total:
    borrow = (a[1] < b[1]).astype(jnp.uint32)
    return a[0] - b[0] - borrow, a[1] + (borrow << _LIMB) - b[1]


def _at_least(a: _Total, b: _Total) -> jax.Array:
    return (a[0] > b[0]) | ((a[0] == b[0]) & (a[1] >= b[1]))
