"""How version 4 codes the integers of lossy blocks: in whichever way takes fewest bytes.

The modes: all at once, in one context or in classes (`contexts`); one after another (`sequential`), where they are
few and small; in rounds (`fitted`), where they are many. What a mode takes beyond the first, a reader charges when it
reads which one it is; a writer takes only what it may.
"""

import math
from collections.abc import Iterator

import numpy as np

from updcomp.wire import contexts, costs, dtypes, errors, fitted, scattered, sequential, streams
from updcomp.wire.coder import Coder

_MODE_BITS = 3
_PLAIN = 0
_BOUNDS = {1: 1, 2: 3, 3: 7, 4: 15}  # of magnitudes, by mode
_RANKS = {5: 0, 6: 12, 7: 48}


def write_matrix(writer: streams.Writer, values: dtypes.Array, shape: tuple[int, int]) -> None:
    """A matrix of integers.

    Args:
      writer: takes the segments.
      values: int32 with rows * columns elements.
      shape: (rows, columns).
    """
    if not values.size:
        return
    matrix = values.reshape(shape)
    largest = max(int(matrix.max()), -int(matrix.min()))
    best, found = _PLAIN, _in_mode(_PLAIN, matrix)
    for mode, after in _possible(shape, largest):
        if (after is None or best in after) and writer.may_take(_extra(mode, shape)):
            candidate = _in_mode(mode, matrix)
            if candidate.cost < found.cost:
                best, found = mode, candidate
    writer.take(_extra(best, shape))
    writer.extend(found)


def read_matrix(reader: streams.Reader, shape: tuple[int, int]) -> dtypes.Array:
    """The inverse of `write_matrix`; int32 of this shape."""
    if not shape[0] * shape[1]:
        return np.empty(shape, np.int32)
    mode = reader.symbol(_MODE_BITS)
    if mode == _PLAIN:
        return contexts.read_matrix(reader, shape)
    if mode in _BOUNDS and shape[0] * shape[1] > sequential.LARGEST:
        raise errors.CorruptUpdateError(f"mode: expected at most {sequential.LARGEST} integers one after another")
    reader.charge(_extra(mode, shape))
    if mode in _BOUNDS:
        return sequential.read(reader, shape, _BOUNDS[mode])
    return fitted.read(reader, shape, _RANKS[mode])


def _possible(shape: tuple[int, int], largest: int) -> Iterator[tuple[int, tuple[int, ...] | None]]:
    """The modes that a writer tries beside the first, each with those that must be the best so far, if any."""
    if shape[0] * shape[1] <= sequential.LARGEST:
        yield from [(mode, None) for mode, bound in _BOUNDS.items() if largest <= bound][:1]
    if fitted.is_worth(shape):
        # Where a few directions help, more may; where they do not, scales alone may.
        yield from ((6, None), (7, (6,)), (5, (_PLAIN, *_BOUNDS)))


def _extra(mode: int, shape: tuple[int, int]) -> costs.Cost:
    """What a mode takes beyond the first."""
    if mode in _BOUNDS:
        return sequential.extra_cost(shape)
    return fitted.extra_cost(shape, _RANKS[mode]) if mode in _RANKS else costs.Cost(0, 0)


def _in_mode(mode: int, matrix: dtypes.Array) -> streams.Writer:
    writer = streams.Writer()
    writer.symbol(mode, _MODE_BITS)
    if mode == _PLAIN:
        contexts.write_matrix(writer, matrix, matrix.shape)
    elif mode in _BOUNDS:
        sequential.write(writer, matrix, _BOUNDS[mode])
    else:
        fitted.write(writer, matrix, _RANKS[mode])
    return writer


def write_values(writer: streams.Writer, values: dtypes.Array) -> None:
    """Integers at some positions, as a matrix of one row; int32 (k,)."""
    write_matrix(writer, values, (1, len(values)))


def read_values(reader: streams.Reader, count: int) -> dtypes.Array:
    """The inverse of `write_values`; int32 (count,)."""
    return read_matrix(reader, (1, count)).reshape(-1)


def values_cost(count: int, lanes: int) -> costs.Cost:
    """The cost of `read_values`, but for what its mode takes beyond the first."""
    return contexts.matrix_cost(1, count, lanes)


def write_positions(writer: streams.Writer, places: dtypes.Array, shape: tuple[int, ...]) -> None:
    """Positions in a leaf, as gaps or row by row.

    Args:
      writer: takes the segments.
      places: int64 (k,), strictly ascending.
      shape: of the leaf.
    """
    if not len(places):
        return
    matrix = _last_axis(shape)
    plain, rows = streams.Writer(), streams.Writer()
    contexts.write_positions(plain, places, shape)
    extra = scattered.extra_cost(len(places), matrix)
    if scattered.is_possible(len(places), matrix) and writer.may_take(extra):
        scattered.write(rows, places, matrix)
        if rows.cost < plain.cost:
            writer.symbol(1, 1)
            writer.take(extra)
            writer.extend(rows)
            return
    writer.symbol(0, 1)
    writer.extend(plain)


def read_positions(reader: streams.Reader, count: int, shape: tuple[int, ...]) -> dtypes.Array:
    """The inverse of `write_positions`; int64 (count,)."""
    if not count:
        return np.empty(0, np.int64)
    matrix = _last_axis(shape)
    if not reader.symbol(1):
        return contexts.read_positions(reader, count, shape)
    if not scattered.is_possible(count, matrix):
        raise errors.CorruptUpdateError(f"positions: expected gaps of {count} in {matrix}, found rows")
    reader.charge(scattered.extra_cost(count, matrix))
    return scattered.read(reader, count, matrix)


def _last_axis(shape: tuple[int, ...]) -> tuple[int, int]:
    """A leaf as a matrix, its columns those of its last axis."""
    columns = shape[-1] if shape else 1
    return math.prod(shape[:-1]), columns


CODER = Coder(
    write_matrix,
    read_matrix,
    contexts.matrix_cost,
    write_values,
    read_values,
    values_cost,
    write_positions,
    read_positions,
    contexts.values_cost,
)
"""Of version 4."""
