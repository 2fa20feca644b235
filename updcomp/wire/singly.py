"""rANS one symbol at a time, in Python integers: faster than a step of NumPy where only a few lanes take part in it."""

import itertools
from bisect import bisect_right

from updcomp.wire.tables import PRECISION, TOTAL, Lists

LOWEST = 1 << 16
MOST = 8  # lanes of a step up to which this is faster


def encode(states: list[int], starts: list[int], sizes: list[int]) -> list[int]:
    """Encodes a segment, from its last symbol to its first.

    Args:
      states: of all lanes; they are changed.
      starts: first slots of the symbols' intervals.
      sizes: of these.

    Returns:
      The words, in the order of reading.
    """
    words, lanes = [], len(states)
    for i in range(len(sizes) - 1, -1, -1):
        state, size = states[i % lanes], sizes[i]
        if state >> 32 - PRECISION >= size:
            words.append(state & 0xFFFF)
            state >>= 16
        quotient, remainder = divmod(state, size)
        states[i % lanes] = (quotient << PRECISION) + remainder + starts[i]
    return words[::-1]


def decode(states: list[int], words: list[int], table: Lists, bases: list[int]) -> tuple[list[int], int]:
    """Decodes a segment.

    Args:
      states: of all lanes; they are changed.
      words: the next ones, as many as there are symbols, or all that are left.
      table: of all contexts.
      bases: the contexts of the symbols, each times 2^14.

    Returns:
      (the intervals, how many words they take), which may be more than there are: lanes that lack one stay low.
    """
    found, lanes, taken = [], len(states), 0
    sizes, starts, _ = table
    for base, lane in zip(bases, itertools.cycle(range(lanes)), strict=False):
        state = states[lane]
        slot = base | state % TOTAL
        interval = bisect_right(starts, slot) - 1
        state = sizes[interval] * (state >> PRECISION) + slot - starts[interval]
        if state < LOWEST:
            if taken < len(words):
                state = state << 16 | words[taken]
            taken += 1
        states[lane] = state
        found.append(interval)
    return found, taken
