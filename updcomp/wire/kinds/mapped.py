"""Mapped: a short vector of integers, of which a map makes the change of the whole leaf; leaves may share it."""

import math
import operator
from typing import NamedTuple

import numpy as np

from updcomp.wire import basis, costs, dtypes, errors, increments, kind, maps, streams, views
from updcomp.wire.mapping import Map, Site, Sizes
from updcomp.wire.maps import MAPS
from updcomp.wire.views import View

WIDEST = 32  # bits of a plain value
_PLAIN = 1 << 8  # in a header's size, beside the map's number, the rank and the count
_LENGTH = 9
_MOST = 4  # values for each weight, of a leaf of at least
_FEW = 1 << 16
_MODE_BITS = 1
_WIDTH_BITS = 5
_PER_DRAWN = 24
_LARGEST_RANK = 1 << 10


class Mapped(NamedTuple):
    """new = old + D * step, D integers that one of `maps.MAPS` derives from the vector, the seed and the old leaf."""

    map: str  # its name
    values: np.ndarray  # int32 (n,); blocks of several leaves may have the same one, which travels once
    step: float
    rank: int = 1  # a power of two where the map is ranked, else 1
    width: int = 0  # bits in which each value travels as it is; 0: the values are coded
    view: View | None = None


def sizes_of(shape: tuple[int, ...], view: View, length: int, rank: int = 1) -> Sizes:
    """What a map goes by, for a vector of so many values and a leaf of this shape."""
    return Sizes(*views.shape_of(shape, view), length, rank)


def _hold(block: Mapped) -> Mapped:
    values = kind.integers("values", block.values)
    rank, width = operator.index(block.rank), operator.index(block.width)
    return Mapped(block.map, values, float(block.step), rank, width, kind.view_field(block.view))


def _check(block: Mapped, old: dtypes.Array) -> None:
    dtypes.compute_dtype(old)
    increments.check_step(block.step)
    if block.map not in MAPS:
        raise errors.LeafError(f"map: expected one of {', '.join(MAPS)}, found {block.map!r}")
    kind.expect("axes of values", block.values.ndim, 1)
    found, rank = MAPS[block.map], block.rank
    if not (1 <= rank <= _LARGEST_RANK and rank & (rank - 1) == 0 and (found.is_ranked or rank == 1)):
        expected = f"a power of two up to {_LARGEST_RANK}" if found.is_ranked else "1"
        raise errors.LeafError(f"rank: expected {expected}, found {rank}")
    if misfit := _misfit(found, sizes_of(old.shape, views.resolve(block.view, old.ndim), len(block.values), rank)):
        raise errors.LeafError(misfit)
    if not 0 <= block.width <= WIDEST:
        raise errors.LeafError(f"width: expected 0 to {WIDEST} bits, found {block.width}")
    if block.width and len(rest := block.values[found.has_offset :]):
        highest = 1 << (block.width - 1)
        if not (-highest <= int(rest.min()) and int(rest.max()) < highest):
            raise errors.LeafError(f"width: expected values that fit {block.width} bits, found larger ones")


def _misfit(found: Map, z: Sizes) -> str:
    """What is wrong with a vector of this length; nothing if it fits."""
    if z.size and found.inner_rank(z):
        return ""
    return (
        f"values: expected as many as {found.name!r} takes for matrices {z.fan_in} x {z.fan_out}, {z.stack} of them, "
        f"and a rank of {z.rank}, found {z.length}"
    )


def _said(head: kind.Head, shape: tuple[int, ...]) -> tuple[Map, Sizes, bool]:
    """The map, what it goes by, and whether values are plain, as a header has it; 0 values of an empty leaf fit."""
    size = math.prod(shape)
    length = kind.bounded(head.size, (_MOST * max(size, _FEW) + 2 << _LENGTH) - 1) >> _LENGTH
    number, exponent = (head.size or 0) & 15, (head.size or 0) >> 4 & 15
    if number not in maps.BY_NUMBER or 1 << exponent > _LARGEST_RANK:
        raise errors.CorruptUpdateError(f"map: expected 0 to {max(maps.BY_NUMBER)} and a rank, found {number}")
    found = maps.BY_NUMBER[number]
    z = sizes_of(shape, kind.view_of(head, len(shape)), length, 1 << exponent)
    if misfit := _misfit(found, z):
        raise errors.CorruptUpdateError(misfit)
    if exponent and not found.is_ranked:
        raise errors.CorruptUpdateError(f"rank: expected none for {found.name!r}, found {z.rank}")
    return found, z, bool((head.size or 0) & _PLAIN)


