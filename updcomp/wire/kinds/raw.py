"""Raw: the leaf's new bits, as they are."""

from typing import NamedTuple

import numpy as np

from updcomp.wire import costs, dtypes, kind, streams


class Raw(NamedTuple):
    """The leaf's new bits, as they are."""

    new: np.ndarray  # shape and dtype of the leaf


def hold(block: Raw) -> Raw:
    """The block with a held leaf."""
    return block._replace(new=dtypes.hold(block.new))


def check(block: Raw, old: dtypes.Array) -> None:
    """Checks shape, dtype and bits; also of an exact block."""
    found, expected = ((leaf.shape, dtypes.name(leaf.dtype)) for leaf in (block.new, old))
    kind.expect("new", found, expected)
    dtypes.check_bits(block.new)


def _cost(_: kind.Head, spec: dtypes.Spec, __: int) -> costs.Cost:
    return costs.total(operations=spec.nbytes)


def _head(_: Raw, __: dtypes.Array) -> kind.Head:
    return kind.Head(KIND, 0)


def _write(block: Raw, _: dtypes.Array, writer: streams.Writer) -> bool:
    writer.raw(block.new)
    return True


def _read(_: kind.Head, old: dtypes.Array, reader: streams.Reader) -> Raw:
    return Raw(reader.raw(old.shape, old.dtype))


def apply(block: Raw, _: dtypes.Array, __: int, ___: int) -> dtypes.Array:
    """The new leaf; also of an exact block."""
    return block.new


KIND = kind.Kind(
    number=0,
    name="raw",
    block=Raw,
    stepped=False,
    sized=False,
    viewed=False,
    hold=hold,
    check=check,
    cost=_cost,
    head=_head,
    write=_write,
    read=_read,
    apply=apply,
)
