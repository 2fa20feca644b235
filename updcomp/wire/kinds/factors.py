"""Factors: a product of two thin matrices of integers."""

import functools
from typing import NamedTuple

import numpy as np

from updcomp.wire import costs, dtypes, increments, kind, matrices, streams, views
from updcomp.wire.coder import Coder
from updcomp.wire.views import View


class Factors(NamedTuple):
    """new_i = old_i + (left_i @ right_i.T) * step for each matrix i of the leaf."""

    left: np.ndarray  # int32 (stack * fan_in, rank), the rows of left_0, then those of left_1 ...
    right: np.ndarray  # int32 (stack * fan_out, rank)
    step: float
    view: View | None = None


def _hold(block: Factors) -> Factors:
    left, right = kind.integers("left", block.left), kind.integers("right", block.right)
    return Factors(left, right, float(block.step), kind.view_field(block.view))


def _check(block: Factors, old: dtypes.Array) -> None:
    dtypes.compute_dtype(old)
    increments.check_step(block.step)
    stack, fan_in, fan_out = views.shape_of(old.shape, views.resolve(block.view, old.ndim))
    rank = block.left.shape[-1] if block.left.ndim == 2 else 0
    expected = ((stack * fan_in, rank), (stack * fan_out, rank))
    kind.expect("shapes of factors", (block.left.shape, block.right.shape), expected)
    kind.expect_rank(rank, min(fan_in, fan_out))


def _cost(coder: Coder, head: kind.Head, spec: dtypes.Spec, lanes: int) -> costs.Cost:
    view = kind.view_of(head, len(spec.shape))
    stack, fan_in, fan_out = views.shape_of(spec.shape, view)
    rank = kind.bounded(head.size, min(fan_in, fan_out))
    return costs.total(
        *(coder.matrix_cost(stack * rows, rank, lanes) for rows in (fan_in, fan_out)),
        costs.Cost(0, 2 * spec.nbytes * kind.is_copied(view, spec)),
        operations=increments.product_operations(spec, stack, rank),
        working_bytes=20 * stack * (fan_in + fan_out) * rank,
    )


def _head(block: Factors, old: dtypes.Array) -> kind.Head:
    return kind.Head(KIND, 0, block.step, block.left.shape[1], kind.view_number(block.view, old.ndim))


def _write(coder: Coder, block: Factors, _: dtypes.Array, writer: streams.Writer) -> bool:
    coder.write_matrix(writer, block.left, block.left.shape)
    coder.write_matrix(writer, block.right, block.right.shape)
    return True


def _read(coder: Coder, head: kind.Head, old: dtypes.Array, reader: streams.Reader) -> Factors:
    dtypes.compute_dtype(old)
    view = kind.view_of(head, old.ndim)
    stack, fan_in, fan_out = views.shape_of(old.shape, view)
    rank = kind.bounded(head.size, min(fan_in, fan_out))
    left, right = (coder.read_matrix(reader, (stack * rows, rank)) for rows in (fan_in, fan_out))
    return Factors(left, right, head.step, kind.said(view, old.ndim))


def _apply(block: Factors, old: dtypes.Array, _: int, __: int) -> dtypes.Array:
    view = views.resolve(block.view, old.ndim)
    stack, fan_in, fan_out = views.shape_of(old.shape, view)
    rank = block.left.shape[1]  # not -1 in the shapes below: a leaf may be empty
    left = block.left.astype(np.float64).reshape(stack, fan_in, rank)
    right = block.right.astype(np.float64).reshape(stack, fan_out, rank)
    return increments.product(old, view, left, right, block.step)


def of(coder: Coder) -> kind.Kind:
    """The kind, its integers coded in this way."""
    return kind.Kind(
        number=7,
        name="factors",
        block=Factors,
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
