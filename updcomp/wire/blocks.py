"""Blocks as bytes: what each kind puts into the raw section and the coded segments."""

import numpy as np

from updcomp.wire import basis, contexts, dtypes, errors, packet, streams, views
from updcomp.wire.header import VIEWED, Head


def version_of(block: packet.Block, ndim: int) -> int:
    """The first format version that can say a block of a leaf of so many axes."""
    view = getattr(block, "view", None)
    return 1 if view in (None, views.last_axis_out(ndim)) else 2


def write(block: packet.Block, old: dtypes.Array, leaf: int, writer: streams.Writer) -> Head:
    """Codes a block.

    Args:
      block: for this leaf; it fits.
      old: the held leaf.
      leaf: its index.
      writer: takes the block's segments.

    Returns:
      The block's header: Raw instead of an Exact block that codes larger.
    """
    match block:
        case packet.Raw(new):
            writer.raw(dtypes.hold(new))
        case packet.Exact(new):
            if not contexts.write_differences(writer, dtypes.hold(new), old):
                return write(packet.Raw(new), old, leaf, writer)
        case packet.Half(delta):
            writer.raw(dtypes.hold(delta))
        case packet.Dense(values, _, view):
            matrices = views.split(values, views.resolve(view, old.ndim))
            contexts.write_matrix(writer, matrices, (matrices.shape[0] * matrices.shape[1], matrices.shape[2]))
        case packet.Sparse(places, values):
            sent = values != 0
            _write_values(writer, values[sent])
            writer.integers(np.diff(places[sent], prepend=-1) - 1, signed=False)
        case packet.Seeded(values) | packet.Magnitude(values):
            _write_values(writer, values)
        case packet.Factors(left, right):
            writer.number(left.shape[1])
            contexts.write_matrix(writer, left, left.shape)
            contexts.write_matrix(writer, right, right.shape)
        case packet.Coefficients(values, rank):
            writer.number(rank)
            contexts.write_matrix(writer, values, values.shape)
    view_number = None
    if isinstance(block, packet.Dense | packet.Factors | packet.Coefficients):
        view_number = views.number(views.resolve(block.view, old.ndim), old.ndim)
    step = 0.0 if isinstance(block, packet.Raw | packet.Exact | packet.Half) else block.step
    return Head(type(block), leaf, step, view_number)


def _write_values(writer: streams.Writer, values: dtypes.Array) -> None:
    """Their number and the values."""
    writer.number(len(values))
    writer.integers(values, signed=True)


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
    kind, step = head.kind, head.step
    if kind is packet.Raw:
        return packet.Raw(reader.raw(old.shape, old.dtype))
    if kind is packet.Exact:
        return packet.Exact(contexts.read_differences(reader, old))
    dtypes.compute_dtype(old)
    if kind is packet.Half:
        return packet.Half(reader.raw(old.shape, np.dtype("<f2")))
    if kind in VIEWED:
        return _read_viewed(head, old, reader)
    count = _bounded(reader.number(), old.size)
    values = reader.integers(count, signed=True, dtype=np.int32)
    if kind is packet.Sparse:
        return packet.Sparse(_places(reader.integers(count, signed=False), old.size), values, step)
    return packet.Seeded(values, step) if kind is packet.Seeded else packet.Magnitude(values, step)


def _read_viewed(head: Head, old: dtypes.Array, reader: streams.Reader) -> packet.Block:
    """The kinds that see a leaf as matrices; their view is None where it is the default one."""
    default = views.last_axis_out(old.ndim)
    view = default if head.view is None else views.of_number(head.view, old.ndim)
    said = None if view == default else view
    stack, fan_in, fan_out = views.shape_of(old.shape, view)
    if head.kind is packet.Dense:
        values = contexts.read_matrix(reader, (stack * fan_in, fan_out))
        return packet.Dense(views.join(values, old.shape, view), head.step, said)
    if head.kind is packet.Factors:
        rank = _bounded(reader.number(), min(fan_in, fan_out))
        left, right = (contexts.read_matrix(reader, (stack * rows, rank)) for rows in (fan_in, fan_out))
        return packet.Factors(left, right, head.step, said)
    rank = _bounded(reader.number(), basis.max_rank(old.shape, view))
    values = contexts.read_matrix(reader, (stack * min(rank, fan_in), min(rank, fan_out)))
    return packet.Coefficients(values, rank, head.step, said)


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
