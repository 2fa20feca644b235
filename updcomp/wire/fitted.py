"""Matrices of integers in rounds: what the earlier rounds say of a matrix predicts the later ones.

A hash scatters the integers over the rounds, so that every round sees the whole matrix, each finer than the one before;
within a round all integers are coded at once. See `prediction` for what is predicted.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from updcomp.wire import costs, dtypes, errors, hashing, models, streams, tokens
from updcomp.wire.prediction import CLASSES, UNIT, Predictor

_SMALLEST = 1 << 12  # integers for which it could pay
_TILE_COLUMNS = 1 << 11
_TILE = 1 << 19  # integers: bounds the memory
_DEEP = (4096, 8192, 13107, 19661, 29491, 42598, 65536)  # 2^-16 of the integers that are known before each deep round
_EDGES = np.array([2, 5, 10, 16, 22, 29])  # of magnitudes of means that round to 0
_FIFTHS = 5  # of a mean beside the integer that it rounds to
_SMALL = len(_EDGES) + 1
_PARTS = _SMALL + _FIFTHS
_FIRST = _PARTS * CLASSES  # the context of the first round

_PER_TILE = 1 << 24  # operations
_PER_INTEGER = 256
_PRODUCTS = 63  # of matrices, in all rounds
_BYTES = 88  # temporaries of an integer of a tile


def is_worth(shape: tuple[int, int]) -> bool:
    """Whether a matrix is of a shape that this can pay for."""
    return min(shape) > 1 and shape[0] * shape[1] >= _SMALLEST


def write(writer: streams.Writer, values: dtypes.Array, rank: int) -> None:
    """A matrix of integers.

    Args:
      writer: takes its tiles.
      values: int32 (rows, columns).
      rank: of what is fitted; 0: scales of rows and columns alone.
    """
    for tile in _tiles(values.shape):
        _write_tile(writer, values[tile].astype(np.int64), rank)


def read(reader: streams.Reader, shape: tuple[int, int], rank: int) -> dtypes.Array:
    """The inverse of `write`; int32 of this shape."""
    values = np.empty(shape, np.int32)
    for tile in _tiles(shape):
        _read_tile(reader, values[tile], rank)
    return values


def extra_cost(shape: tuple[int, int], rank: int) -> costs.Cost:
    """What `read` takes beside decoding tokens.

    Of n integers in tiles of at most t: operations = 2^24 tiles + 256 n + floor(63 rank n / 8); working bytes = 88 t.
    """
    rows, columns = shape
    height, width = _tile(columns)
    tiles = -(-rows // height) * -(-columns // width)
    products = costs.products(_PRODUCTS * rank * rows * columns)
    operations = _PER_TILE * tiles + _PER_INTEGER * rows * columns + products
    return costs.Cost(operations, _BYTES * min(rows, height) * width)


def _tiles(shape: tuple[int, int]) -> Iterator[tuple[slice, slice]]:
    """Tiles of at most 2^11 columns and 2^19 integers, one band of rows after another."""
    rows, columns = shape
    height, width = _tile(columns)
    for top in range(0, rows, height):
        for left in range(0, columns, width):
            yield slice(top, min(top + height, rows)), slice(left, min(left + width, columns))


def _tile(columns: int) -> tuple[int, int]:
    """(rows, columns) of a tile that is not at an edge."""
    width = min(columns, _TILE_COLUMNS)
    return _TILE // width, width


class _Round(NamedTuple):
    """Some integers of a tile."""

    places: dtypes.Array  # int64 (n,), in the flattened tile
    is_first: bool
    is_deep: bool


def _rounds(size: int) -> list[_Round]:
    """All integers of a tile of so many."""
    halvings = max(0, size.bit_length() - 15)
    cuts = np.array([_DEEP[0] >> i for i in range(halvings, 0, -1)] + [*_DEEP[:-1]])
    share = (hashing.hashes(0, 0, size) >> np.uint64(48)).astype(np.uint16)
    level = np.searchsorted(cuts, share, side="right").astype(np.uint8)
    order = np.argsort(level, kind="stable")
    ends = np.cumsum(np.bincount(level, minlength=len(cuts) + 1))
    parts = np.split(order, ends[:-1])
    return [_Round(part, i == 0, i > halvings) for i, part in enumerate(parts)]


class _Expected(NamedTuple):
    """What is expected of the integers of a round: an integer is sign * (base + residue)."""

    signs: dtypes.Array
    bases: dtypes.Array
    contexts: dtypes.Array


def _expect(predictor: Predictor, part: _Round) -> _Expected:
    if part.is_first:
        nothing = np.zeros(len(part.places), np.int64)
        return _Expected(nothing + 1, nothing, nothing + _FIRST)
    predictor.fit(is_deep=part.is_deep)
    means, classes = predictor.at(part.places)
    magnitudes = np.abs(means)
    bases = magnitudes + UNIT // 2 >> 6
    beside = _SMALL + ((magnitudes - UNIT * bases + UNIT // 2) * _FIFTHS >> 6)
    fields = np.where(bases == 0, np.searchsorted(_EDGES, magnitudes, side="right"), beside)
    return _Expected(np.where(means <= -_EDGES[0], -1, 1), bases, CLASSES * fields + classes)


def _adaptive(first: int, alphabet: int) -> models.Adaptive:
    return models.Adaptive(np.append(np.tile(np.arange(CLASSES), _PARTS), first), alphabet, signed=True)


def _write_tile(writer: streams.Writer, values: dtypes.Array, rank: int) -> None:
    predictor, flat, found = Predictor(values.shape, rank), values.reshape(-1), []
    for part in _rounds(len(flat)):
        sent = flat[part.places]
        expected = _expect(predictor, part)
        segment = streams.Segment.of(expected.signs * sent - expected.bases, signed=True)
        found.append((segment, expected.contexts))
        predictor.learn(part.places, sent)
    alphabet, first = max(segment.alphabet for segment, _ in found), found[0][0].best_scale()
    writer.symbol(first, models.SCALE_BITS)
    writer.alphabet(alphabet)
    adaptive = _adaptive(first, alphabet)
    for segment, context in found:
        writer.chunk(adaptive, segment.symbols, context)
        writer.late(segment.low, tokens.widths(segment.symbols))


def _read_tile(reader: streams.Reader, values: dtypes.Array, rank: int) -> None:
    """Fills a tile."""
    predictor, found, largest = Predictor(values.shape, rank), np.empty(values.size, np.int32), 0
    first, alphabet = reader.symbol(models.SCALE_BITS), reader.alphabet()
    adaptive = _adaptive(first, alphabet)
    for part in _rounds(values.size):
        expected = _expect(predictor, part)
        symbols = reader.chunk(adaptive, len(part.places), expected.contexts)
        largest = max(largest, int(symbols.max(initial=0)))
        residues = tokens.unfold(tokens.join(symbols, reader.late(tokens.widths(symbols))))
        wide = expected.signs * (residues + expected.bases)
        found[part.places] = wide
        if (found[part.places] != wide).any():
            raise errors.CorruptUpdateError("values: expected int32, found larger integers")
        predictor.learn(part.places, wide)
    streams.expect_largest(largest, alphabet)
    values[:] = found.reshape(values.shape)
