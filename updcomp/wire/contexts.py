"""Segments whose tokens have contexts: matrices by scales of rows and columns, exact leaves by the old weights."""

import math

import numpy as np

from updcomp.wire import costs, dtypes, lines, models, positions, streams
from updcomp.wire.coder import Coder

_CLASSES = 64  # contexts of a matrix, half-octaves of the mean magnitude from 2^-10
_SMALLEST = 64  # integers for which classes could pay
_EXPONENTS = 64  # contexts of an exact leaf


def write_matrix(writer: streams.Writer, values: dtypes.Array, shape: tuple[int, int]) -> None:
    """A matrix of integers, in one context or in one per scale class of row + column, whichever is smaller.

    Args:
      writer: takes the segments.
      values: int32 with rows * columns elements.
      shape: (rows, columns).
    """
    flat = values.reshape(-1).astype(np.int64)
    if not len(flat):
        return
    plain = streams.Writer()
    plain.integers(flat, signed=True)
    best = plain
    if len(flat) >= _SMALLEST:
        classed = streams.Writer()
        rows, columns = _classes(flat.reshape(shape))
        classed.integers(rows, signed=True)
        classed.integers(columns, signed=True)
        classed.tokens(streams.Segment.of(flat, signed=True), *_class_contexts(rows, columns))
        best = min(plain, classed, key=lambda candidate: candidate.cost)
    writer.symbol(int(best is not plain), 1)
    writer.extend(best)


def read_matrix(reader: streams.Reader, shape: tuple[int, int]) -> dtypes.Array:
    """The inverse of `write_matrix`; int32 of this shape."""
    count = shape[0] * shape[1]
    if not count or not reader.symbol(1):
        return reader.integers(count, signed=True, dtype=np.int32).reshape(shape)
    rows, columns = reader.integers(shape[0], signed=True), reader.integers(shape[1], signed=True)
    values = np.empty(count, np.int32)
    reader.tokens(values, *_class_contexts(rows, columns))
    return values.reshape(shape)


def matrix_cost(rows: int, columns: int, lanes: int) -> costs.Cost:
    """The cost of `read_matrix`: its elements, and the classes of rows and columns; nothing if it is empty."""
    if not rows * columns:
        return costs.Cost(0, 0)
    parts = [costs.tokens(rows * columns, lanes)] + [costs.tokens(part, lanes, contexts=1) for part in (rows, columns)]
    held = 16 * (rows + columns)
    return costs.Cost(sum(part.operations for part in parts), held + max(part.working_bytes for part in parts))


def _class_contexts(rows: dtypes.Array, columns: dtypes.Array) -> tuple[dtypes.Array, streams.Contexts]:
    """The class clip(20 + row + column, 0, 63) of every element, as (scales, contexts)."""
    # Parts beyond +-128 give the clipped sums anyway, and int16 holds all others.
    rows, columns = (np.clip(part, -128, 128).astype(np.int16) for part in (rows, columns))
    sums = np.clip(models.UNIT_SCALE + np.unique(rows)[:, None] + np.unique(columns), 0, _CLASSES - 1)
    occurring = np.unique(sums).astype(np.int64)
    places = _places(occurring)

    def contexts(part: slice) -> dtypes.Array:
        if len(columns) > part.stop - part.start:
            row, column = np.divmod(np.arange(part.start, part.stop), len(columns))
            return places[np.clip(models.UNIT_SCALE + rows[row] + columns[column], 0, _CLASSES - 1)]
        first, last = part.start // len(columns), -(-part.stop // len(columns))
        sums = models.UNIT_SCALE + rows[first:last, None] + columns
        classes = places[np.clip(sums, 0, _CLASSES - 1, out=sums)].reshape(-1)
        return classes[part.start - first * len(columns) : part.stop - first * len(columns)]

    return occurring, contexts


def _places(occurring: dtypes.Array) -> dtypes.Array:
    """uint8: the place of each class among those that occur, which are ascending."""
    places = np.zeros(int(occurring[-1]) + 1, np.uint8)
    places[occurring] = np.arange(len(occurring))
    return places


