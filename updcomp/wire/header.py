"""The header of an update: what can be read, and checked, without the model."""

import binascii
import struct
from collections.abc import Sized
from typing import NamedTuple

import numpy as np

from updcomp.wire import errors, fingerprint, metadata, rans, versions
from updcomp.wire import structure as structure_
from updcomp.wire.kind import Head
from updcomp.wire.structure import Structure

MAGIC = b"updc"
FIXED_SIZE = len(MAGIC) + 2  # magic, version, flags

_CHECKSUM = struct.Struct("<I")
_OPTIONAL = (versions.SEED, versions.RAW, versions.EXTRA)
_LONGEST_VARINT = 5
_MOST_BLOCKS = 1 << 16  # of an update whose model is not known
_LONGEST_SIZE = 9  # bytes of a varint below 2^63
_LONGEST_VIEW = 15  # bytes of a varint below 3^64, NumPy's most axes


class Parts(NamedTuple):
    """An update taken apart, its payload not decoded."""

    version: versions.Version
    base: bytes  # fingerprint of the model that it starts from, of 16 bytes, or 8 of a compact update
    result: bytes  # fingerprint of the model that it must give, as long
    seed: int
    heads: list[Head]
    raw: bytes | memoryview  # section
    extra: bytes | memoryview  # section
    lanes: int
    coded: bytes | memoryview  # section
    change: metadata.Change | None = None  # of the metadata of the model's file; None: the update says nothing of it
    structure: Structure | None = None  # leaves that come and go

    @property
    def is_compact(self) -> bool:
        """Whether its fingerprints are short, and take the place of the checksum."""
        return len(self.base) == fingerprint.SHORT_SIZE

    @property
    def has_views(self) -> bool:
        """Whether the header says the views of blocks; else all are the default one."""
        return any(head.view is not None for head in self.heads)


def pack(parts: Parts) -> bytes:
    """The update's bytes: header, block headers, sections, and CRC-32 but of a compact one."""
    flags = versions.VIEWS * parts.has_views | versions.METADATA * (parts.change is not None)
    flags |= versions.STRUCTURE * (parts.structure is not None) | versions.COMPACT * parts.is_compact
    fields = {versions.SEED: parts.seed, versions.RAW: len(parts.raw), versions.EXTRA: len(parts.extra)}
    if parts.version.is_short:
        fields = {flag: number for flag, number in fields.items() if number}
        flags |= sum(fields)
    seed, *sizes = (_varint(fields[flag]) if flag in fields else b"" for flag in _OPTIONAL)
    body = b"".join(
        (
            MAGIC,
            bytes([parts.version.number, flags]),
            parts.base,
            parts.result,
            seed,
            _pack_structure(parts.structure),
            _varint(len(parts.heads)),
            _pack_heads(parts.heads, parts.version),
            _pack_change(parts.change),
            *sizes,
            bytes([parts.lanes.bit_length()]),
            parts.raw,
            parts.extra,
            parts.coded,
        )
    )
    return body if parts.is_compact else body + _CHECKSUM.pack(binascii.crc32(body))


def _varint(number: int) -> bytes:
    """Seven bits a byte, low ones first; the top bit says that more follow."""
    out = bytearray()
    while number >= 0x80:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*out, number])


def _pack_structure(structure: Structure | None) -> bytes:
    if structure is None:
        return b""
    packed = structure_.pack(structure)
    return _varint(len(packed)) + packed


def _pack_change(change: metadata.Change | None) -> bytes:
    """Digest and compressed changes of the metadata."""
    return b"" if change is None else change.digest + _varint(len(change.changes)) + change.changes


def _pack_heads(heads: list[Head], version: versions.Version) -> bytes:
    """Kind and gap to the previous leaf in one byte, the rest of a gap from 15, the step's upper half, size, view."""
    out, previous = bytearray(), -1
    for kind, leaf, step, size, view in heads:
        gap = leaf - previous - 1
        out.append(kind.number << 4 | min(gap, 15))
        if gap >= 15:
            out += _varint(gap - 15)
        if kind.stepped:
            out += np.array(step, "<f4").tobytes()[2:]
        if size is not None and version.sizes_in_header:
            out += _varint(size)
        if view is not None:
            out += _varint(view)
        previous = leaf
    return bytes(out)


def has_structure(start: bytes) -> bool:
    """Whether an update that begins with these bytes says that leaves come or go."""
    known = versions.VERSIONS.get(start[-2]) if len(start) == FIXED_SIZE else None
    return known is not None and bool(start[-1] & known.flags & versions.STRUCTURE)


def fingerprints(update: bytes) -> tuple[bytes, bytes]:
    """The fingerprints of the base and of the result.

    Args:
      update: any bytes.

    Returns:
      16 bytes each, 8 of a compact update.

    Raises:
      CorruptUpdateError: not an update, damaged, truncated, or of a version or flag that this code does not know.
    """
    _, _, base, result = _open(update)[1]
    return base, result


