"""Intervals of slots, found in three ways: laid out slot by slot, by bisection, and one at a time in Python."""

from typing import NamedTuple, TypeAlias

import numpy as np

from updcomp.wire import dtypes

PRECISION = 14
TOTAL = 1 << PRECISION


class Table(NamedTuple):
    """All slots of a few contexts: entry context << 14 | slot of each array."""

    sizes: dtypes.Array  # uint16: size of the interval that holds the slot
    offsets: dtypes.Array  # uint16: slot minus the start of that interval
    symbols: dtypes.Array  # uint8: its symbol

    @classmethod
    def of(cls, frequencies: dtypes.Array) -> "Table":
        """Lays out the slots.

        Args:
          frequencies: int64 (contexts, symbols <= 256), each at least 1, each row's sum `TOTAL`.
        """
        contexts, symbols = frequencies.shape
        counts = frequencies.reshape(-1)
        starts = (np.cumsum(counts) - counts) % TOTAL
        offsets = np.tile(np.arange(TOTAL, dtype=np.uint16), contexts)
        offsets -= np.repeat(starts.astype(np.uint16), counts)
        names = np.tile(np.arange(symbols, dtype=np.uint8), contexts)
        return cls(np.repeat(counts.astype(np.uint16), counts), offsets, np.repeat(names, counts))

    def symbols_at(self, slots: dtypes.Array) -> dtypes.Array:
        """uint8: the symbols of these slots."""
        return self.symbols.take(slots, mode="clip")


class Intervals(NamedTuple):
    """As `Table`, for fewer symbols than it takes to lay one out: the intervals alone, found by bisection."""

    sizes: dtypes.Array  # int64 (intervals,)
    starts: dtypes.Array  # int64 (intervals,), ascending: those of context c begin at c << 14
    symbols: dtypes.Array  # uint8 (intervals,)

    @classmethod
    def of(cls, frequencies: dtypes.Array) -> "Intervals":
        """Of frequencies as `Table.of` takes them."""
        contexts, symbols = frequencies.shape
        sizes = frequencies.reshape(-1)
        return cls(sizes, np.cumsum(sizes) - sizes, np.tile(np.arange(symbols, dtype=np.uint8), contexts))

    def look_up(self, slots: dtypes.Array, sizes: dtypes.Array, offsets: dtypes.Array) -> None:
        """Fills in the sizes and offsets of these slots."""
        found = self._find(slots)
        self.sizes.take(found, out=sizes)
        np.subtract(slots, self.starts[found], out=offsets)

    def symbols_at(self, slots: dtypes.Array) -> dtypes.Array:
        """uint8: the symbols of these slots."""
        return self.symbols[self._find(slots)]

    def _find(self, slots: dtypes.Array) -> dtypes.Array:
        return self.starts.searchsorted(slots, side="right") - 1


class Lists(NamedTuple):
    """As `Intervals`, for `singly`."""

    sizes: list[int]
    starts: list[int]  # ascending
    symbols: int  # of a context

    @classmethod
    def of(cls, frequencies: dtypes.Array) -> "Lists":
        """Of integers (contexts, symbols), each row's sum 2^14."""
        sizes = frequencies.reshape(-1)
        return cls(sizes.tolist(), (sizes.cumsum() - sizes).tolist(), frequencies.shape[1])


Slots: TypeAlias = Table | Intervals | Lists
"""Of all contexts."""
