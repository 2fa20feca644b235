"""Columns: an integer for every weight of some whole columns."""

import functools
from typing import NamedTuple

import numpy as np

from updcomp.wire import costs, dtypes, errors, increments, kind, matrices, positions, streams, views
from updcomp.wire.coder import Coder
from updcomp.wire.views import View


class Columns(NamedTuple):
    """new[:, columns] = old[:, columns] + values * step, of the leaf as matrices: all weights into some neurons."""

    columns: np.ndarray  # int64 (k,), strictly ascending; column j of matrix i of the stack is i * fan_out + j
    values: np.ndarray  # int32 (fan_in, k)
    step: float
    view: View | None = None


def _hold(block: Columns) -> Columns:
    columns = kind.integers("columns", block.columns, np.int64)
    return Columns(columns, kind.integers("values", block.values), float(block.step), kind.view_field(block.view))


def _check(block: Columns, old: dtypes.Array) -> None:
    dtypes.compute_dtype(old)
    increments.check_step(block.step)
    stack, fan_in, fan_out = views.shape_of(old.shape, views.resolve(block.view, old.ndim))
    positions.check(block.columns, stack * fan_out, "columns")
    kind.expect("shape of values", block.values.shape, (fan_in, len(block.columns)))


def _cost(coder: Coder, head: kind.Head, spec: dtypes.Spec, lanes: int) -> costs.Cost:
    fan_in, all_columns, count = _sizes(head, spec.shape)
    weights, lines = fan_in * count, fan_in + count if count else 0
    return costs.total(
        costs.tokens(all_columns if 0 < count < all_columns else 0, lanes, contexts=1),
        coder.matrix_cost(fan_in, count, lanes),
        operations=increments.columns_operations(spec, weights, lines),
        working_bytes=4 * weights + 40 * count,
    )


def _sizes(head: kind.Head, shape: tuple[int, ...]) -> tuple[int, int, int]:
    """Rows, columns of all matrices of the stack, and how many of these are sent: none of an empty leaf."""
    stack, fan_in, fan_out = views.shape_of(shape, kind.view_of(head, len(shape)))
    return fan_in, stack * fan_out, kind.bounded(head.size, stack * fan_out if fan_in else 0)


def _sent(block: Columns) -> dtypes.Array:
    """Which columns change anything."""
    return np.any(block.values, axis=0)


def _head(block: Columns, old: dtypes.Array) -> kind.Head:
    count = int(np.count_nonzero(_sent(block)))
    return kind.Head(KIND, 0, block.step, count, kind.view_number(block.view, old.ndim))


def _write(coder: Coder, block: Columns, old: dtypes.Array, writer: streams.Writer) -> bool:
    """Columns that change nothing are left out."""
    stack, _, fan_out = views.shape_of(old.shape, views.resolve(block.view, old.ndim))
    sent = _sent(block)
    values = block.values[:, sent]
    writer.places(block.columns[sent], stack * fan_out)
    coder.write_matrix(writer, values, values.shape)
    return True


def _read(coder: Coder, head: kind.Head, old: dtypes.Array, reader: streams.Reader) -> Columns:
    dtypes.compute_dtype(old)
    fan_in, all_columns, count = _sizes(head, old.shape)
    columns = reader.places(count, all_columns)
    values = coder.read_matrix(reader, (fan_in, count))
    block = Columns(columns, values, head.step, kind.said(kind.view_of(head, old.ndim), old.ndim))
    if not _sent(block).all():
        raise errors.CorruptUpdateError("values: expected integers other than 0 in every sent column, found only 0")
    return block


def _apply(block: Columns, old: dtypes.Array, _: int, __: int) -> dtypes.Array:
    view = views.resolve(block.view, old.ndim)
    return increments.columns(old, view, block.columns, block.values, block.step)


def of(coder: Coder) -> kind.Kind:
    """The kind, its integers coded in this way."""
    return kind.Kind(
        number=9,
        name="columns",
        block=Columns,
        stepped=True,
        sized=True,
        viewed=True,
        hold=_hold,
        check=_check,
        cost=functools.partial(_cost, coder),
        head=_head,
        write=functools.partial(_write, coder),
        read=functools.partial(_read, coder),
        apply=_apply,
    )


KIND = of(matrices.CODER)
