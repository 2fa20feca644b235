"""Sparse: an integer for each of some weights, and where they are."""

import functools
from typing import NamedTuple

import numpy as np

from updcomp.wire import costs, dtypes, errors, increments, kind, matrices, positions, streams
from updcomp.wire.coder import Coder


class Sparse(NamedTuple):
    """new[positions] = old[positions] + values * step."""

    positions: np.ndarray  # int64 (k,), strictly ascending indices into the flattened leaf
    values: np.ndarray  # int32 (k,)
    step: float


def _hold(block: Sparse) -> Sparse:
    places = kind.integers("positions", block.positions, np.int64)
    return Sparse(places, kind.integers("values", block.values), float(block.step))


def _check(block: Sparse, old: dtypes.Array) -> None:
    dtypes.compute_dtype(old)
    increments.check_step(block.step)
    kind.expect("shape of positions", block.positions.shape, block.values.shape)
    positions.check(block.positions, old.size)


def _cost(coder: Coder, head: kind.Head, spec: dtypes.Spec, lanes: int) -> costs.Cost:
    count = kind.bounded(head.size, spec.size)
    return costs.total(
        coder.values_cost(count, lanes),
        coder.positions_cost(count, lanes),
        operations=increments.at_operations(spec, count),
        working_bytes=28 * count,
    )


def _head(block: Sparse, _: dtypes.Array) -> kind.Head:
    return kind.Head(KIND, 0, block.step, int(np.count_nonzero(block.values)))


def _write(coder: Coder, block: Sparse, old: dtypes.Array, writer: streams.Writer) -> bool:
    """Entries that change nothing are left out."""
    sent = block.values != 0
    coder.write_values(writer, block.values[sent])
    coder.write_positions(writer, block.positions[sent], old.shape)
    return True


def _read(coder: Coder, head: kind.Head, old: dtypes.Array, reader: streams.Reader) -> Sparse:
    dtypes.compute_dtype(old)
    count = kind.bounded(head.size, old.size)
    values = coder.read_values(reader, count)
    if not values.all():
        raise errors.CorruptUpdateError("values: expected integers other than 0 at sent positions, found 0")
    return Sparse(coder.read_positions(reader, count, old.shape), values, head.step)


def _apply(block: Sparse, old: dtypes.Array, _: int, __: int) -> dtypes.Array:
    return increments.at(old, block.positions, block.values, block.step)


def of(coder: Coder) -> kind.Kind:
    """The kind, its integers coded in this way."""
    return kind.Kind(
        number=4,
        name="sparse",
        block=Sparse,
        stepped=True,
        sized=True,
        viewed=False,
        hold=_hold,
        check=_check,
        cost=functools.partial(_cost, coder),
        head=_head,
        write=functools.partial(_write, coder),
        read=functools.partial(_read, coder),
        apply=_apply,
    )


KIND = of(matrices.CODER)
