"""Classes of old exponents, and places counted within each: a weight's exponent predicts how likely it changes.

A class is a range of exponent fields. Of the weights of a class, in order, those that change are known by their ranks;
the gaps between these are geometric, so that no place costs more than the class's own density makes it. Nothing is
sorted: where a class's weights are follows from comparing exponents, a slice at a time.
"""

import itertools
from collections.abc import Iterator

import numpy as np

from updcomp.wire import dtypes

MOST = 16  # classes
_SLICE = 1 << 18  # weights at a time: their masks stay in the cache
_SAMPLE = 1 << 17  # weights whose exponents are counted where classes are chosen
_PER_CLASS = 48.0  # bits that a class costs: its boundary, its count, and learning its values


def fields(bits: dtypes.Array, layout: tuple[int, int]) -> dtypes.Array:
    """The exponent field of every pattern: uint8 (n,), or uint16 where it has more than 8 bits.

    Args:
      bits: unsigned integers (n,).
      layout: mantissa and exponent bits.
    """
    mantissa, exponent = layout
    narrow: type[np.unsignedinteger] = np.uint8 if exponent <= 8 else np.uint16
    found = np.empty(len(bits), narrow)
    for part in _slices(len(bits)):
        shifted = bits[part] >> bits.dtype.type(mantissa)
        if exponent != 8 * found.itemsize:
            shifted &= bits.dtype.type((1 << exponent) - 1)
        np.copyto(found[part], shifted, casting="unsafe")  # a sign above 8 bits of exponent is cut off
    return found


def counts(exponents: dtypes.Array, starts: dtypes.Array) -> dtypes.Array:
    """How many weights each class has: int64 (slices, classes), slice by slice.

    Args:
      exponents: as `fields` returns them.
      starts: the lowest exponent of every class but the first, strictly ascending.
    """
    found = np.zeros((-(-len(exponents) // _SLICE), len(starts) + 1), np.int64)
    for row, part in zip(found, _slices(len(exponents)), strict=True):
        above = [
            part.stop - part.start,
            *(np.count_nonzero(exponents[part] >= start) for start in _typed(exponents, starts)),
            0,
        ]
        row[:] = [here - after for here, after in itertools.pairwise(above)]
    return found


def ranks(
    exponents: dtypes.Array, starts: dtypes.Array, sizes: dtypes.Array, places: dtypes.Array
) -> list[dtypes.Array]:
    """The ranks of some weights within their classes.

    Args:
      exponents: of all weights.
      starts: as in `counts`.
      sizes: as `counts` returns them.
      places: int64 (k,), strictly ascending.

    Returns:
      For each class int64 ranks, ascending, of its weights among `places`.
    """
    found: list[list[dtypes.Array]] = [[] for _ in sizes[0]]
    first = np.cumsum(sizes, axis=0) - sizes
    bounds = np.searchsorted(places, np.arange(0, len(exponents) + _SLICE, _SLICE))
    own = np.searchsorted(_typed(exponents, starts), exponents[places], side="right")
    for i, part in enumerate(_slices(len(exponents))):
        here = slice(bounds[i], bounds[i + 1])
        inside, classes = places[here] - part.start, own[here]
        for which, members in _members(exponents[part], starts):
            if len(wanted := inside[classes == which]):
                found[which].append(np.searchsorted(np.flatnonzero(members), wanted) + first[i, which])
    return [np.concatenate(one) if one else np.zeros(0, np.int64) for one in found]


def places(
    exponents: dtypes.Array, starts: dtypes.Array, sizes: dtypes.Array, ranks: list[dtypes.Array]
) -> list[dtypes.Array]:
    """The inverse of `ranks`: for each class the places of its ranks, int64."""
    first = np.cumsum(sizes, axis=0) - sizes
    bounds = [np.searchsorted(one, np.append(first[:, i], first[-1, i] + sizes[-1, i])) for i, one in enumerate(ranks)]
    found = [np.empty(len(one), np.int64) for one in ranks]
    for i, part in enumerate(_slices(len(exponents))):
        for which, members in _members(exponents[part], starts):
            here = slice(bounds[which][i], bounds[which][i + 1])
            if here.stop > here.start:
                inside = ranks[which][here] - first[i, which]
                found[which][here] = np.flatnonzero(members)[inside] + part.start
    return found


def choose(exponents: dtypes.Array, changed: dtypes.Array, sizes: dtypes.Array) -> dtypes.Array:
    """The classes that take fewest bits, all told.

    Args:
      exponents: of all weights.
      changed: exponents (k,) of the weights that change.
      sizes: int64 (k,), how far each moves.

    Returns:
      int64, as `starts` in `counts`.
    """
    step = max(1, len(exponents) // _SAMPLE)
    highest = int(max(exponents.max(initial=0), changed.max(initial=0))) + 1
    count = np.bincount(changed, minlength=highest).astype(np.float64)
    total = np.maximum(np.bincount(exponents[::step], minlength=highest) * float(step), count)
    moved = np.bincount(changed, np.sqrt(np.abs(sizes.astype(np.float64))), highest)
    occurring = np.flatnonzero(total)
    # Sums below each exponent that occurs, so that a range's own are differences.
    below = [np.concatenate([[0.0], np.cumsum(part[occurring])]) for part in (total, count, moved)]
    penalty = _PER_CLASS
    while True:
        chosen = _cheapest(below, penalty)
        if len(chosen) < MOST:
            return occurring[chosen]
        penalty *= 2


def _cheapest(below: list[dtypes.Array], penalty: float) -> dtypes.Array:
    """Where the ranges of the cheapest partition begin, without the first: by dynamic programming."""
    n = len(below[0]) - 1
    best, before = np.zeros(n + 1), np.zeros(n + 1, np.int64)
    for end in range(1, n + 1):
        sums = [part[end] - part[:end] for part in below]
        costs = best[:end] + _bits(*sums) + penalty
        before[end] = int(np.argmin(costs))
        best[end] = costs[before[end]]
    chosen, end = [], n
    while end and before[end]:
        end = int(before[end])
        chosen.append(end)
    return np.array(chosen[::-1], np.int64)


def _bits(total: dtypes.Array, count: dtypes.Array, moved: dtypes.Array) -> dtypes.Array:
    """About the bits of places and moves, both geometric; `moved` sums square roots, which outliers move less."""
    rest = total - count
    found = np.zeros(len(total))
    for part in (count, rest):
        found -= part * np.log2(np.maximum(part, 1) / np.maximum(total, 1))
    mean = np.maximum((moved / np.maximum(count, 1)) ** 2 - 1, 0)
    return found + count * ((mean + 1) * np.log2(mean + 1) - mean * np.log2(np.maximum(mean, 1e-9)))


def _members(exponents: dtypes.Array, starts: dtypes.Array) -> Iterator[tuple[int, dtypes.Array]]:
    """(class, mask of its weights), of a slice."""
    above: dtypes.Array = np.ones(len(exponents), bool)
    for which, start in enumerate(_typed(exponents, starts)):
        higher = exponents >= start
        yield which, above > higher
        above = higher
    yield len(starts), above


def _typed(exponents: dtypes.Array, starts: dtypes.Array) -> dtypes.Array:
    return starts.astype(exponents.dtype)


def _slices(size: int) -> Iterator[slice]:
    return (slice(start, min(start + _SLICE, size)) for start in range(0, size, _SLICE))
