"""The weights of a leaf that change, few of many: where they are, class by class, and how far they move.

Both are coded in rounds that double: a round has the same share of every class's weights, so that all classes learn
together. A gap within a class has the prior of that class's density, which its counts tell.
"""

import itertools
from typing import NamedTuple

import numpy as np

from updcomp.wire import cells, costs, density, dtypes, errors, models, pieces, streams, tokens

Layout = tuple[int, int]
_CLASS_BITS = 4
_FIRST_ROUND = 64  # weights at least, and less than twice as many
_COARSE = 32  # units in the last place: moves below are never said on a grid
_SAMPLE = 1 << 14  # moves on which grid and differences are compared
_PER_WEIGHT = 8  # operations: its class, and the mask of each class
_PER_CHANGE = 128
_HELD = 96  # bytes of a change: gaps, ranks, places, moves and cells
MOST = 1 << 18  # changes of a piece
_GAP_WEIGHT = 1 << 7  # of a gap that was seen: the prior knows their mean, and weighs as much as 512 of them
_SELDOM = 24  # scale of gaps, of mean 4, from which on moves are alike
_SHARES = (2, 3, 4)  # octaves that a grid's step may be below the median move


def write(writer: streams.Writer, new: dtypes.Array, old: dtypes.Array, layout: Layout | None) -> None:
    """Writes what changes.

    Args:
      writer: of a piece or of the update.
      new: patterns (n,).
      old: patterns (n,).
      layout: mantissa and exponent bits, or None where the dtype has none.
    """
    places = np.flatnonzero(new != old)
    if not len(places):
        return
    before, after = old[places], new[places]
    grid = choose_grid(after, before, layout)
    moves = cells.moves(after, before, grid)
    write_grid(writer, grid, layout)
    sizes, counts, ranks = [len(old)], np.array([len(places)]), places
    if layout:
        exponents = density.fields(old, layout)
        starts = density.choose(exponents, exponents[places], moves)
        classes = density.Classes.of(exponents, starts)
        own = np.searchsorted(starts.astype(exponents.dtype), exponents[places], side="right")
        grouped = np.argsort(own.astype(np.uint8), kind="stable")
        moves, before, after = moves[grouped], before[grouped], after[grouped]
        sizes, counts = classes.sizes, np.bincount(own, minlength=len(starts) + 1)
        ranks = classes.ranks(places[grouped], counts)
        writer.symbol(len(starts), _CLASS_BITS)
        writer.integers(np.diff(starts, prepend=0) - 1, signed=False)
        writer.integers(counts[1:], signed=False)
    order = _Rounds.of(counts)
    # Of all classes one below the other, each in the order of its weights.
    gaps = np.concatenate([np.diff(one, prepend=-1) - 1 for one in order.split(ranks)])[order.places]
    moves, before, after = moves[order.places], before[order.places], after[order.places]
    gap_segment = streams.Segment.of(gaps, signed=False)
    move_segment = streams.Segment.of(moves - (moves > 0), signed=True)
    scales = _scales(sizes, order)
    writer.symbols(gap_segment, scales, order.contexts, order.chunks, count_weight=_GAP_WEIGHT)
    contexts, many = order.merged(scales)
    move_scales = _own_scales(move_segment, contexts, many)
    for scale in move_scales.tolist():
        writer.symbol(scale, models.SCALE_BITS)
    writer.symbols(move_segment, move_scales, contexts, order.chunks)
    for segment in (gap_segment, move_segment):
        writer.late(segment.low, tokens.widths(segment.symbols))
    if grid:
        write_within(writer, after, grid)


