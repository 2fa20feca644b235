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

_LIMB = 16  # counts are pairs of uint32 limbs of this many bits: exact above 2^31 weights without 64-bit integers
_Count = tuple[jax.Array, jax.Array]


def top_k(scores: PyTree, k: int) -> PyTree:
    """The mask of the k largest scores over all leaves together.

    Ties go to the earlier leaf (in flattening order) and there to the lower index, so exactly k weights are True. The
    threshold is found by bisecting the ordered bit pattern of the scores, and the tie bound by bisecting the index:
    every pass is a count, summed over leaves and shards, so that nothing is sorted, gathered or copied.

    Args:
      scores: a pytree of floating arrays of at most 32 bits; NaN counts as the lowest score.
      k: how many to choose, from 0 to the number of scores.

    Returns:
      A pytree of booleans, True = sent, sharded like the scores.

    Raises:
      Error: k is out of range, or a leaf has 2^32 elements or more.

    >>> top_k({"a": jnp.array([3.0, 1.0]), "b": jnp.array([2.0, 3.0])}, 2)
    {'a': Array([ True, False], dtype=bool), 'b': Array([False,  True], dtype=bool)}
    """
    leaves, structure = jax.tree.flatten(scores)
    total = sum(leaf.size for leaf in leaves)
    if not 0 <= k <= total:
        raise Error(f"k: expected from 0 to {total} (the number of scores), found {k}")
    if any(leaf.size >= 2**32 for leaf in leaves):
        raise Error("scores: expected leaves of less than 2^32 elements; split the larger ones")
    if k == 0 or k == total:
        return jax.tree.unflatten(structure, [jnp.full(leaf.shape, k > 0) for leaf in leaves])
    wanted = _split(k)

    def count_at_least(bound: jax.Array) -> _Count:
        return _add([_count(_ordered(leaf) >= bound) for leaf in leaves])

    threshold = _largest(count_at_least, wanted)
    above = [_ordered(leaf) > threshold for leaf in leaves]
    ties = [_ordered(leaf) == threshold for leaf in leaves]
    missing = _subtract(wanted, _add([_count(mask) for mask in above]))
    masks = []
    for mask, tie in zip(above, ties, strict=True):
        bound = _tie_bound(tie, missing)
        chosen = tie & (_index(tie.shape) < bound)
        missing = _subtract(missing, _count(chosen))
        masks.append(mask | chosen)
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


def _index(shape: tuple[int, ...]) -> jax.Array:
    """The flat index of every element, as uint32, built without reshaping so that shards keep theirs."""
    index = jnp.zeros(shape, jnp.uint32)
    stride = 1
    for axis in reversed(range(len(shape))):
        index = index + jax.lax.broadcasted_iota(jnp.uint32, shape, axis) * np.uint32(stride)
        stride *= shape[axis]
    return index


def _count(mask: jax.Array) -> _Count:
    count = jnp.sum(mask, dtype=jnp.uint32)
    return count >> _LIMB, count & np.uint32(2**_LIMB - 1)


def _split(count: int) -> _Count:
    return jnp.uint32(count >> _LIMB), jnp.uint32(count & (2**_LIMB - 1))


def _add(counts: list[_Count]) -> _Count:
    high = jnp.sum(jnp.stack([high for high, _ in counts]), dtype=jnp.uint32)
    low = jnp.sum(jnp.stack([low for _, low in counts]), dtype=jnp.uint32)
    return high + (low >> _LIMB), low & np.uint32(2**_LIMB - 1)


def _subtract(a: _Count, b: _Count) -> _Count:
    borrow = (a[1] < b[1]).astype(jnp.uint32)
    return a[0] - b[0] - borrow, a[1] + (borrow << _LIMB) - b[1]


def _at_least(a: _Count, b: _Count) -> jax.Array:
    return (a[0] > b[0]) | ((a[0] == b[0]) & (a[1] >= b[1]))


def _largest(count: Callable[[jax.Array], _Count], wanted: _Count) -> jax.Array:
    """The largest uint32 bound whose count still reaches `wanted`; counts fall as the bound rises."""

    def halve(i: Any, bound: jax.Array) -> jax.Array:
        trial = bound | (jnp.uint32(1) << (31 - i).astype(jnp.uint32))
        return jnp.where(_at_least(count(trial), wanted), trial, bound)

    return jax.lax.fori_loop(0, 32, halve, jnp.uint32(0))


def _tie_bound(tie: jax.Array, wanted: _Count) -> jax.Array:
    """The index below which the first `wanted` of a leaf's ties lie; all of them where it has no more than that."""

    def search() -> jax.Array:
        def halve(i: Any, bound: jax.Array) -> jax.Array:
            trial = bound | (jnp.uint32(1) << (31 - i).astype(jnp.uint32))
            return jnp.where(_at_least(wanted, _count(tie & (_index(tie.shape) < trial))), trial, bound)

        return jax.lax.fori_loop(0, 32, halve, jnp.uint32(0))

    return jax.lax.cond(_at_least(wanted, _count(tie)), lambda: jnp.uint32(2**32 - 1), search)
