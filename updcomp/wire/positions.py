"""Positions in a leaf: checked, from gaps, or derived by both sides from what they hold, so that they cost no bytes."""

import math

import numpy as np

from updcomp.wire import costs, dtypes, errors, hashing

_SLICE = 1 << 18


def check(places: dtypes.Array, size: int, field: str = "positions") -> None:
    """Checks positions that a packet says.

    Args:
      places: anything.
      size: of what they are positions in.
      field: their name, for the message.

    Raises:
      LeafError: they are not int64 (k,), strictly ascending, from 0 to size - 1.
    """
    flat = places.reshape(-1)
    ascending = len(flat) == 0 or (flat[0] >= 0 and flat[-1] < size and bool((np.diff(flat) > 0).all()))
    if places.ndim != 1 or places.dtype != np.int64 or not ascending:
        raise errors.LeafError(f"{field}: expected int64, strictly ascending, from 0 to {size - 1}")


def of_gaps(gaps: dtypes.Array, size: int) -> dtypes.Array:
    """The positions that these gaps separate: position_i = position_(i-1) + 1 + gap_i, position_(-1) = -1.

    Args:
      gaps: int64 (k,); used up.
      size: of the leaf.

    Returns:
      int64 (k,), strictly ascending.

    Raises:
      CorruptUpdateError: a position lies outside the leaf.

    >>> of_gaps(np.array([0, 3, 0]), 6)
    array([0, 4, 5])
    """
    # With every gap below the size, a sum that overflows passes a negative value on its way.
    if len(gaps) and (int(gaps.min()) < 0 or int(gaps.max()) >= size):
        raise errors.CorruptUpdateError(f"positions: expected gaps from 0 to {size - 1}")
    gaps += 1
    places = np.cumsum(gaps, out=gaps)
    places -= 1
    if len(places) and (int(places.min()) < 0 or int(places.max()) >= size):
        raise errors.CorruptUpdateError(f"positions: expected 0 to {size - 1}")
    return places


def seeded(seed: int, index: int, size: int, count: int) -> dtypes.Array:
    """The `count` positions whose hashes are smallest: a uniform draw without replacement, nested in `count`.

    Args:
      seed: uint32, the packet's.
      index: of the leaf in sorted name order.
      size: of the leaf.
      count: 0 <= count <= size.

    Returns:
      int64 (count,), strictly ascending.

    Raises:
      Error: the count is out of range.

    >>> few, many = seeded(7, 0, 1000, 10), seeded(7, 0, 1000, 20)
    >>> set(few) < set(many), len(many)
    (True, 20)
    """
    if not 0 <= count <= size:
        raise errors.Error(f"count: expected 0 <= count <= {size}, found {count}")
    key = hashing.stream_key(seed, index, hashing.POSITIONS)
    expected = count
    while True:
        # Hashes are uniform: a bound a little above count / size leaves few candidates to sort.
        expected += 8 * math.isqrt(expected) + 64
        bound = min((expected << 64) // max(size, 1), (1 << 64) - 1)
        candidates, found = _below(key, size, np.uint64(bound))
        if len(candidates) >= count:
            break
    if count < len(candidates):
        candidates = candidates[np.argpartition(found, count)[:count]]
    return np.sort(candidates)


def seeded_cost(spec: dtypes.Spec, count: int) -> costs.Cost:
    """The cost of `seeded`: 16 operations a weight and 64 a position; 40 bytes a position."""
    return costs.Cost(16 * spec.size + 64 * count, 40 * count + 32 * _SLICE)


def _below(key: int, size: int, bound: np.uint64) -> tuple[dtypes.Array, dtypes.Array]:
    """The positions whose hash is at most the bound, and these hashes."""
    positions, found = [np.empty(0, np.int64)], [np.empty(0, np.uint64)]
    for start in range(0, size, _SLICE):
        values = hashing.hashes(key, start, min(start + _SLICE, size))
        chosen = np.flatnonzero(values <= bound)
        positions.append(chosen + start)
        found.append(values[chosen])
    return np.concatenate(positions), np.concatenate(found)


def largest(leaf: dtypes.Array, count: int) -> dtypes.Array:
    """The positions of the largest magnitudes: bit patterns without the sign compared as integers, ties to the left.

    Args:
      leaf: as `dtypes.hold` returns it; a float dtype.
      count: 0 <= count <= leaf.size.

    Returns:
      int64 (count,), strictly ascending.

    Raises:
      Error: the count is out of range.

    >>> largest(np.float32([1, -3, 2, 3]), 2)
    array([1, 3])
    """
    if not 0 <= count <= leaf.size:
        raise errors.Error(f"count: expected 0 <= count <= {leaf.size}, found {count}")
    if count == 0:
        return np.empty(0, np.int64)
    bits = dtypes.flat_bits(leaf)
    magnitudes = bits & bits.dtype.type((1 << (8 * bits.itemsize - 1)) - 1)
    threshold = np.partition(magnitudes, -count)[-count]
    above = np.flatnonzero(magnitudes > threshold)
    found, missing = [above], count - len(above)
    for start in range(0, len(magnitudes), _SLICE):
        ties = np.flatnonzero(magnitudes[start : start + _SLICE] == threshold)[:missing]
        found.append(ties + start)
        missing -= len(ties)
    return np.sort(np.concatenate(found))


def largest_cost(spec: dtypes.Spec, count: int) -> costs.Cost:
    """The cost of `largest`: 16 operations a weight and 64 a position; 2 copies of the leaf and 24 bytes a position."""
    return costs.Cost(16 * spec.size + 64 * count, 2 * spec.nbytes + 24 * count)
