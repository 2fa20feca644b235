"""What a map is: from a short vector of integers to the change of a whole leaf, by a seed and the deployed weights.

A map gives matrices of integers that are constant or linear in the vector: the change is their product, left (core)
right^T, or one flat array. The trainer calls `expand` with floats and the device with integers in float64, so that both
mean the same. What both sides derive (`constants`) are signs, groups, places and cosines, all of them integers.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from updcomp.wire import dtypes, hashing, views

MOST_SUMMED = 1 << 21  # values below 2^31 whose sum is exact


class Sizes(NamedTuple):
    """What a map goes by."""

    stack: int
    fan_in: int
    fan_out: int
    length: int  # n, of the vector
    rank: int  # a power of two of ranked maps, else 1

    @property
    def rows(self) -> int:
        """Of both sides of all matrices."""
        return self.stack * (self.fan_in + self.fan_out)

    @property
    def size(self) -> int:
        """Weights of the leaf."""
        return self.stack * self.fan_in * self.fan_out


class Site(NamedTuple):
    """Where a map is used."""

    old: dtypes.Array
    view: views.View
    seed: int
    leaf_index: int  # in the sorted order of names
    sizes: Sizes


class Work(NamedTuple):
    """What `constants` and `expand` take."""

    drawn: int  # numbers that are derived and held
    products: int  # of matrix products before the last one
    rank: int  # of the last product; 0: the change is flat
    basis_rank: int = 0  # of `basis.of`; 0: none is derived
    passing: int = 0  # numbers that are derived and not held beside the last product


def nothing(_: Site) -> tuple[dtypes.Array, ...]:
    """The constants of a map that has none."""
    return ()


def no_left(_: Sizes) -> int:
    """The values of the left factor that do not depend on the vector."""
    return 0


class Map(NamedTuple):
    """A map."""

    number: int  # on the wire, from 0 to 15, for ever
    name: str
    inner_rank: Callable[[Sizes], int]  # the rank in use; 0 where the vector's length does not fit
    work: Callable[[Sizes], Work]
    expand: Callable[[Any, Any, Sizes], tuple[Any, ...]]  # (vector, constants, sizes) -> two or three matrices, or one
    constants: Callable[[Site], tuple[dtypes.Array, ...]] = nothing  # of integers, in float64 but for indices
    left_length: Callable[[Sizes], int] = no_left  # values of the left factor, where both factors depend on them
    is_ranked: bool = False  # whether the update says a rank
    has_offset: bool = False  # whether the first value is an offset, as large as it likes


class Stream:
    """The hashes of a leaf, counting on."""

    def __init__(self, site: Site, purpose: int = hashing.BASIS) -> None:
        """At the first one."""
        self._key = hashing.stream_key(site.seed, site.leaf_index, purpose)
        self._next = 0

    def signs(self, *shape: int) -> dtypes.Array:
        """float64 of -1 and 1."""
        count = math.prod(shape)
        self._next += count
        return hashing.signs(self._key, self._next - count, count).reshape(shape)

    def groups(self, count: int, groups: int) -> dtypes.Array:
        """int64 (count,): a random group for each, none with two more than another."""
        self._next += count
        order = np.argsort(hashing.hashes(self._key, self._next - count, self._next))
        found = np.empty(count, np.int64)
        found[order] = np.arange(count) % groups
        return found
