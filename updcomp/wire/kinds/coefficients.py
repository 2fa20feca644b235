"""Coefficients: small matrices of integers in bases that both sides derive from the deployed weights."""

import functools
import operator
from typing import NamedTuple

import numpy as np

from updcomp.wire import basis, costs, dtypes, increments, kind, matrices, streams, views
from updcomp.wire.coder import Coder
from updcomp.wire.views import View

_PRODUCT_SCALE = 2.0 ** (-2 * basis.FRACTION)


class Coefficients(NamedTuple):
    """new_i = old_i + (A_i @ values_i @ B_i.T) * step, A and B from `basis.of` the old leaf: they cost no bytes."""

    values: np.ndarray  # int32 (stack * min(rank, fan_in), min(rank, fan_out)), values_0, then values_1 ...
    rank: int
    step: float
    view: View | None = None


def _hold(block: Coefficients) -> Coefficients:
    values, rank = kind.integers("values", block.values), operator.index(block.rank)
    return Coefficients(values, rank, float(block.step), kind.view_field(block.view))


def _check(block: Coefficients, old: dtypes.Array) -> None:
    dtypes.compute_dtype(old)
    increments.check_step(block.step)
    view = views.resolve(block.view, old.ndim)
    stack, fan_in, fan_out = views.shape_of(old.shape, view)
    kind.expect_rank(block.rank, basis.max_rank(old.shape, view))
    expected = (stack * min(block.rank, fan_in), min(block.rank, fan_out))
    kind.expect("shape of values", block.values.shape, expected)


def _cost(coder: Coder, head: kind.Head, spec: dtypes.Spec, lanes: int) -> costs.Cost:
    view = kind.view_of(head, len(spec.shape))
    stack, fan_in, fan_out = views.shape_of(spec.shape, view)
    rank = kind.bounded(head.size, basis.max_rank(spec.shape, view))
    rows, columns = stack * min(rank, fan_in), min(rank, fan_out)
    product = increments.product_operations(spec, stack, rank) + costs.products(rows * fan_in * columns)
    return costs.total(
        coder.matrix_cost(rows, columns, lanes),
        basis.cost(spec, rank, view, is_copied=kind.is_copied(view, spec)),
        costs.Cost(0, 2 * spec.nbytes * kind.is_copied(view, spec)),
        operations=product,
        working_bytes=32 * stack * (fan_in + fan_out) * rank,
    )


def _head(block: Coefficients, old: dtypes.Array) -> kind.Head:
    return kind.Head(KIND, 0, block.step, block.rank, kind.view_number(block.view, old.ndim))


def _write(coder: Coder, block: Coefficients, _: dtypes.Array, writer: streams.Writer) -> bool:
    coder.write_matrix(writer, block.values, block.values.shape)
    return True


def _read(coder: Coder, head: kind.Head, old: dtypes.Array, reader: streams.Reader) -> Coefficients:
    dtypes.compute_dtype(old)
    view = kind.view_of(head, old.ndim)
    stack, fan_in, fan_out = views.shape_of(old.shape, view)
    rank = kind.bounded(head.size, basis.max_rank(old.shape, view))
    values = coder.read_matrix(reader, (stack * min(rank, fan_in), min(rank, fan_out)))
    return Coefficients(values, rank, head.step, kind.said(view, old.ndim))


def _apply(block: Coefficients, old: dtypes.Array, seed: int, index: int) -> dtypes.Array:
    view = views.resolve(block.view, old.ndim)
    left, right = basis.of(old, block.rank, seed=seed, index=index, view=view)
    values = block.values.reshape(len(left), left.shape[2], right.shape[2]).astype(np.float64)
    left = increments.exact_product(left, values)
    return increments.product(old, view, left, right, block.step * _PRODUCT_SCALE)


def of(coder: Coder) -> kind.Kind:
    """The kind, its integers coded in this way."""
    return kind.Kind(
        number=8,
        name="coefficients",
        block=Coefficients,
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