def _classes(values: dtypes.Array) -> tuple[dtypes.Array, dtypes.Array]:
    """Half-octaves (r, c) with mean |values_ij| about 2^((r_i + c_j) / 2)."""
    rows, columns = lines.logs(np.abs(values).astype(np.float32))
    shift = np.median(rows)
    rows = np.rint(2 * (rows - shift)).astype(np.int64)
    columns = np.rint(2 * (columns + shift)).astype(np.int64)
    return np.clip(rows, -128, 127), np.clip(columns, -128, 127)


def write_values(writer: streams.Writer, values: dtypes.Array) -> None:
    """Signed integers in one context.

    Args:
      writer: takes the segment.
      values: int32 (k,).
    """
    writer.integers(values, signed=True)


def read_values(reader: streams.Reader, count: int) -> dtypes.Array:
    """The inverse of `write_values`; int32 (count,)."""
    return reader.integers(count, signed=True, dtype=np.int32)


def values_cost(count: int, lanes: int) -> costs.Cost:
    """The cost of `read_values`."""
    return costs.tokens(count, lanes, contexts=1)


def write_positions(writer: streams.Writer, places: dtypes.Array, _: tuple[int, ...]) -> None:
    """Positions in a leaf as gaps in one context.

    Args:
      writer: takes the segment.
      places: int64 (k,), strictly ascending.
    """
    writer.integers(np.diff(places, prepend=-1) - 1, signed=False)


def read_positions(reader: streams.Reader, count: int, shape: tuple[int, ...]) -> dtypes.Array:
    """The inverse of `write_positions`; int64 (count,)."""
    return positions.of_gaps(reader.integers(count, signed=False), math.prod(shape))


CODER = Coder(
    write_matrix,
    read_matrix,
    matrix_cost,
    write_values,
    read_values,
    values_cost,
    write_positions,
    read_positions,
    values_cost,
)
"""Of versions 1 to 3."""


def write_differences(writer: streams.Writer, new: dtypes.Array, old: dtypes.Array) -> bool:
    """The bits of a leaf as differences from the old ones, by the old exponent, if smaller than the bits themselves.

    Args:
      writer: takes the segment.
      new: held leaf.
      old: held leaf of the same shape and dtype.

    Returns:
      Whether the segment was written.
    """
    bits = dtypes.flat_bits(new) - dtypes.flat_bits(old)
    segment = streams.Segment.of(bits.view(f"<i{bits.itemsize}").astype(np.int64), signed=True)
    scale = segment.best_scale()
    candidate = streams.Writer()
    candidate.symbol(scale, models.SCALE_BITS)
    candidate.tokens(segment, *_exponent_contexts(old, scale))
    smaller = candidate.cost < 8 * new.nbytes
    if smaller:
        writer.extend(candidate)
    return smaller


def read_differences(reader: streams.Reader, old: dtypes.Array) -> dtypes.Array:
    """The inverse of `write_differences`: the new leaf."""
    bits = dtypes.flat_bits(old)
    differences = np.empty(len(bits), f"<i{bits.itemsize}")
    scale = reader.symbol(models.SCALE_BITS)
    reader.tokens(differences, *_exponent_contexts(old, scale))
    new = differences.view(bits.dtype)
    new += bits
    return dtypes.from_bits(new, old)


def _exponent_contexts(old: dtypes.Array, scale: int) -> tuple[dtypes.Array, streams.Contexts | None]:
    """The old weights' exponents around the most frequent (the smallest of these), as (scales, contexts)."""
    histogram = dtypes.exponent_histogram(old)
    if histogram is None or not old.size:
        return np.array([scale]), None
    first = int(histogram.argmax()) - _EXPONENTS // 2
    occurring = np.unique(np.clip(np.flatnonzero(histogram) - first, 0, _EXPONENTS - 1))
    places, flat = _places(occurring), old.reshape(-1)

    def contexts(part: slice) -> dtypes.Array:
        exponents = dtypes.exponents(flat[part])
        assert exponents is not None, "the histogram is that of a float dtype"
        return places[np.clip(exponents - first, 0, _EXPONENTS - 1)]

    return np.full(len(occurring), scale), contexts
