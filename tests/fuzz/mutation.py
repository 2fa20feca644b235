"""Changes of bytes that know nothing of what the bytes mean."""

import random
import struct
from collections.abc import Callable, Sequence

MOST = 4096  # bytes of an input

_NUMBERS = (0, 1, 2, 3, 7, 15, 16, 31, 63, 64, 100, 127, 128, 255, 256, 1023, 1024, 4095, 4096, 65535, 65536)
_EDGES = tuple((1 << bits) - by for bits in (24, 31, 32, 53, 62, 63, 64) for by in (1, 0))


def varint(number: int) -> bytes:
    """Seven bits a byte, low ones first; the top bit says that more follow."""
    out = bytearray()
    while number >= 0x80:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*out, number])


def number(rng: random.Random) -> int:
    """An integer that is likely to be at the edge of something."""
    drawn = rng.choice((*_NUMBERS, *_EDGES, rng.getrandbits(rng.randrange(1, 64))))
    return max(0, drawn + rng.choice((0, 0, 0, 1, -1)))


def mutate(data: bytes, rng: random.Random, others: Sequence[bytes] = (), words: Sequence[bytes] = ()) -> bytes:
    """A changed copy of at most `MOST` bytes.

    Args:
      data: any bytes.
      rng: where chance comes from.
      others: inputs to splice with.
      words: texts that mean something to the reader.

    Returns:
      The copy.
    """
    changed = bytearray(data)
    for _ in range(1 << rng.randrange(4)):
        rng.choice(_CHANGES)(changed, rng, others, words)
    return bytes(changed[:MOST])


def _flip(data: bytearray, rng: random.Random, _others: Sequence[bytes], _words: Sequence[bytes]) -> None:
    if data:
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)


def _byte(data: bytearray, rng: random.Random, _others: Sequence[bytes], _words: Sequence[bytes]) -> None:
    if data:
        data[rng.randrange(len(data))] = rng.choice((0, 1, 127, 128, 255, rng.randrange(256)))


def _shift(data: bytearray, rng: random.Random, _others: Sequence[bytes], _words: Sequence[bytes]) -> None:
    if data:
        at = rng.randrange(len(data))
        data[at] = (data[at] + rng.randrange(-16, 17)) % 256


def _integer(data: bytearray, rng: random.Random, _others: Sequence[bytes], _words: Sequence[bytes]) -> None:
    width = rng.choice((2, 4, 8))
    packed = struct.pack("<Q", number(rng) % (1 << 64))[:width]
    _place(data, packed[:: rng.choice((1, 1, -1))], rng)


def _varint(data: bytearray, rng: random.Random, _others: Sequence[bytes], _words: Sequence[bytes]) -> None:
    _place(data, varint(number(rng)), rng)


def _word(data: bytearray, rng: random.Random, _others: Sequence[bytes], words: Sequence[bytes]) -> None:
    if words:
        _place(data, rng.choice(words), rng)


def _place(data: bytearray, part: bytes, rng: random.Random) -> None:
    """Puts a part somewhere, between what is there or over it."""
    at = rng.randrange(len(data) + 1)
    data[at : at + len(part) * rng.randrange(2)] = part


def _delete(data: bytearray, rng: random.Random, _others: Sequence[bytes], _words: Sequence[bytes]) -> None:
    start, stop = _block(data, rng)
    del data[start:stop]


def _insert(data: bytearray, rng: random.Random, _others: Sequence[bytes], _words: Sequence[bytes]) -> None:
    at, size = rng.randrange(len(data) + 1), rng.randrange(1, 17)
    data[at:at] = rng.randbytes(size) if rng.randrange(2) else bytes([rng.choice((0, 255, 32))]) * size


def _duplicate(data: bytearray, rng: random.Random, _others: Sequence[bytes], _words: Sequence[bytes]) -> None:
    start, stop = _block(data, rng)
    _place(data, bytes(data[start:stop]), rng)


def _splice(data: bytearray, rng: random.Random, others: Sequence[bytes], _words: Sequence[bytes]) -> None:
    if others:
        other = rng.choice(others)
        start, stop = _block(other, rng)
        if rng.randrange(2):
            data[rng.randrange(len(data) + 1) :] = other[start:]
        else:
            _place(data, other[start:stop], rng)


def _block(data: bytes | bytearray, rng: random.Random) -> tuple[int, int]:
    """Where a piece begins and ends, more often a short one."""
    start = rng.randrange(len(data) + 1)
    return start, min(len(data), start + rng.randrange(1, 1 << rng.randrange(1, 9)))


_CHANGES: tuple[Callable[[bytearray, random.Random, Sequence[bytes], Sequence[bytes]], None], ...] = (
    *(_flip, _byte, _shift, _integer, _varint, _word, _delete, _insert, _duplicate, _splice),
)