def read(
    reader: streams.Reader, old: dtypes.Array, count: int, layout: Layout | None, *, out: dtypes.Array | None = None
) -> dtypes.Array:
    """The inverse of `write`: the new patterns, `count` of them other than the old ones; in `out` where it is given."""
    new = np.empty_like(old) if out is None else out
    new[:] = old
    if not count:
        return new
    grid = read_grid(reader, old, layout)
    classes, counts, sizes = None, np.array([count]), [len(old)]
    if layout:
        starts, counts = _read_classes(reader, count, layout)
        classes = density.Classes.of(density.fields(old, layout), starts)
        sizes = classes.sizes
    order = _Rounds.of(counts)
    if (counts > sizes).any():
        raise errors.CorruptUpdateError("classes: expected no more changes than weights, found more")
    scales = _scales(sizes, order)
    found = reader.symbols(count, scales, order.contexts, order.chunks, signed=False, count_weight=_GAP_WEIGHT)
    contexts, many = order.merged(scales)
    own = np.array([reader.symbol(models.SCALE_BITS) for _ in range(many)])
    moved = reader.symbols(count, own, contexts, order.chunks)
    places = _places(reader, found, order, classes, len(old))
    moves = tokens.unfold(tokens.join(moved, reader.late(tokens.widths(moved))))
    moves += moves >= 0
    before = old[places]
    new[places] = after = read_moved(reader, moves, before, grid)
    if (after == before).any():
        raise errors.CorruptUpdateError("values: expected weights that change, found some that do not")
    return new


