"""How a changed bit pattern is said: as a difference of patterns, or of cells of a grid, with the bits within the cell.

Where weights move by many units in their last place, the size of a move says little of how many units it is: these are
finer for smaller weights. A grid of one step 2^(base - bias) for the whole leaf has cells of equal width instead: |w|
is in cell floor(|w| / step), a negative weight in minus that and 1 less. Both sides know the old weight's cell; the
difference of cells is coded, and where in its cell the new weight is follows as plain bits, as many as the cell has
patterns: mantissa - t of them in the cells 2^t to 2^(t+1) - 1, and in cell 0, all patterns below the step. All of this
is arithmetic of patterns: a float64 of the same mantissa and the exponent moved by `base` is the cell, truncated.
"""

import functools
from typing import NamedTuple

import numpy as np

from updcomp.wire import dtypes, errors

_MANTISSA = 52  # bits of a float64
_BIAS = 1023
_SLICE = 1 << 15  # weights at a time: what is made of them stays in the cache
_HIGHEST = 51  # octaves above the step: cells are exact in float64


class Grid(NamedTuple):
    """A grid for patterns of a float dtype."""

    mantissa: int  # bits
    exponent: int  # bits
    base: int  # exponent field of the step

    @property
    def lowest_width(self) -> int:
        """Plain bits in cell 0."""
        return ((self.base << self.mantissa) - 1).bit_length()

    def cells(self, bits: dtypes.Array) -> dtypes.Array:
        """The cells of bit patterns.

        Args:
          bits: unsigned integers (n,).

        Returns:
          int64 (n,).

        Raises:
          CorruptUpdateError: a weight is 2^52 steps or more, or not finite and so far above the step.
        """
        magnitudes = bits & bits.dtype.type((1 << self.mantissa + self.exponent) - 1)
        if int(magnitudes.max(initial=0)) >> self.mantissa > self.base + _HIGHEST:
            raise errors.CorruptUpdateError(f"grid: expected weights below 2^{_HIGHEST + 1} steps, found larger ones")
        wide = magnitudes.astype(np.uint64)
        wide += np.uint64((_BIAS - self.base) % (1 << 11) << self.mantissa)
        wide <<= np.uint64(_MANTISSA - self.mantissa)
        floats = wide.view(np.float64)
        if self.base >= _BIAS:  # exponents below the step's may have become negative, modulo 2^11
            wide &= np.uint64((1 << 63) - 1)
            floats[magnitudes < self._step] = 0
        found = floats.astype(np.int64)
        # Minus one less: the bits of the cell inverted where the sign, the top bit, is set.
        found ^= bits.view(f"<i{bits.itemsize}") >> (8 * bits.itemsize - 1)
        return found

    def widths(self, cells: dtypes.Array) -> dtypes.Array:
        """Plain bits in each of the cells, uint8."""
        exponents = _as_floats(cells) >> np.uint64(_MANTISSA)
        return _widths(self).take(exponents.view(np.int64), mode="clip")

    def low(self, bits: dtypes.Array, widths: dtypes.Array) -> dtypes.Array:
        """The lowest of these patterns' bits, uint64: where in a cell of so many plain bits each is."""
        masks = (np.uint64(1) << widths.astype(np.uint64)) - np.uint64(1)
        masks &= bits
        return masks

    def bits(self, cells: dtypes.Array, low: dtypes.Array, dtype: np.dtype[np.unsignedinteger]) -> dtypes.Array:
        """The inverse of `cells` and `low`.

        Raises:
          CorruptUpdateError: there is no such pattern.
        """
        floats = _as_floats(cells)
        lowest = floats == 0
        dropped = np.uint64((1 << _MANTISSA - self.mantissa) - 1)
        highest = np.uint64((1 << self.exponent) - 1 + _BIAS - self.base << _MANTISSA | (1 << _MANTISSA) - 1)
        wrong = (floats & dropped).any() or int(floats.max(initial=0)) > int(highest)
        if wrong or (low[lowest] >= np.uint64(self._step)).any():
            raise errors.CorruptUpdateError("grid: expected cells and bits of a weight, found others")
        floats >>= np.uint64(_MANTISSA - self.mantissa)
        # Modulo 2^64, for the step may be above or below 1.
        floats += np.uint64((self.base - _BIAS << self.mantissa) % (1 << 64))
        floats[lowest] = 0
        floats |= low
        floats |= (cells < 0).astype(np.uint64) << np.uint64(self.mantissa + self.exponent)
        return floats.astype(dtype)

    @property
    def _step(self) -> int:
        return self.base << self.mantissa


def _as_floats(cells: dtypes.Array) -> dtypes.Array:
    """uint64: the float64 of every cell's magnitude."""
    magnitudes = cells >> 63
    magnitudes ^= cells
    return magnitudes.astype(np.float64).view(np.uint64)


@functools.lru_cache(maxsize=64)
def _widths(grid: Grid) -> dtypes.Array:
    """Plain bits of a cell by its magnitude's exponent as a float64: uint8 (1024 + 52,)."""
    found = np.clip(grid.mantissa + _BIAS - np.arange(_BIAS + _HIGHEST + 2), 0, grid.mantissa)
    found[0] = grid.lowest_width
    return found.astype(np.uint8)


def moves(new: dtypes.Array, old: dtypes.Array, grid: Grid | None) -> dtypes.Array:
    """What is coded of every changed weight: an integer other than 0.

    Args:
      new: patterns (k,), each other than the old one.
      old: patterns (k,).
      grid: None: the difference of patterns, as a signed integer of their width.

    Returns:
      int64 (k,): with a grid the difference of cells, and one more where it is not negative.
    """
    if grid is None:
        return (new - old).view(f"<i{old.itemsize}").astype(np.int64)
    found = np.empty(len(new), np.int64)
    for start in range(0, len(new), _SLICE):
        part = slice(start, start + _SLICE)
        here = grid.cells(new[part])
        here -= grid.cells(old[part])
        here += here >= 0
        found[part] = here
    return found


def moved(moves: dtypes.Array, old: dtypes.Array, grid: Grid) -> dtypes.Array:
    """The cells to which weights moved; `moves` as above returns them."""
    cells = grid.cells(old)
    cells += moves
    cells -= moves > 0
    if (np.abs(cells) >= 1 << _MANTISSA).any():
        raise errors.CorruptUpdateError(f"grid: expected cells below 2^{_MANTISSA}, found larger ones")
    return cells


def grid_of(old: dtypes.Array, base: int) -> Grid | None:
    """The grid of a leaf whose step has this exponent field; None where its dtype has none."""
    layout = dtypes.layout(old)
    return None if layout is None else Grid(*layout, base)
