"""Dense: an integer for every weight."""

import functools
from typing import NamedTuple

import numpy as np

from updcomp.wire import costs, dtypes, increments, kind, matrices, streams, views
from updcomp.wire.coder import Coder
from updcomp.wire.views import View


class Dense(NamedTuple):
    """new = old + values * step."""

    values: np.ndarray  # int32, shape of the leaf
    step: float  # as `increments.round_step` returns it
    view: View | None = None  # the matrix as which the values are coded, its rows those of the whole stack


def _hold(block: Dense) -> Dense:
    return Dense(kind.integers("values", block.values), float(block.step), kind.view_field(block.view))


def _check(block: Dense, old: dtypes.Array) -> None:
    dtypes.compute_dtype(old)
    increments.check_step(block.step)
    kind.expect("shape of values", block.values.shape, old.shape)
    views.check(views.resolve(block.view, old.ndim), old.ndim)


def _cost(coder: Coder, head: kind.Head, spec: dtypes.Spec, lanes: int) -> costs.Cost:
    view = kind.view_of(head, len(spec.shape))
    row = 4 * spec.size // max(spec.shape[0], 1) if kind.is_copied(view, spec) else 0
    return costs.total(
        coder.matrix_cost(*_matrix(spec.shape, view), lanes),
        costs.Cost(0, row),
        operations=increments.everywhere_operations(spec),
        working_bytes=4 * spec.size,
    )


def _matrix(shape: tuple[int, ...], view: View) -> tuple[int, int]:
    """Rows of all matrices of the stack, and columns."""
    stack, fan_in, fan_out = views.shape_of(shape, view)
    return stack * fan_in, fan_out


def _head(block: Dense, old: dtypes.Array) -> kind.Head:
    return kind.Head(KIND, 0, block.step, view=kind.view_number(block.view, old.ndim))


def _write(coder: Coder, block: Dense, old: dtypes.Array, writer: streams.Writer) -> bool:
    view = views.resolve(block.view, old.ndim)
    coder.write_matrix(writer, views.split(block.values, view), _matrix(old.shape, view))
    return True


def _read(coder: Coder, head: kind.Head, old: dtypes.Array, reader: streams.Reader) -> Dense:
    dtypes.compute_dtype(old)
    view = kind.view_of(head, old.ndim)
    values = coder.read_matrix(reader, _matrix(old.shape, view))
    return Dense(views.join(values, old.shape, view), head.step, kind.said(view, old.ndim))


def _apply(block: Dense, old: dtypes.Array, _: int, __: int) -> dtypes.Array:
    return increments.everywhere(old, block.values, block.step)


def of(coder: Coder) -> kind.Kind:
    """The kind, its integers coded in this way."""
    return kind.Kind(
        number=3,
        name="dense",
        block=Dense,
        stepped=True,
        sized=False,
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
