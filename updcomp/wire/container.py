"""An update as bytes: header, block headers, payload sections, checksum. `FORMAT.md` is the specification."""

import binascii
import struct
from typing import Any, NamedTuple

import numpy as np

from updcomp.wire import apply as apply_
from updcomp.wire import blocks, dtypes, errors, fingerprint, packet, rans, streams

MAGIC = b"updc"
VERSION = 1
_FIXED = struct.Struct("<4sBB16s16s")  # magic, version, flags, fingerprints of the base and of the result
_CHECKSUM = 4
_MAX_VARINT = 5


class _Parsed(NamedTuple):
    """An update taken apart, nothing decoded yet."""

    base: bytes  # fingerprint of the model that it starts from
    result: bytes  # fingerprint of the model that it must give
    seed: int
    heads: list[blocks.Head]
    raw: memoryview  # sections
    extra: memoryview
    lanes: int
    coded: memoryview


def encode(update: packet.Packet, base: dtypes.Model) -> bytes:
    """The smallest update file for a packet.

    Blocks and sparse entries that change nothing are left out; an exact block that codes larger than its bits is sent
    raw.

    Args:
      update: the packet.
      base: the deployed model that it starts from.

    Returns:
      The file's bytes.

    Raises:
      Error: a block does not fit its leaf.
    """
    if not 0 <= update.seed < 1 << 32:
        raise errors.Error(f"seed: expected 0 to 2^32 - 1, found {update.seed}")
    digests = {name: fingerprint.leaf_digest(name, leaf) for name, leaf in base.items()}
    result = apply_.apply(update, base)
    indices = apply_.leaf_indices(base)
    writer, heads = streams.Writer(), []
    new_digests = dict(digests)
    for name in sorted(update.blocks):
        new_digests[name] = fingerprint.leaf_digest(name, result[name])
        if new_digests[name] == digests[name]:
            continue
        block = _without_zeros(update.blocks[name])
        kind = blocks.write(block, dtypes.hold(base[name]), writer)
        heads.append(blocks.Head(kind, indices[name], 0.0 if kind in blocks.STEPLESS else block.step))
    raw, extra, lanes, coded = writer.finish()
    body = b"".join([
        _FIXED.pack(MAGIC, VERSION, 0, fingerprint.of_digests(digests), fingerprint.of_digests(new_digests)),
        _varint(update.seed),
        _varint(len(heads)),
        _pack_heads(heads),
        _varint(len(raw)),
        _varint(len(extra)),
        bytes([lanes.bit_length()]),
        raw,
        extra,
        coded,
    ])
    return body + struct.pack("<I", binascii.crc32(body))


def decode(update: bytes, base: dtypes.Model) -> packet.Packet:
    """The packet in an update.

    Args:
      update: the file's bytes.
      base: the model that it starts from.

    Returns:
      The packet; blocks that change nothing are missing.

    Raises:
      CorruptUpdateError: damaged, truncated, or of a version or kind that this code does not know.
      WrongBaseError: the base is another model.
    """
    parsed = _parse(update)
    _check_base(parsed, fingerprint.of(base))
    return _decode(parsed, base)


def apply_update(update: bytes, base: dtypes.Model) -> dtypes.Model:
    """The model that an update makes of its base, verified.

    Args:
      update: the file's bytes.
      base: leaf name -> array; it is not changed.

    Returns:
      A new dict; leaves that the update keeps are the same array objects.

    Raises:
      CorruptUpdateError: as `decode`, or the result is not the one that the update promises.
      WrongBaseError: the base is another model.
    """
    parsed = _parse(update)
    digests = {name: fingerprint.leaf_digest(name, leaf) for name, leaf in base.items()}
    _check_base(parsed, fingerprint.of_digests(digests))
    new = apply_.apply(_decode(parsed, base), base)
    changed = {name: fingerprint.leaf_digest(name, leaf) for name, leaf in new.items() if leaf is not base[name]}
    found = fingerprint.of_digests(digests | changed)
    if found != parsed.result:
        raise errors.CorruptUpdateError(
            f"result: expected the model {parsed.result.hex()}, found {found.hex()}; fetch the update again"
        )
    return new


def inspect(update: bytes) -> dict[str, Any]:
    """What an update says of itself, without any model.

    Args:
      update: the file's bytes.

    Returns:
      format_version, bytes, base and result (fingerprints in hex), seed, blocks (kind, leaf_index, step of each), kinds
      (how many of each), and bytes_by_part (header with the checksum, raw, extra_bits, coded), which add up to bytes.

    Raises:
      CorruptUpdateError: as `decode`.
    """
    parsed = _parse(update)
    sections = {"raw": len(parsed.raw), "extra_bits": len(parsed.extra), "coded": len(parsed.coded)}
    kinds = [head.kind.__name__.lower() for head in parsed.heads]
    return {
        "format_version": VERSION,
        "bytes": len(update),
        "base": parsed.base.hex(),
        "result": parsed.result.hex(),
        "seed": parsed.seed,
        "blocks": [
            {"kind": kind, "leaf_index": head.index} | ({} if head.kind in blocks.STEPLESS else {"step": head.step})
            for kind, head in zip(kinds, parsed.heads, strict=True)
        ],
        "kinds": {kind: kinds.count(kind) for kind in sorted(set(kinds))},
        "bytes_by_part": {
            "header": len(update) - sum(sections.values()),
            **sections,
        },
    }


def _check_base(parsed: _Parsed, found: bytes) -> None:
    if found != parsed.base:
        raise errors.WrongBaseError(
            f"base model: expected the one with fingerprint {parsed.base.hex()}, found {found.hex()}; "
            "apply the update to the model that it was made from"
        )


