"""A leaf of which most weights change: a move for every weight, by how far its row and its column move.

The size of a move is about that of its row times that of its column, and in units in the last place also inversely that
of the old weight. In half-octaves the three add up: their sum is the context, and the scale of its prior.
"""

import math
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from updcomp.wire import cells, changes, costs, dtypes, errors, kind, lines, models, pieces, streams, tokens, workers

_CONTEXTS = 64
_MIDDLE = 32
_PIECE = 1 << 20  # weights of a piece
_WIDEST = 1 << 14  # columns that have sizes of their own
_SMALLEST = 64  # weights for which sizes of rows and columns could pay
_FURTHEST = 127
_PER_WEIGHT = 12  # operations: of cells, and their plain bits
_HELD = 20  # bytes of a weight of a piece: its token and context, and in half of a piece what decoding them takes
_SLICE = 1 << 16  # weights whose plain bits are together
_SLICE_BYTES = 128 * _SLICE

Layout = tuple[int, int]


class _Sizes(NamedTuple):
    """Of moves, in half-octaves."""

    scale: int  # in the middle
    middle: int  # the old exponent of such a weight; 0 where that does not count
    rows: dtypes.Array | None  # int64 (rows,); None: all rows and columns are alike
    columns: dtypes.Array | None  # int64 (columns,)


def write(writer: streams.Writer, new: dtypes.Array, old: dtypes.Array) -> bool | kind.Later:
    """Writes a leaf, in pieces if it is large.

    Args:
      writer: of the update.
      new: held leaf.
      old: held leaf of the same shape and dtype.

    Returns:
      Whether it was written: not if that is no smaller than its bits; of a large one later.
    """
    layout, bits = dtypes.layout(old), (dtypes.flat_bits(new), dtypes.flat_bits(old))
    columns, parts = _parts(old)

    def code(own: streams.Writer, part: slice) -> None:
        _write(own, bits[0][part], bits[1][part], columns, layout)

    if len(bits[0]) < pieces.LEAST:
        candidate = streams.Writer()
        code(candidate, slice(None))
        smaller = candidate.cost < 8 * old.nbytes
        if smaller:
            writer.extend(candidate)
        return smaller

    def piece(part: slice) -> bytes:
        own = pieces.Writer()
        code(own, part)
        return own.pack(pieces.lanes_of(part.stop - part.start))

    made = workers.each(piece, parts, pieces.at_once(old.nbytes))
    return kind.Later(lambda: pieces.together(made, old.nbytes))


def read(reader: streams.Reader, old: dtypes.Array) -> dtypes.Array | kind.Later:
    """The inverse of `write`: the new leaf."""
    layout, bits = dtypes.layout(old), dtypes.flat_bits(old)
    new = np.empty_like(bits)
    columns, parts = _parts(old)
    if not len(bits):
        return dtypes.from_bits(new, old)
    if len(bits) < pieces.LEAST:
        new[:] = _read(reader, bits, columns, layout)
        return dtypes.from_bits(new, old)
    own = [pieces.readers(reader, 1, pieces.lanes_of(part.stop - part.start))[0] for part in parts]

    def piece(given: tuple[slice, pieces.Reader]) -> None:
        part, source = given
        new[part] = _read(source, bits[part], columns, layout)
        source.finish()

    def finish() -> dtypes.Array:
        for _ in workers.each(piece, list(zip(parts, own, strict=True)), pieces.at_once(old.nbytes)):
            pass
        return dtypes.from_bits(new, old)

    return kind.Later(finish)