def _cost(head: kind.Head, spec: dtypes.Spec, lanes: int) -> costs.Cost:
    found, z, is_plain = _said(head, spec.shape)
    view, work = kind.view_of(head, len(spec.shape)), found.work(z)
    parts = [costs.tokens(0 if is_plain else z.length, lanes, contexts=1)]
    if work.basis_rank:
        parts.append(basis.cost(spec, work.basis_rank, view, is_copied=kind.is_copied(view, spec)))
    if work.rank:
        parts.append(costs.Cost(0, 2 * spec.nbytes * kind.is_copied(view, spec)))
        last, working = increments.product_operations(spec, z.stack, work.rank), 32 * z.rows * work.rank
    else:
        last, working = increments.everywhere_operations(spec), 40 * max(z.size, z.length)
    own = _PER_DRAWN * (work.drawn + work.passing + z.length) + costs.products(work.products)
    return costs.total(*parts, operations=last + own, working_bytes=working + 40 * (work.drawn + z.length))


def _head(block: Mapped, old: dtypes.Array) -> kind.Head:
    exponent = block.rank.bit_length() - 1
    size = len(block.values) << _LENGTH | _PLAIN * bool(block.width) | exponent << 4 | MAPS[block.map].number
    return kind.Head(KIND, 0, block.step, size, kind.view_number(block.view, old.ndim))


def _write(block: Mapped, _: dtypes.Array, writer: streams.Writer) -> bool:
    """The vector, unless it is that of the mapped block before."""
    is_known = writer.vector is not None and np.array_equal(writer.vector, block.values)
    writer.symbol(int(is_known), _MODE_BITS)
    if is_known:
        return True
    writer.vector, cut = block.values, int(MAPS[block.map].has_offset)
    writer.integers(block.values[:cut], signed=True)
    rest = block.values[cut:]
    if block.width:
        writer.symbol(block.width - 1, _WIDTH_BITS)
        patterns = rest.astype(np.int64).view(np.uint64) & np.uint64((1 << block.width) - 1)
        writer.late(patterns, np.full(len(rest), block.width, np.uint8))
    else:
        writer.integers(rest, signed=True)
    return True


def _read(head: kind.Head, old: dtypes.Array, reader: streams.Reader) -> Mapped:
    dtypes.compute_dtype(old)
    found, z, is_plain = _said(head, old.shape)
    values, width = reader.vector, WIDEST if is_plain else 0
    if not reader.symbol(_MODE_BITS):
        cut = int(found.has_offset)
        first = reader.integers(cut, signed=True, dtype=np.int32)
        if is_plain:
            width = reader.symbol(_WIDTH_BITS) + 1
            patterns = reader.late(np.full(z.length - cut, width, np.uint8)) << np.uint64(64 - width)
            rest = (patterns.view(np.int64) >> (64 - width)).astype(np.int32)
        else:
            rest = reader.integers(z.length - cut, signed=True, dtype=np.int32)
        values = reader.vector = np.concatenate([first, rest])
    elif values is None or len(values) != z.length:
        raise errors.CorruptUpdateError(f"values: expected {z.length} of the mapped block before, found others or none")
    return Mapped(found.name, values, head.step, z.rank, width, kind.said(kind.view_of(head, old.ndim), old.ndim))


def _apply(block: Mapped, old: dtypes.Array, seed: int, index: int) -> dtypes.Array:
    view, found = views.resolve(block.view, old.ndim), MAPS[block.map]
    z = sizes_of(old.shape, view, len(block.values), block.rank)
    constants = found.constants(Site(old, view, seed, index, z))
    change = found.expand(block.values.astype(np.float64), constants, z)
    if len(change) == 1:
        return increments.everywhere(old, change[0].reshape(old.shape), block.step)
    left, right = change[0], change[-1]
    if len(change) == 3:
        left = increments.exact_product(left, change[1])
    return increments.product(old, view, left, right, block.step)


KIND = kind.Kind(
    number=11,
    name="mapped",
    block=Mapped,
    stepped=True,
    sized=True,
    viewed=True,
    hold=_hold,
    check=_check,
    cost=_cost,
    head=_head,
    write=_write,
    read=_read,
    apply=_apply,
)