def parse(update: bytes, model: Sized | None = None) -> Parts:
    """Takes an update apart.

    Args:
      update: any bytes.
      model: that it is for, whose number of leaves bounds that of the blocks.

    Returns:
      Its parts; sections are views.

    Raises:
      CorruptUpdateError: as `fingerprints`, or a kind that this code does not know, or more blocks than leaves.
    """
    cursor, (version, flags, base, result) = _open(update)
    seed = _optional(cursor, version, flags, versions.SEED)
    if seed >= 1 << 32:
        raise errors.CorruptUpdateError(f"seed: expected less than 2^32, found {seed}")
    structure, leaves = None, _MOST_BLOCKS if model is None else len(model)
    if flags & versions.STRUCTURE:
        structure = structure_.unpack(bytes(cursor.take(cursor.varint())))
        leaves += len(structure.added)
    heads = _parse_heads(cursor, version, leaves, views=bool(flags & versions.VIEWS))
    change = None
    if flags & versions.METADATA:
        digest = bytes(cursor.take(metadata.DIGEST_SIZE))
        change = metadata.Change(digest, bytes(cursor.take(cursor.varint())))
    raw_size, extra_size = (_optional(cursor, version, flags, flag) for flag in (versions.RAW, versions.EXTRA))
    lane_bits = cursor.byte()
    if lane_bits > rans.MAX_LANES.bit_length():
        raise errors.CorruptUpdateError(f"lanes: expected at most {rans.MAX_LANES}, found 2^{lane_bits - 1}")
    raw, extra = cursor.take(raw_size), cursor.take(extra_size)
    lanes = 1 << lane_bits >> 1
    return Parts(version, base, result, seed, heads, raw, extra, lanes, cursor.left, change, structure)


def _optional(cursor: "_Cursor", version: versions.Version, flags: int, flag: int) -> int:
    """The next number, or 0 where its flag says that it is left out; where it is there it is not 0."""
    if version.is_short and not flags & flag:
        return 0
    number = cursor.varint(_LONGEST_SIZE if version.is_short else _LONGEST_VARINT)
    if version.is_short and not number:
        raise errors.CorruptUpdateError(f"flags: expected a number other than 0 where flag {flag} is set, found 0")
    return number


def _open(update: bytes) -> tuple["_Cursor", tuple[versions.Version, int, bytes, bytes]]:
    """What follows the fixed part, and (version, flags, base, result)."""
    if update[: len(MAGIC)] != MAGIC:
        raise errors.CorruptUpdateError(f"not an update: expected it to begin with {MAGIC!r}, found {update[:4]!r}")
    if len(update) > len(MAGIC) and update[len(MAGIC)] not in versions.VERSIONS:
        raise errors.CorruptUpdateError(
            f"format version: expected 1 to {versions.NEWEST.number}, found {update[4]}; "
            "install a newer updcomp, or fetch the update again"
        )
    number, flags = (*update[len(MAGIC) : FIXED_SIZE], 0, 0)[:2]
    version = versions.VERSIONS.get(number, versions.NEWEST)
    is_compact = bool(flags & version.flags & versions.COMPACT)
    body, size = memoryview(update), fingerprint.SHORT_SIZE if is_compact else fingerprint.SIZE
    if not is_compact:
        body, checksum = body[: -_CHECKSUM.size], update[-_CHECKSUM.size :]
        if len(body) < FIXED_SIZE + 2 * size or _CHECKSUM.pack(binascii.crc32(body)) != checksum:
            raise errors.CorruptUpdateError(
                f"checksum: the {len(update)} bytes are damaged or truncated; fetch them again"
            )
    cursor = _Cursor(body[FIXED_SIZE:])
    base, result = bytes(cursor.take(size)), bytes(cursor.take(size))
    if flags & ~version.flags:
        raise errors.CorruptUpdateError(
            f"flags: expected none beyond {version.flags}, found {flags}; install a newer updcomp"
        )
    return cursor, (version, flags, base, result)


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
                if shift and not byte:
                    raise errors.CorruptUpdateError("header: expected numbers without leading zeros")
                return number
        raise errors.CorruptUpdateError(f"header: expected a number of at most {longest} bytes")


def _parse_heads(cursor: _Cursor, version: versions.Version, leaves: int, *, views: bool) -> list[Head]:
    heads: list[Head] = []
    count, leaf = cursor.varint(), -1
    if count > (most := min(leaves, len(cursor.left))):
        raise errors.CorruptUpdateError(f"header: expected at most {most} blocks, found {count}")
    for _ in range(count):
        number, gap = divmod(cursor.byte(), 16)
        if number not in version.kinds:
            raise errors.CorruptUpdateError(
                f"block kind: expected 0 to {max(version.kinds)}, found {number}; install a newer updcomp"
            )
        kind = version.kinds[number]
        leaf += 1 + gap + (cursor.varint() if gap == 15 else 0)
        if leaf >= leaves:
            raise errors.CorruptUpdateError(f"leaf index: expected less than {leaves}, found {leaf}")
        step = 0.0
        if kind.stepped:
            step = float(np.frombuffer(b"\0\0" + bytes(cursor.take(2)), "<f4")[0])
            if not np.finfo(np.float32).tiny <= step < np.inf:
                raise errors.CorruptUpdateError(f"step: expected a positive normal number, found {step}")
        size = cursor.varint(_LONGEST_SIZE) if kind.sized and version.sizes_in_header else None
        view = cursor.varint(_LONGEST_VIEW) if kind.viewed and views else None
        heads.append(Head(kind, leaf, step, size, view))
    if views and not any(head.view is not None for head in heads):
        raise errors.CorruptUpdateError("flags: expected a block with a view, found none")
    return heads
