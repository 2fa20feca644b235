"""The header of an update: what can be read, and checked, without the model."""

import binascii
import struct
from typing import NamedTuple

import numpy as np

from updcomp.wire import errors, packet, rans

MAGIC = b"updc"
VERSION = 2  # the newest; a reader takes version 1 too, whose blocks say no views
KINDS: tuple[type, ...] = (
    packet.Raw,
    packet.Exact,
    packet.Half,
    packet.Dense,
    packet.Sparse,
    packet.Seeded,
    packet.Magnitude,
    packet.Factors,
    packet.Coefficients,
)  # the index is the kind's number on the wire; new kinds go to the end
STEPLESS = (packet.Raw, packet.Exact, packet.Half)
VIEWED = (packet.Dense, packet.Factors, packet.Coefficients)

_FIXED = struct.Struct("<4sBB16s16s")  # magic, version, flags, fingerprints of the base and of the result
_CHECKSUM = struct.Struct("<I")
_LONGEST_VARINT = 5
_LONGEST_VIEW = 15  # bytes of a varint below 3^64, NumPy's most axes


class Head(NamedTuple):
    """The header of a block."""

    kind: type  # of `KINDS`
    leaf: int  # index in sorted name order
    step: float  # 0 for the kinds without
    view: int | None = None  # number of the view; None in version 1 and for the kinds without


class Update(NamedTuple):
    """An update taken apart, its payload not decoded."""

    version: int  # 1 to `VERSION`
    base: bytes  # fingerprint of the model that it starts from
    result: bytes  # fingerprint of the model that it must give
    seed: int
    heads: list[Head]
    raw: bytes | memoryview  # section
    extra: bytes | memoryview  # section
    lanes: int
    coded: bytes | memoryview  # section


def pack(parts: Update) -> bytes:
    """The update's bytes: header, block headers, sections, CRC-32."""
    body = b"".join(
        (
            _FIXED.pack(MAGIC, parts.version, 0, parts.base, parts.result),
            _varint(parts.seed),
            _varint(len(parts.heads)),
            _pack_heads(parts.heads, parts.version),
            _varint(len(parts.raw)),
            _varint(len(parts.extra)),
            bytes([parts.lanes.bit_length()]),
            parts.raw,
            parts.extra,
            parts.coded,
        )
    )
    return body + _CHECKSUM.pack(binascii.crc32(body))


def _varint(number: int) -> bytes:
    """Seven bits a byte, low ones first; the top bit says that more follow."""
    out = bytearray()
    while number >= 0x80:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*out, number])


def _pack_heads(heads: list[Head], version: int) -> bytes:
    """Kind and gap to the previous leaf in one byte, the rest of a gap from 15, the step's upper half, the view."""
    out, previous = bytearray(), -1
    for kind, leaf, step, view in heads:
        gap = leaf - previous - 1
        out.append(KINDS.index(kind) << 4 | min(gap, 15))
        if gap >= 15:
            out += _varint(gap - 15)
        if kind not in STEPLESS:
            out += np.array(step, "<f4").tobytes()[2:]
        if version > 1 and view is not None:
            out += _varint(view)
        previous = leaf
    return bytes(out)


def parse(update: bytes) -> Update:
    """Takes an update apart.

    Args:
      update: any bytes.

    Returns:
      Its parts; sections are views.

    Raises:
      CorruptUpdateError: not an update, damaged, truncated, or of a version, flag or kind that this code does not know.
    """
    if update[: len(MAGIC)] != MAGIC:
        raise errors.CorruptUpdateError(f"not an update: expected it to begin with {MAGIC!r}, found {update[:4]!r}")
    if len(update) > len(MAGIC) and not 1 <= update[len(MAGIC)] <= VERSION:
        raise errors.CorruptUpdateError(
            f"format version: expected 1 to {VERSION}, found {update[4]}; "
            "install a newer updcomp or make the update anew"
        )
    body = memoryview(update)[: -_CHECKSUM.size]
    if len(body) < _FIXED.size or _CHECKSUM.pack(binascii.crc32(body)) != update[-_CHECKSUM.size :]:
        raise errors.CorruptUpdateError(f"checksum: the {len(update)} bytes are damaged or truncated; fetch them again")
    cursor = _Cursor(body)
    _, version, flags, base, result = _FIXED.unpack(cursor.take(_FIXED.size))
    if flags:
        raise errors.CorruptUpdateError(f"flags: expected 0, found {flags}; install a newer updcomp")
    seed = cursor.varint()
    if seed >= 1 << 32:
        raise errors.CorruptUpdateError(f"seed: expected less than 2^32, found {seed}")
    heads = _parse_heads(cursor, version)
    raw_size, extra_size, lane_bits = cursor.varint(), cursor.varint(), cursor.byte()
    if lane_bits > rans.MAX_LANES.bit_length():
        raise errors.CorruptUpdateError(f"lanes: expected at most {rans.MAX_LANES}, found 2^{lane_bits - 1}")
    raw, extra = cursor.take(raw_size), cursor.take(extra_size)
    return Update(version, base, result, seed, heads, raw, extra, 1 << lane_bits >> 1, cursor.left)


class _Cursor:
    """Reads the header."""

    def __init__(self, data: memoryview) -> None:
        self.left = data

    def take(self, size: int) -> memoryview:
        if size > len(self.left):
            raise errors.CorruptUpdateError(f"header and sections: expected {size} bytes, found {len(self.left)}")
        part, self.left = self.left[:size], self.left[size:]
        return part

    def byte(self) -> int:
        return self.take(1)[0]

    def varint(self, longest: int = _LONGEST_VARINT) -> int:
        number = 0
        for shift in range(0, 7 * longest, 7):
            byte = self.byte()
            number |= (byte & 0x7F) << shift
            if byte < 0x80:
                return number
        raise errors.CorruptUpdateError(f"header: expected a number of at most {longest} bytes")


def _parse_heads(cursor: _Cursor, version: int) -> list[Head]:
    heads: list[Head] = []
    count, leaf = cursor.varint(), -1
    if count > len(cursor.left):
        raise errors.CorruptUpdateError(f"header: expected at most {len(cursor.left)} blocks, found {count}")
    for _ in range(count):
        number, gap = divmod(cursor.byte(), 16)
        if number >= len(KINDS):
            raise errors.CorruptUpdateError(
                f"block kind: expected 0 to {len(KINDS) - 1}, found {number}; install a newer updcomp"
            )
        leaf += 1 + gap + (cursor.varint() if gap == 15 else 0)
        step = 0.0
        if KINDS[number] not in STEPLESS:
            step = float(np.frombuffer(b"\0\0" + bytes(cursor.take(2)), "<f4")[0])
            if not np.finfo(np.float32).tiny <= step < np.inf:
                raise errors.CorruptUpdateError(f"step: expected a positive normal number, found {step}")
        viewed = version > 1 and KINDS[number] in VIEWED
        heads.append(Head(KINDS[number], leaf, step, cursor.varint(_LONGEST_VIEW) if viewed else None))
    return heads
