"""A section of plain bits: integers of known widths, packed without gaps, lowest bit first."""

import numpy as np

from updcomp.wire import dtypes, errors

MAX_WIDTH = 63
_SLICE = 1 << 18


class Writer:
    """Collects integers and packs them in the end."""

    def __init__(self) -> None:
        """An empty section."""
        self._values: list[dtypes.Array] = []
        self._widths: list[dtypes.Array] = []

    def push(self, values: dtypes.Array, widths: dtypes.Array) -> None:
        """Adds integers.

        Args:
          values: uint64 (n,), each below 2^width.
          widths: uint8 (n,), from 0 to `MAX_WIDTH`.
        """
        self._values.append(values)
        self._widths.append(widths)

    @property
    def cost(self) -> int:
        """Bits pushed so far."""
        return sum(int(widths.sum(dtype=np.int64)) for widths in self._widths)

    def extend(self, other: "Writer") -> None:
        """Adds the integers of another writer."""
        self._values += other._values
        self._widths += other._widths

    def finish(self) -> bytes:
        """The section: bit i of it is bit i % 8 of byte i // 8; the last byte is filled with zeros."""
        if not self._values:
            return b""
        values, widths = np.concatenate(self._values), np.concatenate(self._widths)
        ends = np.cumsum(widths, dtype=np.int64)
        size = int(ends[-1]) if len(ends) else 0
        words = np.zeros(size // 64 + 2, np.uint64)
        for start in range(0, len(values), _SLICE):
            part = slice(start, start + _SLICE)
            first = ends[part] - widths[part]
            word, shift = first >> 6, (first & 63).astype(np.uint64)
            _merge(words, word, values[part] << shift)
            # Two shifts, because one by 64 is undefined.
            _merge(words, word + 1, values[part] >> np.uint64(1) >> (np.uint64(63) - shift))
        return words.astype("<u8").tobytes()[: (size + 7) // 8]


def _merge(words: dtypes.Array, index: dtypes.Array, parts: dtypes.Array) -> None:
    """words[index] |= parts, for ascending indices with repetitions."""
    firsts = np.flatnonzero(np.diff(index, prepend=-1))
    words[index[firsts]] |= np.bitwise_or.reduceat(parts, firsts)


class Reader:
    """Reads integers of known widths."""

    def __init__(self, data: bytes | memoryview) -> None:
        """At the start of a section that `Writer.finish` made."""
        self._size = 8 * len(data)
        padded = np.zeros(len(data) // 8 + 2, "<u8")
        padded.view(np.uint8)[: len(data)] = np.frombuffer(data, np.uint8)
        self._words = padded.astype(np.uint64, copy=False)
        self._next = 0

    def pull(self, widths: dtypes.Array) -> dtypes.Array:
        """The next integers.

        Args:
          widths: uint8 (n,), from 0 to `MAX_WIDTH`.

        Returns:
          uint64 (n,).

        Raises:
          CorruptUpdateError: the section ends before.
        """
        ends = np.cumsum(widths, dtype=np.int64) + self._next
        end = int(ends[-1]) if len(ends) else self._next
        if end > self._size:
            raise errors.CorruptUpdateError(f"extra bits: expected at least {end} bits, found {self._size}")
        self._next = end
        values = np.empty(len(widths), np.uint64)
        for start in range(0, len(widths), _SLICE):
            part = slice(start, start + _SLICE)
            width = widths[part].astype(np.uint64)
            first = ends[part] - widths[part]
            word, shift = first >> 6, (first & 63).astype(np.uint64)
            low = self._words[word] >> shift
            high = self._words[word + 1] << np.uint64(1) << (np.uint64(63) - shift)
            values[part] = (low | high) & ((np.uint64(1) << width) - np.uint64(1))
        return values

    def finish(self) -> None:
        """Checks that nothing but the filling of the last byte is left.

        Raises:
          CorruptUpdateError: a byte or a set bit is left.
        """
        left = self._size - self._next
        if left >= 8 or (left and self._words[self._next >> 6] >> np.uint64(self._next & 63)):
            raise errors.CorruptUpdateError(f"extra bits: expected {self._next} bits, found {self._size}")