def _without_zeros(block: packet.Block) -> packet.Block:
    """A sparse block without the entries that change nothing."""
    if isinstance(block, packet.Sparse):
        sent = block.values != 0
        return packet.Sparse(block.positions[sent], block.values[sent], block.step)
    return block


def _varint(number: int) -> bytes:
    """Seven bits a byte, low ones first; the top bit says that more follow."""
    out = bytearray()
    while number >= 0x80:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*out, number])


def _pack_heads(heads: list[blocks.Head]) -> bytes:
    """Kind and gap to the previous leaf in one byte, the rest of a gap from 15, the step's upper half."""
    out, previous = bytearray(), -1
    for kind, index, step in heads:
        gap = index - previous - 1
        out.append(blocks.KINDS.index(kind) << 4 | min(gap, 15))
        if gap >= 15:
            out += _varint(gap - 15)
        if kind not in blocks.STEPLESS:
            out += np.array(step, "<f4").tobytes()[2:]
        previous = index
    return bytes(out)


class _Cursor:
    """Reads the header."""

    def __init__(self, data: memoryview) -> None:
        self.left = data

    def take(self, size: int) -> memoryview:
        if size > len(self.left):
            raise errors.CorruptUpdateError(f"header and sections: expected {size} more bytes, found {len(self.left)}")
        part, self.left = self.left[:size], self.left[size:]
        return part

    def byte(self) -> int:
        return self.take(1)[0]

    def varint(self) -> int:
        number = 0
        for shift in range(0, 7 * _MAX_VARINT, 7):
            byte = self.byte()
            number |= (byte & 0x7F) << shift
            if byte < 0x80:
                return number
        raise errors.CorruptUpdateError(f"header: expected a number of at most {_MAX_VARINT} bytes")


def _parse(update: bytes) -> _Parsed:
    """Checks everything that can be checked without the model."""
    smallest = _FIXED.size + 4 + _CHECKSUM
    if update[:4] != MAGIC[: len(update)] or not update:
        raise errors.CorruptUpdateError(f"not an update: expected it to begin with {MAGIC!r}, found {update[:4]!r}")
    if len(update) > 4 and update[4] != VERSION:
        raise errors.CorruptUpdateError(
            f"format version: expected {VERSION}, found {update[4]}; install a newer updcomp or make the update anew"
        )
    if len(update) < smallest:
        raise errors.CorruptUpdateError(f"truncated: expected at least {smallest} bytes, found {len(update)}")
    body = memoryview(update)[:-_CHECKSUM]
    if struct.unpack("<I", update[-_CHECKSUM:])[0] != binascii.crc32(body):
        raise errors.CorruptUpdateError(f"checksum: the {len(update)} bytes are damaged or truncated; fetch them again")
    cursor = _Cursor(body)
    _, _, flags, base, result = _FIXED.unpack(cursor.take(_FIXED.size))
    if flags:
        raise errors.CorruptUpdateError(f"flags: expected 0, found {flags}; a newer updcomp may read it")
    seed = cursor.varint()
    if seed >= 1 << 32:
        raise errors.CorruptUpdateError(f"seed: expected less than 2^32, found {seed}")
    heads = _read_heads(cursor)
    raw_size, extra_size, lane_bits = cursor.varint(), cursor.varint(), cursor.byte()
    if lane_bits > rans.MAX_LANES.bit_length():
        raise errors.CorruptUpdateError(f"lanes: expected at most {rans.MAX_LANES}, found 2^{lane_bits - 1}")
    raw, extra = cursor.take(raw_size), cursor.take(extra_size)
    return _Parsed(base, result, seed, heads, raw, extra, 1 << lane_bits >> 1, cursor.left)


def _read_heads(cursor: _Cursor) -> list[blocks.Head]:
    heads: list[blocks.Head] = []
    count, index = cursor.varint(), -1
    if count > len(cursor.left):
        raise errors.CorruptUpdateError(f"header: expected at most {len(cursor.left)} blocks, found {count}")
    for _ in range(count):
        number, gap = divmod(cursor.byte(), 16)
        if number >= len(blocks.KINDS):
            raise errors.CorruptUpdateError(
                f"block kind: expected 0 to {len(blocks.KINDS) - 1}, found {number}; a newer updcomp may read it"
            )
        kind = blocks.KINDS[number]
        index += 1 + gap + (cursor.varint() if gap == 15 else 0)
        step = 0.0
        if kind not in blocks.STEPLESS:
            step = float(np.frombuffer(b"\0\0" + bytes(cursor.take(2)), "<f4")[0])
            if not np.finfo(np.float32).tiny <= step < np.inf:
                raise errors.CorruptUpdateError(f"step: expected a positive normal number, found {step}")
        heads.append(blocks.Head(kind, index, step))
    return heads


def _decode(parsed: _Parsed, base: dtypes.Model) -> packet.Packet:
    """Decodes the payload; every size is bounded by the base's leaves."""
    names = sorted(base)
    reader = streams.Reader(parsed.raw, parsed.extra, parsed.lanes, parsed.coded)
    decoded = {}
    for head in parsed.heads:
        if head.index >= len(names):
            raise errors.CorruptUpdateError(f"leaf index: expected less than {len(names)}, found {head.index}")
        name = names[head.index]
        try:
            decoded[name] = blocks.read(head, dtypes.hold(base[name]), reader)
        except errors.Error as error:
            raise type(error)(f"leaf {name!r}: {error}") from None
    reader.finish()
    return packet.Packet(decoded, parsed.seed)
