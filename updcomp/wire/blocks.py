"""Blocks as bytes: what each kind puts into the raw section and the coded segments."""

from typing import NamedTuple

import numpy as np

from updcomp.wire import basis, dtypes, errors, packet, streams

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


class Head(NamedTuple):
    """What a block's header says."""

    kind: type  # of `KINDS`
    index: int  # of the leaf in sorted name order
    step: float  # 0 for the kinds without


def write(block: packet.Block, old: dtypes.Array, writer: streams.Writer) -> type:
    """Codes a block.

    Args:
      block: for this leaf; it fits.
      old: the held leaf.
      writer: takes the block's segments.

    Returns:
      The kind that was written: Raw instead of an Exact block that codes larger.
    """
    match block:
        case packet.Raw(new):
            writer.raw(dtypes.hold(new))
        case packet.Exact(new):
            if not writer.differences(dtypes.hold(new), old):
                writer.raw(dtypes.hold(new))
                return packet.Raw
        case packet.Half(delta):
            writer.raw(dtypes.hold(delta))
        case packet.Dense(values):
            writer.matrix(values, dtypes.as_matrix_shape(old.shape))
        case packet.Sparse(places, values):
            writer.number(len(values))
            writer.integers(np.diff(places, prepend=-1) - 1, signed=False)
            writer.integers(values.astype(np.int64), signed=True)
        case packet.Seeded(values) | packet.Magnitude(values):
            writer.number(len(values))
            writer.integers(values.astype(np.int64), signed=True)
        case packet.Factors(left, right):
            writer.number(left.shape[1])
            writer.matrix(left, left.shape)
            writer.matrix(right, right.shape)
        case packet.Coefficients(values, rank):
            writer.number(rank)
            writer.matrix(values, values.shape)
    return type(block)


def read(head: Head, old: dtypes.Array, reader: streams.Reader) -> packet.Block:
    """The inverse of `write`.

    Args:
      head: of the block.
      old: the held leaf.
      reader: at the block's segments.

    Returns:
      A block that fits the leaf.

    Raises:
      CorruptUpdateError: the sections end before the block does, or hold what no writer writes.
      DtypeError: a lossy block for a leaf without floats.
    """
    kind, _, step = head
    if kind is packet.Raw:
        return packet.Raw(reader.raw(old.shape, old.dtype))
    if kind is packet.Exact:
        return packet.Exact(reader.differences(old))
    dtypes.compute_dtype(old)
    fan_in, fan_out = dtypes.as_matrix_shape(old.shape)
    if kind is packet.Half:
        return packet.Half(reader.raw(old.shape, np.dtype("<f2")))
    if kind is packet.Dense:
        return packet.Dense(reader.matrix((fan_in, fan_out)).reshape(old.shape), step)
    if kind is packet.Sparse:
        count = _bounded(reader.number(), old.size)
        places = _places(reader.integers(count, signed=False), old.size)
        return packet.Sparse(places, reader.values(count), step)
    if kind is packet.Seeded:
        return packet.Seeded(reader.values(_bounded(reader.number(), old.size)), step)
    if kind is packet.Magnitude:
        return packet.Magnitude(reader.values(_bounded(reader.number(), old.size)), step)
    if kind is packet.Factors:
        rank = _bounded(reader.number(), min(fan_in, fan_out))
        return packet.Factors(reader.matrix((fan_in, rank)), reader.matrix((fan_out, rank)), step)
    rank = _bounded(reader.number(), basis.max_rank(old.shape))
    return packet.Coefficients(reader.matrix((min(rank, fan_in), min(rank, fan_out))), rank, step)


def _bounded(number: int, largest: int) -> int:
    """Checks a count or rank before memory is taken for it."""
    if number > largest:
        raise errors.CorruptUpdateError(f"count or rank: expected at most {largest}, found {number}")
    return number


def _places(gaps: dtypes.Array, size: int) -> dtypes.Array:
    """The positions that these gaps separate."""
    # With every gap below the size, a sum that overflows passes a negative value on its way.
    if len(gaps) and (int(gaps.min()) < 0 or int(gaps.max()) >= size):
        raise errors.CorruptUpdateError(f"positions: expected gaps from 0 to {size - 1}")
    places = np.cumsum(gaps + 1) - 1
    if len(gaps) and (int(places.min()) < 0 or int(places.max()) >= size):
        raise errors.CorruptUpdateError(f"positions: expected 0 to {size - 1}")
    return places
