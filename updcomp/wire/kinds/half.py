"""Half: new = old + delta, the delta in half precision."""

from typing import NamedTuple

import numpy as np

from updcomp.wire import costs, dtypes, errors, increments, kind, streams

_FLOAT16 = np.dtype("<f2")


class Half(NamedTuple):
    """new = old + delta."""

    delta: np.ndarray  # float16, shape of the leaf


def _hold(block: Half) -> Half:
    return block._replace(delta=np.asarray(block.delta))


def _check(block: Half, old: dtypes.Array) -> None:
    dtypes.compute_dtype(old)
    kind.expect("delta", (block.delta.shape, block.delta.dtype), (old.shape, _FLOAT16))
    if not np.isfinite(block.delta).all():
        raise errors.NonFiniteError("delta: expected finite numbers, found NaN or infinity")


def _cost(_: kind.Head, spec: dtypes.Spec, __: int) -> costs.Cost:
    return costs.total(operations=increments.everywhere_operations(spec), working_bytes=3 * spec.size)


def _head(_: Half, __: dtypes.Array) -> kind.Head:
    return kind.Head(KIND, 0)


def _write(block: Half, _: dtypes.Array, writer: streams.Writer) -> bool:
    writer.raw(dtypes.hold(block.delta))
    return True


def _read(_: kind.Head, old: dtypes.Array, reader: streams.Reader) -> Half:
    return Half(reader.raw(old.shape, _FLOAT16))


def _apply(block: Half, old: dtypes.Array, _: int, __: int) -> dtypes.Array:
    return increments.everywhere(old, block.delta, 1.0)


KIND = kind.Kind(
    number=2,
    name="half",
    block=Half,
    stepped=False,
    sized=False,
    viewed=False,
    hold=_hold,
    check=_check,
    cost=_cost,
    head=_head,
    write=_write,
    read=_read,
    apply=_apply,
)
