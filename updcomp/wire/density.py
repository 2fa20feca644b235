"""Classes of old exponents, and places counted within each: a weight's exponent predicts how likely it changes.

A class is a range of exponent fields. Of the weights of a class, in order, those that change are known by their ranks;
the gaps between these are geometric, so that no place costs more than the class's own density makes it. Nothing is
sorted: a class's weights are bits, 64 in a word, found by comparing exponents; a rank is found by counting bits.
"""

import itertools
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from updcomp.wire import dtypes

MOST = 16  # classes
_SLICE = 1 << 18  # weights at a time: their masks stay in the cache
_SAMPLE = 1 << 17  # weights whose exponents are counted where classes are chosen
_PER_CLASS = 48.0  # bits that a class costs: its boundary, its count, and learning its values

_BYTES = np.arange(256, dtype=np.uint8)
_SET = np.unpackbits(_BYTES[:, None], axis=1, bitorder="little")
# Of every byte, the place of each of its set bits.
_SELECT = np.zeros((256, 8), np.uint8)
for _byte, _row in enumerate(_SET):
    _SELECT[_byte, : _row.sum()] = np.flatnonzero(_row)


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


class Classes(NamedTuple):
    """Which weights each class has."""

    words: dtypes.Array  # uint64 (classes, words): bit i of word j is weight 64 j + i
    counts: dtypes.Array  # uint8 (classes, words): set bits of each

    @classmethod
    def of(cls, exponents: dtypes.Array, starts: dtypes.Array) -> "Classes":
        """The classes of weights.

        Args:
          exponents: as `fields` returns them.
          starts: the lowest exponent of every class but the first, strictly ascending.
        """
        above = np.zeros((len(starts) + 1, -(-len(exponents) // 64) * 8), np.uint8)
        for part in _slices(len(exponents)):
            here, place = exponents[part], slice(part.start // 8, -(-part.stop // 8))
            above[0, place] = np.packbits(np.ones(len(here), bool), bitorder="little")
            for one, start in zip(above[1:], starts.astype(exponents.dtype), strict=True):
                one[place] = np.packbits(here >= start, bitorder="little")
        words = above.view("<u8")
        words[:-1] ^= words[1:]  # whatever is above the higher start is above the lower one too
        return cls(words, _counts(words))

    @property
    def sizes(self) -> list[int]:
        """How many weights each class has."""
        sizes: list[int] = self.counts.sum(axis=1, dtype=np.int64).tolist()
        return sizes

    def ranks(self, places: dtypes.Array, changed: dtypes.Array) -> dtypes.Array:
        """The ranks of some weights, each within its class.

        Args:
          places: int64 (k,), those of class 0 first, then those of class 1 and so on.
          changed: integers (classes,), how many are of each.

        Returns:
          int64 (k,).
        """
        word, bit = places >> 6, (places & 63).astype(np.uint64)
        below = self.words[_owners(changed), word] & ((np.uint64(1) << bit) - np.uint64(1))
        found = _counts(below).astype(np.int64)
        for counts, part in zip(self.counts, _runs(changed), strict=True):
            found[part] += (np.cumsum(counts, dtype=np.int64) - counts)[word[part]]
        return found

    def places(self, ranks: dtypes.Array, changed: dtypes.Array) -> dtypes.Array:
        """The inverse of `ranks`; each rank is below its class's size."""
        word, left = np.empty_like(ranks), np.empty_like(ranks)
        for counts, part in zip(self.counts, _runs(changed), strict=True):
            ends = np.cumsum(counts, dtype=np.int64)
            word[part] = there = ends.searchsorted(ranks[part], side="right")
            left[part] = ranks[part] - ends[there] + counts[there]
        bits = self.words[_owners(changed), word]
        found = 64 * word
        for width in (32, 16, 8):  # the half of the bits that has it
            lower = bits & np.uint64((1 << width) - 1)
            below = _counts(lower)
            is_higher = left >= below
            bits = np.where(is_higher, bits >> np.uint64(width), lower)
            left -= below * is_higher
            found += width * is_higher
        return found + _SELECT[bits.view(np.int64), left]


def _owners(changed: dtypes.Array) -> dtypes.Array:
    """The class of each of so many weights of each class, one class below the other."""
    return np.repeat(np.arange(len(changed)), changed)


def _runs(changed: dtypes.Array) -> Iterator[slice]:
    """Where each class is among them."""
    return itertools.starmap(slice, itertools.pairwise([0, *np.cumsum(changed).tolist()]))


def _count_bits(words: dtypes.Array) -> dtypes.Array:
    """uint8: the set bits of each word."""
    found = words - ((words >> np.uint64(1)) & np.uint64(0x5555555555555555))
    found = (found & np.uint64(0x3333333333333333)) + ((found >> np.uint64(2)) & np.uint64(0x3333333333333333))
    found += found >> np.uint64(4)
    found &= np.uint64(0x0F0F0F0F0F0F0F0F)
    found *= np.uint64(0x0101010101010101)
    found >>= np.uint64(56)
    return found.astype(np.uint8)


# Of NumPy 2; before it the same takes ten times as long.
_counts = getattr(np, "bitwise_count", _count_bits)


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


def _slices(size: int) -> Iterator[slice]:
    return (slice(start, min(start + _SLICE, size)) for start in range(0, size, _SLICE))
