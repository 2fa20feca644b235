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
        size = int(widths.sum(dtype=np.int64)) + self._last_width
        words, start = np.zeros(size // 64 + 2, np.uint64), self._last_width
        for first in range(0, len(values), _SLICE):
            part = slice(first, first + _SLICE)
            start = _pack(values[part], widths[part].astype(np.uint64), start, words)
        words[0] |= np.uint64(self._last)
        data = words.astype("<u8").tobytes()
        self._packed.append(data[: size // 8])
        self._last, self._last_width = data[size // 8], size % 8


def _pack(values: dtypes.Array, widths: dtypes.Array, start: int, words: dtypes.Array) -> int:
    """Adds integers to words of which the bits from `start` on are 0; returns where they end."""
    word, shift, end = _places(widths, start)
    low = values << shift
    # The last integer that begins in each word is the only one that goes on in the next.
    last = np.append(np.flatnonzero(word[1:] != word[:-1]), len(word) - 1)
    sums = np.cumsum(low)[last]  # modulo 2^64, as no bit is there twice
    words[word[last]] += np.diff(sums, prepend=np.uint64(0))
    # Two shifts, because one by 64 is undefined.
    words[word[last] + 1] += values[last] >> np.uint64(1) >> (np.uint64(63) - shift[last])
    return end


def _places(widths: dtypes.Array, start: int) -> tuple[dtypes.Array, dtypes.Array, int]:
    """(the word in which each integer begins, int64; the bit of it, uint64; where the last ends), from a bit on."""
    ends = np.cumsum(widths)
    ends += np.uint64(start)
    firsts = ends - widths
    words = (firsts >> np.uint64(6)).view(np.int64)
    firsts &= np.uint64(63)
    return words, firsts, int(ends[-1])


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
        end = self._next + int(widths.sum(dtype=np.int64))
        if end > self._size:
            raise errors.CorruptUpdateError(f"extra bits: expected at least {end} bits, found {self._size}")
        values = np.empty(len(widths), np.uint64)
        for start in range(0, len(widths), _SLICE):
            part = slice(start, start + _SLICE)
            width, here = widths[part].astype(np.uint64), values[part]
            word, shift, self._next = _places(width, self._next)
            # Indices are in range by construction; "clip" avoids the copy that checking them would make.
            self._words.take(word, out=here, mode="clip")
            here >>= shift
            word += 1
            high = self._words.take(word, mode="clip")
            high <<= np.uint64(1)
            high <<= np.uint64(63) - shift
            here |= high
            here &= (np.uint64(1) << width) - np.uint64(1)
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
