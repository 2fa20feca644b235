"""What the format must know of a kind of block; each kind is one file in `kinds`."""

from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from updcomp.wire import costs, dtypes, errors, streams, views

Block: TypeAlias = tuple[Any, ...]
"""A NamedTuple of integers, a step of sixteen bits, or the bits of a new leaf: what a kind says of a leaf."""


class Later(NamedTuple):
    """Work on pieces, which needs no reader and no writer any more: other leaves may be worked on at the same time."""

    finish: Callable[
        [], Any
    ]  # the block that was read; or the bytes to write, None if they are no fewer than the leaf's


class Head(NamedTuple):
    """The header of a block."""

    kind: "Kind"
    leaf: int  # index in sorted name order
    step: float = 0.0  # of a stepped kind
    size: int | None = None  # of a sized kind; None where it is not in the header, as in version 1
    view: int | None = None  # number of a viewed kind's view; None is the default one


class Kind(NamedTuple):
    """A kind of block. Every field is needed: a kind that lacks one fails when its file is imported."""

    number: int  # on the wire, from 0 to 15, for ever
    name: str  # in reports
    block: type  # the NamedTuple that holds one
    stepped: bool  # whether its header has a quantisation step
    sized: bool  # whether it has a size: the number of weights that it changes, or a rank
    viewed: bool  # whether it sees the leaf as matrices; `Head.view` and the block's `view` say which
    hold: Callable[[Any], Any]  # the block with NumPy arrays of the right dtypes; LeafError
    check: Callable[[Any, dtypes.Array], None]  # whether a held block fits its held leaf; LeafError
    cost: Callable[[Head, dtypes.Spec, int], costs.Cost]  # of applying: header, leaf, lanes; the size known
    head: Callable[[Any, dtypes.Array], Head]  # of a block that fits the leaf; its `leaf` is 0
    write: Callable[[Any, dtypes.Array, streams.Writer], bool | Later]  # codes it; False if no smaller than its bits
    read: Callable[[Head, dtypes.Array, streams.Reader], Any]  # its inverse, size known, or Later; CorruptUpdateError
    apply: Callable[[Any, dtypes.Array, int, int], dtypes.Array]  # the new leaf; block, old leaf, seed, leaf's index


def integers(field: str, value: Any, dtype: Any = np.int32) -> dtypes.Array:
    """The array with this dtype, from anything that `np.asarray` takes and that holds such integers.

    Args:
      field: its name, for the message.
      value: integers of any width.
      dtype: an integer dtype.

    Returns:
      An array; the same object where it is one already.

    Raises:
      LeafError: it holds floats, or integers that the dtype does not.
    """
    array, dtype = np.asarray(value), np.dtype(dtype)
    if array.dtype == dtype:
        return array
    if array.dtype.kind not in "iu":
        raise errors.LeafError(f"{field}: expected integers that fit {dtype}, found {array.dtype}")
    lowest, highest = int(array.min(initial=0)), int(array.max(initial=0))
    if lowest < np.iinfo(dtype).min or highest > np.iinfo(dtype).max:
        raise errors.LeafError(f"{field}: expected integers that fit {dtype}, found {lowest} to {highest}")
    return array.astype(dtype)


def view_field(value: object) -> views.View | None:
    """The view of a block.

    Raises:
      LeafError: it is neither a View nor None.
    """
    if value is not None and not isinstance(value, views.View):
        raise errors.LeafError(f"view: expected a View as views.of_words returns it, found {value!r}")
    return value


def expect(what: str, found: object, expected: object) -> None:
    """Checks that two things are equal.

    Raises:
      LeafError: they are not.
    """
    if found != expected:
        raise errors.LeafError(f"{what}: expected {expected}, found {found}")


def expect_rank(rank: int, largest: int) -> None:
    """Checks a rank.

    Raises:
      LeafError: it is out of range.
    """
    if not 1 <= rank <= largest:
        raise errors.LeafError(f"rank: expected 1 to {largest}, found {rank}")


def bounded(size: int | None, largest: int) -> int:
    """A size that was read, checked before memory is taken for it.

    Raises:
      CorruptUpdateError: it is larger than the leaf allows.
    """
    assert size is not None, "a sized block is read with its size known"
    if size > largest:
        raise errors.CorruptUpdateError(f"count or rank: expected at most {largest}, found {size}")
    return size


def view_number(view: views.View | None, ndim: int) -> int:
    """The number of a block's view."""
    return views.number(views.resolve(view, ndim), ndim)


def view_of(head: Head, ndim: int) -> views.View:
    """The view that a header says.

    Raises:
      CorruptUpdateError: no view of so many axes has its number.
    """
    return views.last_axis_out(ndim) if head.view is None else views.of_number(head.view, ndim)


def said(view: views.View, ndim: int) -> views.View | None:
    """The view as a block says it: None for the default one."""
    return None if view == views.last_axis_out(ndim) else view


def is_copied(view: views.View, spec: dtypes.Spec) -> bool:
    """Whether matrices of this view do not lie in the leaf as they are."""
    return view != views.last_axis_out(len(spec.shape))