def cost(spec: dtypes.Spec, count: int, many: int, lanes: int) -> costs.Cost:
    """The cost of `read`, of so many pieces.

    Args:
      spec: of the leaf.
      count: weights that change.
      many: pieces.
      lanes: of each, or of the coded section.
    """
    size = dtypes.elements(spec)
    segment = costs.rounds(count, many, lanes, contexts=density.MOST)
    piece = -(-size // many)
    held = min(pieces.at_once(spec.nbytes), many)
    return costs.total(
        *(segment, segment),
        operations=spec.nbytes + _PER_WEIGHT * size + _PER_CHANGE * count,
        working_bytes=held * (_HELD * min(count, piece // 8, MOST) + 4 * piece),
    )


def choose_grid(new: dtypes.Array, old: dtypes.Array, layout: Layout | None) -> cells.Grid | None:
    """The grid that codes these changes smaller than differences of patterns do; None if none does."""
    if layout is None:
        return None
    step = max(1, len(old) // _SAMPLE)
    highest = int(max(density.fields(part, layout).max(initial=0) for part in (new, old)))
    new, old = new[::step], old[::step]
    plain = cells.moves(new, old, None)
    if not len(old) or np.median(np.abs(plain)) < _COARSE:
        return None
    mantissa, exponent = layout
    with np.errstate(invalid="ignore", over="ignore"):
        moved = _magnitudes(new, layout) - _magnitudes(old, layout)
    middle = float(np.median(np.abs(moved[np.isfinite(moved)]))) if np.isfinite(moved).any() else 0.0
    typical = int(np.float64(middle).view(np.uint64) >> np.uint64(52)) - 1023 + (1 << exponent - 1) - 1
    best, least = None, _estimate(plain, density.fields(old, layout))
    for share in _SHARES:
        # Coarser than the last place of any weight, or cells would be empty.
        if max(1, highest - mantissa) <= typical - share < 1 << exponent:
            grid = cells.Grid(mantissa, exponent, typical - share)
            bits = _estimate(cells.moves(new, old, grid)) + float(grid.widths(grid.cells(new)).sum())
            if bits < least:
                best, least = grid, bits
    return best


def write_grid(writer: streams.Writer, grid: cells.Grid | None, layout: Layout | None) -> None:
    """Whether there is a grid, and its step; nothing where the dtype has none."""
    if layout:
        writer.symbol(int(grid is not None), 1)
    if grid:
        writer.number(grid.base)


def read_grid(reader: streams.Reader, old: dtypes.Array, layout: Layout | None) -> cells.Grid | None:
    """The inverse of `write_grid`; `old` are the patterns that it must hold."""
    if layout is None or not reader.symbol(1):
        return None
    base = reader.number()
    if not 0 < base < 1 << layout[1]:
        raise errors.CorruptUpdateError(f"grid: expected a step of exponent 1 to {(1 << layout[1]) - 1}, found {base}")
    return cells.Grid(*layout, base)


def write_within(writer: streams.Writer, new: dtypes.Array, grid: cells.Grid) -> None:
    """Where in their cells the new patterns of weights that move are."""
    widths = grid.widths(grid.cells(new))
    writer.late(grid.low(new, widths), widths)


def read_moved(reader: streams.Reader, moves: dtypes.Array, old: dtypes.Array, grid: cells.Grid | None) -> dtypes.Array:
    """The new patterns of weights that move, (k,); `moves` as `cells.moves` returns them."""
    if grid is None:
        width = 8 * old.itemsize
        if width < 64 and int(np.abs(moves).max(initial=0)) > 1 << width - 1:
            raise errors.CorruptUpdateError(f"values: expected differences of {width} bits, found larger ones")
        return old + moves.astype(old.dtype)
    there = cells.moved(moves, old, grid)
    return grid.bits(there, reader.late(grid.widths(there)), old.dtype)


def _magnitudes(bits: dtypes.Array, layout: Layout) -> dtypes.Array:
    """The numbers, as float64, if their exponents fit."""
    mantissa, exponent = layout
    magnitude = (bits & bits.dtype.type((1 << mantissa + exponent) - 1)).astype(np.uint64)
    magnitude += np.uint64(1023 - (1 << exponent - 1) + 1 << mantissa)
    floats = (magnitude << np.uint64(52 - mantissa)).view(np.float64)
    return np.where(bits >> bits.dtype.type(mantissa + exponent), -floats, floats)


def _estimate(moves: dtypes.Array, contexts: dtypes.Array | None = None) -> float:
    """About the bits of moves: their tokens' entropy by context, learning it, and the plain bits."""
    symbols, _ = tokens.split(tokens.fold(moves))
    contexts = np.zeros(1, np.uint8) if contexts is None else contexts
    index = contexts.astype(np.int64) * tokens.COUNT + symbols
    counts = np.bincount(index, minlength=(int(contexts.max(initial=0)) + 1) * tokens.COUNT).reshape(-1, tokens.COUNT)
    sums = counts.sum(axis=1, keepdims=True)
    entropy = float((counts * np.log2(np.maximum(sums, 1) / np.maximum(counts, 1))).sum())
    learning = 0.5 * float(((counts > 0) * np.log2(sums + 1)).sum())
    return entropy + learning + float(tokens.widths(symbols).sum())


def _read_classes(reader: streams.Reader, count: int, layout: Layout) -> tuple[dtypes.Array, dtypes.Array]:
    """Where classes begin, and how many weights change in each."""
    more = reader.symbol(_CLASS_BITS)
    gaps, others = reader.integers(more, signed=False), reader.integers(more, signed=False)
    if int(gaps.max(initial=0)) >> layout[1] or int((gaps + 1).sum()) >> layout[1]:
        raise errors.CorruptUpdateError(f"classes: expected exponents of {layout[1]} bits, found larger ones")
    if int(others.max(initial=0)) > count or (first := count - int(others.sum())) < 0:
        raise errors.CorruptUpdateError(f"classes: expected {count} changes in all, found more")
    return np.cumsum(gaps + 1), np.array([first, *others.tolist()])


def _places(
    reader: streams.Reader,
    symbols: dtypes.Array,
    order: "_Rounds",
    classes: density.Classes | None,
    size: int,
) -> dtypes.Array:
    """Where the weights that change are, in the order of their tokens."""
    gaps = tokens.join(symbols, reader.late(tokens.widths(symbols)))
    if int(gaps.max(initial=0)) > size:
        raise errors.CorruptUpdateError(f"places: expected gaps of at most {size}, found larger ones")
    steps = np.empty(len(gaps), np.int64)
    steps[order.places] = gaps.view(np.int64) + 1
    ranks = [np.cumsum(part) - 1 for part in order.split(steps)]
    for one, members in zip(ranks, [size] if classes is None else classes.sizes, strict=True):
        if len(one) and one[-1] >= members:
            raise errors.CorruptUpdateError(f"places: expected ranks below {members}, found {one[-1]}")
    found = np.concatenate(ranks)
    return (found if classes is None else classes.places(found, order.counts))[order.places]


def _own_scales(segment: streams.Segment, contexts: streams.Contexts | None, many: int) -> dtypes.Array:
    """The prior's scale that fits best the tokens of each context."""
    whole = slice(0, len(segment.symbols))
    index = (
        segment.symbols if contexts is None else contexts(whole).astype(np.int64) * segment.alphabet + segment.symbols
    )
    counts = np.bincount(index, minlength=many * segment.alphabet).reshape(many, segment.alphabet)
    return np.array([models.best_scale(one, signed=True) for one in counts])


def _scales(sizes: list[int], order: "_Rounds") -> dtypes.Array:
    """Of each class the scale of its gaps' prior."""
    return np.array([scale_of(n, k) for n, k in zip(sizes, order.counts.tolist(), strict=True)])


def scale_of(members: int, changed: int) -> int:
    """clip(20 + floor(1/2 + 2 log2 M), 0, 127), M = 2 n (n - k) / (k (2 n - k)), in integers; 0 where k is 0 or n.

    Gaps of mean m = (n - k) / k are geometric with the ratio m / (m + 1), as the prior of mean M is.

    >>> scale_of(200, 100), scale_of(3000, 10), scale_of(5, 5)
    (21, 36, 0)
    """
    if not changed or members == changed:
        return 0
    above, below = 2 * members * (members - changed), changed * (2 * members - changed)
    square = (above**2 * 181 << 80) // (128 * below**2)
    return min(max(square.bit_length() - 81 + models.UNIT_SCALE, 0), models.SCALES - 1)


class _Rounds(NamedTuple):
    """The order of tokens, one class below the other in each round."""

    counts: dtypes.Array  # int64 (classes,), tokens of each
    places: dtypes.Array  # int64 (k,): where each token is, all tokens of a class being together
    context: dtypes.Array  # uint8 (k,): its class
    chunks: list[slice]  # the rounds

    @classmethod
    def of(cls, counts: list[int] | dtypes.Array) -> "_Rounds":
        """Round r of R + 1 ends each class at its count >> (R - r)."""
        counts = np.asarray(counts, np.int64)
        rounds = max(int(counts.sum()).bit_length() - _FIRST_ROUND.bit_length(), 0)
        ends = counts >> np.arange(rounds, -1, -1)[:, None]
        starts = np.concatenate([np.zeros_like(ends[:1]), ends[:-1]])
        lengths = (ends - starts).reshape(-1)
        bases = (starts + np.cumsum(counts) - counts).reshape(-1)
        places = np.repeat(bases - (np.cumsum(lengths) - lengths), lengths) + np.arange(int(counts.sum()))
        context = np.repeat(np.tile(np.arange(len(counts), dtype=np.uint8), len(ends)), lengths)
        bounds = [0, *ends.sum(axis=1).tolist()]
        chunks = [slice(start, stop) for start, stop in itertools.pairwise(bounds) if stop > start]
        return cls(counts, places, context, chunks)

    def split(self, values: dtypes.Array) -> list[dtypes.Array]:
        """The values of each class, where all those of a class are together."""
        return np.split(values, np.cumsum(self.counts)[:-1])

    @property
    def contexts(self) -> streams.Contexts | None:
        """Of a part of the tokens; None where there is one class."""
        return self.context.__getitem__ if len(self.counts) > 1 else None

    def merged(self, scales: dtypes.Array) -> tuple[streams.Contexts | None, int]:
        """The contexts of moves, and how many: where classes change seldom, their weights move by little, and alike.

        Classes of which any weight changes are alike where their scale, at most 24, is the same; ascending by it.
        """
        clipped = np.minimum(scales, _SELDOM)
        places = np.searchsorted(np.unique(clipped[self.counts > 0]), clipped).astype(np.uint8)
        many = int(places[self.counts > 0].max()) + 1
        context = places[self.context]
        return (context.__getitem__ if many > 1 else None), many
