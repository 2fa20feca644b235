"""A section of plain bits: integers of known widths, packed without gaps, lowest bit first."""

import numpy as np

from updcomp.wire import dtypes, errors

MAX_WIDTH = 63
_SLICE = 1 << 16
_NOTHING, _NO_WIDTHS = np.zeros(0, np.uint64), np.zeros(0, np.uint8)


class Writer:
    """Takes integers, and packs them as soon as there are many."""

    def __init__(self) -> None:
        """An empty section."""
        self._values: list[dtypes.Array] = []
        self._widths: list[dtypes.Array] = []
        self._held = 0
        self._packed: list[bytes] = []
        self._last, self._last_width = 0, 0  # bits of a byte that is not full

    def push(self, values: dtypes.Array, widths: dtypes.Array) -> None:
        """Adds integers.

        Args:
          values: uint64 (n,), each below 2^width.
          widths: uint8 (n,), from 0 to `MAX_WIDTH`.
        """
        self._values.append(values)
        self._widths.append(widths)
        self._held += len(values)
        if self._held >= _SLICE:
            self._pack()

    @property
    def cost(self) -> int:
        """Bits pushed so far."""
        held = sum(int(widths.sum(dtype=np.int64)) for widths in self._widths)
        return 8 * sum(map(len, self._packed)) + self._last_width + held

    def extend(self, other: "Writer") -> None:
        """Adds the integers of another writer."""
        packed = b"".join(other._packed)
        words = np.frombuffer(packed, "<u4", len(packed) // 4).astype(np.uint64)
        rest = np.frombuffer(packed[4 * len(words) :] + bytes([other._last]), np.uint8).astype(np.uint64)
        widths = np.append(np.full(len(rest) - 1, 8, np.uint8), np.uint8(other._last_width))
        self.push(words, np.full(len(words), 32, np.uint8))
        self.push(rest, widths)
        for part in zip(other._values, other._widths, strict=True):
            self.push(*part)

    def finish(self) -> bytes:
        """The section: bit i of it is bit i % 8 of byte i // 8; the last byte is filled with zeros."""
        self._pack()
        return b"".join(self._packed) + bytes([self._last] * (self._last_width > 0))

    def _pack(self) -> None:
        """What is held, as whole bytes."""
        values, widths = np.concatenate([_NOTHING, *self._values]), np.concatenate([_NO_WIDTHS, *self._widths])
        self._values, self._widths, self._held = [], [], 0
        ends = np.cumsum(widths, dtype=np.int64)
        ends += self._last_width
        size = int(ends[-1]) if len(ends) else self._last_width
        words = np.zeros(size // 64 + 2, np.uint64)
        for start in range(0, len(values), _SLICE):
            part = slice(start, start + _SLICE)
            first = ends[part] - widths[part]
            word, shift = first >> 6, (first & 63).astype(np.uint64)
            _merge(words, word, values[part] << shift)
            # Two shifts, because one by 64 is undefined.
            _merge(words, word + 1, values[part] >> np.uint64(1) >> (np.uint64(63) - shift))
        words[0] |= np.uint64(self._last)
        data = words.astype("<u8").tobytes()
        self._packed.append(data[: size // 8])
        self._last, self._last_width = data[size // 8], size % 8


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

    def finish(self, *, is_padded: bool = False) -> None:
        """Checks that nothing but the filling of the last byte is left.

        Args:
          is_padded: whether any number of zeros may be left.

        Raises:
          CorruptUpdateError: a byte or a set bit is left.
        """
        left, word = self._size - self._next, self._next >> 6
        later = is_padded and self._words[word + 1 :].any()
        if (left >= 8 and not is_padded) or later or (left and self._words[word] >> np.uint64(self._next & 63)):
            raise errors.CorruptUpdateError(f"extra bits: expected {self._next} bits, found {self._size}")