def cost(spec: dtypes.Spec, lanes: int) -> costs.Cost:
    """The cost of `read`."""
    size = dtypes.elements(spec)
    columns, parts = _parts_of(size, spec.shape)
    in_pieces = size >= pieces.LEAST
    operations = 0
    for part in parts:
        count = part.stop - part.start
        own = pieces.lanes_of(count) if in_pieces else lanes
        operations += costs.tokens(count, own).operations
        for line in (count // columns, columns) if columns else ():
            operations += costs.tokens(line, own, contexts=1).operations
    longest = max((part.stop - part.start for part in parts), default=0)
    held = _HELD * longest + _SLICE_BYTES
    return costs.total(
        operations=spec.nbytes + _PER_WEIGHT * size + operations,
        working_bytes=held * (min(pieces.at_once(spec.nbytes), len(parts)) if in_pieces else 1),
    )


def _parts(old: dtypes.Array) -> tuple[int, list[slice]]:
    return _parts_of(len(dtypes.flat_bits(old)), old.shape)


def _parts_of(size: int, shape: tuple[int, ...]) -> tuple[int, list[slice]]:
    """(columns, or 0 where they have no sizes of their own; whole rows of about 2^20 weights)."""
    rows = math.prod(shape[:-1])
    columns = size // rows if rows else 0
    if size < _SMALLEST or not 1 < columns <= _WIDEST or rows == 1:
        columns = 0
    step = _PIECE // columns * columns if columns else _PIECE
    return columns, [slice(start, min(start + step, size)) for start in range(0, size, step)]


def _write(writer: streams.Writer, new: dtypes.Array, old: dtypes.Array, columns: int, layout: Layout | None) -> None:
    """A piece."""
    places = np.flatnonzero(new != old)
    after, before = new[places], old[places]
    grid = changes.choose_grid(after, before, layout)
    moves = np.zeros(len(new), np.int64)
    moves[places] = cells.moves(after, before, grid)
    changes.write_grid(writer, grid, layout)
    exponents = _exponents(old, layout) if layout and grid is None else None
    segment = streams.Segment.of(moves, signed=True)
    sizes = _choose(segment, moves, exponents, columns)
    _write_sizes(writer, sizes, columns, exponents is not None)
    contexts, scales = _contexts(sizes, exponents, len(old))
    writer.symbols(segment, scales, contexts, models.chunks(len(old)))
    widths, done, moved = tokens.widths(segment.symbols), 0, 0
    for part in _slices(len(old)):
        end = done + int(np.count_nonzero(segment.symbols[part] >= tokens.DIRECT))
        writer.late(segment.low[done:end], widths[done:end])
        done = end
        if grid:
            end = int(np.searchsorted(places, part.stop))
            changes.write_within(writer, after[moved:end], grid)
            moved = end


def _read(reader: streams.Reader, old: dtypes.Array, columns: int, layout: Layout | None) -> dtypes.Array:
    """The inverse of `_write`."""
    grid = changes.read_grid(reader, old, layout)
    exponents = _exponents(old, layout) if layout and grid is None else None
    sizes = _read_sizes(reader, len(old), columns, exponents is not None)
    contexts, scales = _contexts(sizes, exponents, len(old))
    symbols = reader.symbols(len(old), scales, contexts, models.chunks(len(old)))
    new = np.empty_like(old)
    for part in _slices(len(old)):
        new[part] = _moved(reader, symbols[part], old[part], grid)
    return new


def _moved(reader: streams.Reader, symbols: dtypes.Array, old: dtypes.Array, grid: cells.Grid | None) -> dtypes.Array:
    """The new patterns of some weights."""
    moves = tokens.unfold(tokens.join(symbols, reader.late(tokens.widths(symbols))))
    if grid is None:
        return changes.read_moved(reader, moves, old, None)
    changed = np.flatnonzero(symbols)
    new, before = old.copy(), old[changed]
    new[changed] = after = changes.read_moved(reader, moves[changed], before, grid)
    if (after == before).any():
        raise errors.CorruptUpdateError("values: expected weights that change, found some that do not")
    return new


def _slices(size: int) -> Iterator[slice]:
    return (slice(start, min(start + _SLICE, size)) for start in range(0, size, _SLICE))


def _exponents(bits: dtypes.Array, layout: Layout) -> dtypes.Array:
    """The exponent fields of patterns, int16 (n,)."""
    mantissa, exponent = layout
    shifted = bits >> bits.dtype.type(mantissa)
    shifted &= bits.dtype.type((1 << exponent) - 1)
    return shifted.astype(np.int16)


def _choose(segment: streams.Segment, moves: dtypes.Array, exponents: dtypes.Array | None, columns: int) -> _Sizes:
    """The sizes that code the moves smallest: of rows and columns, or one for all."""
    middle = 0
    magnitudes = np.abs(moves).astype(np.float32)
    if exponents is not None:
        middle = int(np.bincount(exponents).argmax())
        magnitudes *= np.exp2(np.clip(exponents - np.int16(middle), -40, 40).astype(np.float32))
    alike = _Sizes(_half_octaves(float(magnitudes.mean())), middle, None, None)
    if exponents is None:
        alike = alike._replace(scale=segment.best_scale())
    if not columns:
        return alike
    rows, across = (2 * part for part in lines.logs(magnitudes.reshape(-1, columns)))  # half-octaves
    shift = float(np.median(rows)) + float(np.median(across))
    parts = [np.clip(np.rint(part - np.median(part)), -_FURTHEST, _FURTHEST) for part in (rows, across)]
    own = _Sizes(_half_octaves(2 ** (shift / 2)), middle, *(part.astype(np.int64) for part in parts))
    bits = [_bits(segment.symbols, sizes, exponents) for sizes in (alike, own)]
    sent = sum(_entropy(np.unique(part, return_counts=True)[1][None]) for part in parts)
    return own if bits[1] + sent < bits[0] else alike


def _half_octaves(mean: float) -> int:
    return int(np.clip(np.rint(models.UNIT_SCALE + 2 * np.log2(max(mean, 1e-9))), 0, models.SCALES - 1))


def _bits(symbols: dtypes.Array, sizes: _Sizes, exponents: dtypes.Array | None) -> float:
    """About the coded bits of tokens with these sizes."""
    whole = _sums(sizes, exponents, len(symbols))
    index = whole.astype(np.int32) * tokens.COUNT + symbols
    counts = np.bincount(index, minlength=_CONTEXTS * tokens.COUNT).reshape(_CONTEXTS, tokens.COUNT)
    return _entropy(counts)


def _entropy(counts: dtypes.Array) -> float:
    """Bits of symbols with these counts in each context, and of learning them."""
    sums = counts.sum(axis=1, keepdims=True)
    each = counts * np.log2(np.maximum(sums, 1) / np.maximum(counts, 1))
    return float(each.sum() + 0.5 * ((counts > 0) * np.log2(sums + 1)).sum())


def _write_sizes(writer: streams.Writer, sizes: _Sizes, columns: int, has_exponents: bool) -> None:
    if columns:
        writer.symbol(int(sizes.rows is not None), 1)
    if sizes.rows is not None and sizes.columns is not None:
        writer.integers(sizes.rows, signed=True)
        writer.integers(sizes.columns, signed=True)
    writer.symbol(sizes.scale, models.SCALE_BITS)
    if has_exponents:
        writer.number(sizes.middle)


def _read_sizes(reader: streams.Reader, size: int, columns: int, has_exponents: bool) -> _Sizes:
    rows = across = None
    if columns and reader.symbol(1):
        rows, across = (reader.integers(count, signed=True) for count in (size // columns, columns))
    scale, middle = reader.symbol(models.SCALE_BITS), reader.number() if has_exponents else 0
    if middle >= 1 << 11:
        raise errors.CorruptUpdateError(f"exponent: expected one of a float, found {middle}")
    return _Sizes(scale, middle, rows, across)


def _sums(sizes: _Sizes, exponents: dtypes.Array | None, size: int) -> dtypes.Array:
    """uint8 (n,): clip(32 + row + column + 2 (middle - exponent), 0, 63)."""
    found = np.zeros(size, np.int16)
    if exponents is not None:
        found += 2 * (np.int16(sizes.middle) - exponents)
    if sizes.rows is not None and sizes.columns is not None:
        # Parts beyond give the clipped sums anyway, and int16 holds all others.
        rows, columns = (np.clip(part, -(1 << 13), 1 << 13).astype(np.int16) for part in (sizes.rows, sizes.columns))
        sums = found.reshape(len(rows), len(columns))
        sums += rows[:, None]
        sums += columns
    found += _MIDDLE
    return np.clip(found, 0, _CONTEXTS - 1, out=found).astype(np.uint8)


def _contexts(sizes: _Sizes, exponents: dtypes.Array | None, size: int) -> tuple[streams.Contexts | None, dtypes.Array]:
    """The contexts, from the lowest that occurs, and the scales of their priors."""
    if sizes.rows is None and exponents is None:
        return None, np.array([sizes.scale])
    found = _sums(sizes, exponents, size)
    lowest, highest = int(found.min()), int(found.max())
    found -= np.uint8(lowest)
    scales = np.clip(np.arange(lowest, highest + 1) - _MIDDLE + sizes.scale, 0, models.SCALES - 1)
    return found.__getitem__, scales
