"""Pieces: streams of their own within the raw section, for what is large.

A piece is finished as soon as it is made, so that a writer holds no symbols of the one before; and it is found without
reading the one before, so that pieces are read in any order, or at once. How many lanes it has follows from the number
of its tokens. These lanes cost a byte each, not three: what the encoder begins with are not empty states but 16 plain
bits each, which the decoder finds in the end, and which it needs only then.
"""

import itertools
from collections.abc import Iterable

import numpy as np

from updcomp.wire import bits, dtypes, errors, rans, streams

LEAST = 1 << 12  # tokens of a block in pieces: fewer share the coded section
_TOKENS_PER_LANE = 256
_AT_ONCE = 3
_MORE_BITS = 24  # one more for each 16 MiB of a leaf
_LONGEST_SIZE = 9  # bytes of a size below 2^63


def lanes_of(tokens: int) -> int:
    """The lanes of pieces of so many tokens each.

    >>> lanes_of(4096), lanes_of(1 << 20), lanes_of(1 << 30)
    (16, 4096, 4096)
    """
    return min(rans.MAX_LANES, 1 << max((tokens // _TOKENS_PER_LANE).bit_length() - 1, 0))


class Writer(streams.Writer):
    """Makes a piece."""

    def __init__(self) -> None:
        """An empty one."""
        super().__init__()
        self._late = bits.Writer()

    def late(self, values: dtypes.Array, widths: dtypes.Array) -> None:
        """Plain bits that are read only when every token has been: the first of them are the encoder's states."""
        self._late.push(values, widths)

    @property
    def cost(self) -> float:
        """Bits written so far, without the lanes."""
        return super().cost + self._late.cost

    def pack(self, lanes: int) -> bytes:
        """The piece's bytes.

        Args:
          lanes: as `lanes_of` says.
        """
        early, late = self._extra.finish(), self._late.finish()
        first = np.frombuffer(late[: 2 * lanes].ljust(2 * lanes, b"\0"), "<u2")
        _, coded = self._coded.finish(lanes, rans.LOWEST + first.astype(np.int64))
        parts = early, late[2 * lanes :], coded
        return b"".join([*(_varint(len(part)) for part in parts), *parts])


class Reader(streams.Reader):
    """Reads a piece."""

    def __init__(self, early: memoryview, late: memoryview, lanes: int, coded: memoryview) -> None:
        """At its start."""
        super().__init__(b"", early, lanes, coded, short=False)
        self._rest = late
        self._late: bits.Reader | None = None

    def late(self, widths: dtypes.Array) -> dtypes.Array:
        """The inverse of `Writer.late`; after the last token."""
        return self._last_bits().pull(widths)

    def finish(self, **_: object) -> None:
        """Checks that everything ends here."""
        self._extra.finish()
        self._last_bits().finish(is_padded=not len(self._rest))

    def _last_bits(self) -> bits.Reader:
        if self._late is None:
            first = self._coded.last() - rans.LOWEST
            if (first >= rans.LOWEST).any():
                raise errors.CorruptUpdateError("coded section: it does not end where its symbols do")
            self._late = bits.Reader(first.astype("<u2").tobytes() + bytes(self._rest))
        return self._late


def readers(reader: streams.Reader, count: int, lanes: int) -> list[Reader]:
    """The next pieces of the raw section.

    Args:
      reader: of the update.
      count: number of pieces.
      lanes: of each.

    Raises:
      CorruptUpdateError: the section ends before.
    """
    found = []
    for _ in range(count):
        data, at, sizes = reader.piece(), 0, []
        for _ in range(3):
            size, at = _read_varint(data, at)
            sizes.append(size)
        if at + sum(sizes) > len(data):
            raise errors.CorruptUpdateError(f"piece: expected {at + sum(sizes)} bytes, found {len(data)}")
        ends = np.cumsum([at, *sizes]).tolist()
        early, late, coded = (data[start:end] for start, end in itertools.pairwise(ends))
        found.append(Reader(early, late, lanes, coded))
        reader.skip(ends[-1])
    return found


def at_once(leaf_bytes: int) -> int:
    """How many pieces of a leaf are worked on at once, at most: what they hold stays small beside a large leaf."""
    return _AT_ONCE + (leaf_bytes >> _MORE_BITS)


def together(made: Iterable[bytes], limit: int) -> bytes | None:
    """Pieces one after another; None if they are no smaller than so many bytes."""
    data = b"".join(made)
    return data if len(data) < limit else None


def _varint(number: int) -> bytes:
    """As in the header."""
    out = bytearray()
    while number >= 0x80:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*out, number])


def _read_varint(data: memoryview, at: int) -> tuple[int, int]:
    number = 0
    for shift in range(0, 7 * _LONGEST_SIZE, 7):
        if at >= len(data):
            raise errors.CorruptUpdateError("piece: expected sizes, found the end of the raw section")
        byte, at = data[at], at + 1
        number |= (byte & 0x7F) << shift
        if byte < 0x80:
            if shift and not byte:
                break
            return number, at
    raise errors.CorruptUpdateError("piece: expected sizes of at most nine bytes, without leading zeros")
