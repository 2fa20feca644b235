"""What bounds the size of exact updates: entropies of their own models, and what each context buys.

Those of static models take them to cost nothing to say. All are in bytes.
"""

import functools
from typing import Any
from unittest import mock

import numpy as np

from updcomp import api
from updcomp.wire import cells, changes, density, dtypes, rans, tokens

Model = dict[str, np.ndarray]
Figures = dict[str, float]


def own(pairs: list[tuple[Model, Model]]) -> Figures:
    """The updates without what their coder adds to the information of its symbols, each in its adaptive model."""
    coded: list[tuple[float, int]] = []  # (bits of the symbols, bytes that they took) of each stream
    finish = rans.Encoder.finish

    @functools.wraps(finish)
    def counted(encoder: rans.Encoder, *args: Any, **options: Any) -> tuple[int, bytes]:
        lanes, data = finish(encoder, *args, **options)
        # What a piece's encoder begins with are bits of the update, which no lane wastes.
        hidden = 2 * lanes if len(args) > 1 else 0
        coded.append((encoder.cost, len(data) - hidden))
        return lanes, data

    with mock.patch.object(rans.Encoder, "finish", counted):
        size = sum(len(api.encode(api.diff(old, new), old)) for old, new in pairs)
    information = sum(bits for bits, _ in coded) / 8
    return {"entropy of its own models, and all else": size - sum(taken for _, taken in coded) + information}


def of(pairs: list[tuple[Model, Model]]) -> Figures:
    """Where weights change, and by how much, given the old exponent of each in the whole model."""
    places = moves = 0.0
    for old, new in pairs:
        groups: dict[str, list[tuple[np.ndarray, ...]]] = {}
        for name, leaf in old.items():
            layout = dtypes.layout(dtypes.hold(leaf))
            if layout:
                a, b = (dtypes.flat_bits(dtypes.hold(model[name])) for model in (old, new))
                groups.setdefault(str(a.dtype), []).append((density.fields(a, layout), a != b, cells.moves(b, a, None)))
        for parts in groups.values():
            exponents, changed, moved = (np.concatenate(part) for part in zip(*parts, strict=True))
            places += entropy(changed.astype(np.uint8), exponents)
            symbols, _ = tokens.split(tokens.fold(moved[changed]))
            moves += entropy(symbols, exponents[changed]) + float(tokens.widths(symbols).sum()) / 8
    return {
        "static bound of places, given the old exponent": places,
        "static bound of differences, given the old exponent": moves,
        "static bound, both": places + moves,
    }


def ablation(pair: tuple[Model, Model]) -> Figures:
    """What contexts buy on the first pair, all leaves of 64 weights and more."""
    found: Figures = {}
    old, new = pair
    for name, leaf in old.items():
        held = dtypes.hold(leaf)
        layout, columns = dtypes.layout(held), held.shape[-1] if held.ndim > 1 else 0
        a, b = dtypes.flat_bits(held), dtypes.flat_bits(dtypes.hold(new[name]))
        if layout and len(a) >= 64 and (a != b).any():
            for what, size in _leaf(a, b, layout, columns).items():
                found[what] = found.get(what, 0.0) + size
    return found


def entropy(symbols: np.ndarray, contexts: np.ndarray | None = None) -> float:
    """Bytes of symbols with the frequencies that they have in each context."""
    width = int(symbols.max(initial=0)) + 1
    where = np.zeros(len(symbols), np.int64) if contexts is None else np.asarray(contexts, np.int64)
    counts = np.bincount(where * width + symbols, minlength=(int(where.max(initial=0)) + 1) * width)
    counts = counts.reshape(-1, width).astype(np.float64)
    sums = counts.sum(axis=1, keepdims=True)
    return float((counts * np.log2(np.maximum(sums, 1) / np.maximum(counts, 1))).sum()) / 8


def _leaf(old: np.ndarray, new: np.ndarray, layout: tuple[int, int], columns: int) -> Figures:
    changed = old != new
    exponents = density.fields(old, layout).astype(np.int64)
    where = changed.astype(np.uint8)
    found = {"places": entropy(where), "places, given the old exponent": entropy(where, exponents)}
    before, after = old[changed], new[changed]
    plain = cells.moves(after, before, None)
    grid = changes.choose_grid(after, before, layout)
    at = exponents[changed]
    found |= {
        "moves as differences": _bytes(plain),
        "moves as differences, given the old exponent": _bytes(plain, at),
        "moves as differences, given the sign": _bytes(plain, before >> before.dtype.type(sum(layout))),
    }
    moves, inside = plain, 0.0
    if grid is not None:
        moves, inside = cells.moves(after, before, grid), float(grid.widths(grid.cells(after)).sum()) / 8
    found["moves, on a grid where that is smaller"] = _bytes(moves, None if grid else at) + inside
    if columns > 1 and len(old) > columns:
        lines = _of_lines(moves, changed, columns)
        found |= {f"these, given {what}": _bytes(moves, context) + inside for what, context in lines.items()}
    return found


def _bytes(moves: np.ndarray, contexts: np.ndarray | None = None) -> float:
    symbols, _ = tokens.split(tokens.fold(moves))
    return entropy(symbols, contexts) + float(tokens.widths(symbols).sum()) / 8


def _of_lines(moves: np.ndarray, changed: np.ndarray, columns: int) -> dict[str, np.ndarray]:
    """Contexts of rows, columns and neighbours."""
    whole = np.zeros(len(changed), np.float64)
    whole[changed] = moves
    grid = whole.reshape(-1, columns)
    sizes = [_octaves(np.abs(grid).mean(axis=axis)) for axis in (1, 0)]
    row, column = np.broadcast_to(sizes[0][:, None], grid.shape), np.broadcast_to(sizes[1], grid.shape)
    above, left = np.zeros_like(grid), np.zeros_like(grid)
    above[1:], left[:, 1:] = grid[:-1], grid[:, :-1]
    both = row + column
    signs = 3 * (np.sign(above) + 1) + np.sign(left) + 1
    contexts = {
        "sizes of the row": row,
        "sizes of row and column": both,
        "these and the signs above and to the left": both * 9 + signs,
    }
    return {what: np.asarray(one, np.int64).reshape(-1)[changed] for what, one in contexts.items()}


def _octaves(means: np.ndarray) -> np.ndarray:
    found = np.rint(2 * np.log2(means + 1e-3)).astype(np.int64)
    return np.asarray(found - found.min())
