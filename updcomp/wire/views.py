"""How a leaf is read as matrices: which of its axes are fan-in, which are fan-out, and which are stacked.

Shape code alone: it takes NumPy and JAX arrays alike.
"""

import math
from typing import Any, NamedTuple

from updcomp.wire import errors

_WORDS = ("stack", "in", "out")  # the index is an axis's digit on the wire


class View(NamedTuple):
    """A leaf as matrices of shape (fan_in, fan_out)."""

    in_axes: tuple[int, ...]  # axes of fan-in, ascending
    out_axes: tuple[int, ...]  # axes of fan-out, ascending; axes in neither are stacked: one matrix per index


def last_axis_out(ndim: int) -> View:
    """The default view, one matrix: the last axis is fan-out, the others are fan-in.

    >>> last_axis_out(4), last_axis_out(1)
    (View(in_axes=(0, 1, 2), out_axes=(3,)), View(in_axes=(), out_axes=(0,)))
    """
    axes = tuple(range(ndim))
    return View(axes[:-1], axes[-1:])


def resolve(view: View | None, ndim: int) -> View:
    """The view, or the default one where none is given."""
    return last_axis_out(ndim) if view is None else view


def of_words(words: str) -> View:
    """The view that a word per axis describes: stack, in or out.

    Args:
      words: separated by spaces, in the order of the axes.

    Returns:
      The view.

    Raises:
      Error: another word, or stack alone.

    >>> of_words("in out out"), of_words("stack in out")
    (View(in_axes=(0,), out_axes=(1, 2)), View(in_axes=(1,), out_axes=(2,)))
    """
    split_words = words.split()
    if unknown := [word for word in split_words if word not in _WORDS]:
        raise errors.Error(f"axes {words!r}: expected a word per axis, stack, in or out, found {unknown[0]!r}")
    view = _of_digits([_WORDS.index(word) for word in split_words])
    check(view, len(split_words))
    return view


def words_of(view: View, ndim: int) -> str:
    """The inverse of `of_words`.

    >>> words_of(View((0,), (1, 2)), 3)
    'in out out'
    """
    return " ".join(_WORDS[digit] for digit in _digits(view, ndim))


def check(view: View, ndim: int) -> None:
    """Checks that a view fits a leaf of so many axes.

    Raises:
      LeafError: an axis that the leaf lacks, twice or out of order, or a leaf with axes of which all are stacked.
    """
    axes = (*view.in_axes, *view.out_axes)
    ascending = all(list(part) == sorted(set(part)) for part in view)
    if not ascending or len(set(axes)) < len(axes) or not set(axes) <= set(range(ndim)) or (ndim and not axes):
        raise errors.LeafError(
            f"view: expected ascending axes below {ndim}, none of them twice, at least one of them in or out, "
            f"found in {tuple(view.in_axes)} and out {tuple(view.out_axes)}"
        )


def shape_of(shape: tuple[int, ...], view: View) -> tuple[int, int, int]:
    """(stack, fan_in, fan_out) of a leaf.

    Args:
      shape: of the leaf.
      view: of the leaf.

    Returns:
      The number of stacked matrices, and the rows and columns of each.

    Raises:
      LeafError: as `check`.

    >>> shape_of((12, 64, 8, 16), of_words("stack in out out"))
    (12, 64, 128)
    """
    check(view, len(shape))
    fan_in, fan_out = (math.prod(shape[axis] for axis in axes) for axes in view)
    return math.prod(shape[axis] for axis in _stacked(view, len(shape))), fan_in, fan_out


def split(array: Any, view: View) -> Any:
    """The leaf as stacked matrices: its axes in the order stack, in, out.

    Args:
      array: the leaf; NumPy or JAX.
      view: of the leaf.

    Returns:
      (stack, fan_in, fan_out) of the same kind and dtype.

    Raises:
      LeafError: as `check`.

    >>> import numpy as np
    >>> split(np.arange(6).reshape(3, 2), of_words("out in")).tolist()
    [[[0, 2, 4], [1, 3, 5]]]
    """
    shape = shape_of(array.shape, view)
    return array.transpose(_order(view, array.ndim)).reshape(shape)


def join(matrices: Any, shape: tuple[int, ...], view: View) -> Any:
    """The leaf of these stacked matrices, the inverse of `split`.

    Args:
      matrices: (stack, fan_in, fan_out), NumPy or JAX.
      shape: of the leaf.
      view: of the leaf.

    Returns:
      An array of this shape, of the same kind and dtype.

    Raises:
      LeafError: as `check`.

    >>> import numpy as np
    >>> join(np.array([[[0, 2, 4], [1, 3, 5]]]), (3, 2), of_words("out in")).tolist()
    [[0, 1], [2, 3], [4, 5]]
    """
    check(view, len(shape))
    order = _order(view, len(shape))
    inverse = sorted(range(len(order)), key=order.__getitem__)
    return matrices.reshape(tuple(shape[axis] for axis in order)).transpose(tuple(inverse))


def row_places(rows: Any, shape: tuple[int, ...], view: View) -> Any:
    """Where rows lie in the flattened leaf: each element lies where its row and its column do, added up.

    Args:
      rows: integers, from 0 to fan_in - 1; NumPy or JAX.
      shape: of the leaf.
      view: of the leaf.

    Returns:
      Positions, as many.

    >>> import numpy as np
    >>> shape, view = (2, 3, 2), of_words("stack in out")
    >>> (row_places(np.arange(3), shape, view)[:, None] + column_places(np.array([0, 3]), shape, view)).tolist()
    [[0, 7], [2, 9], [4, 11]]
    """
    return _places(rows, shape, view.in_axes)


def column_places(columns: Any, shape: tuple[int, ...], view: View) -> Any:
    """Where columns lie in the flattened leaf, as `row_places`.

    Args:
      columns: integers, from 0 to stack * fan_out - 1: those of the first matrix, then those of the second ...
      shape: of the leaf.
      view: of the leaf.

    Returns:
      Positions, as many.
    """
    return _places(columns, shape, (*_stacked(view, len(shape)), *view.out_axes))


def number(view: View, ndim: int) -> int:
    """A view as one number: the digit of axis i, 0 for stack, 1 for in, 2 for out, times 3^i.

    >>> number(of_words("stack in out"), 3)
    21
    """
    return sum(digit * 3**axis for axis, digit in enumerate(_digits(view, ndim)))


def of_number(number: int, ndim: int) -> View:
    """The inverse of `number`.

    Raises:
      CorruptUpdateError: no view of so many axes has this number.

    >>> of_number(21, 3)
    View(in_axes=(1,), out_axes=(2,))
    """
    if not min(ndim, 1) <= number < 3**ndim:
        raise errors.CorruptUpdateError(f"view: expected {min(ndim, 1)} to {3**ndim - 1}, found {number}")
    return _of_digits([number // 3**axis % 3 for axis in range(ndim)])


def _digits(view: View, ndim: int) -> list[int]:
    return [1 if axis in view.in_axes else 2 if axis in view.out_axes else 0 for axis in range(ndim)]


def _of_digits(digits: list[int]) -> View:
    in_axes, out_axes = (tuple(axis for axis, found in enumerate(digits) if found == digit) for digit in (1, 2))
    return View(in_axes, out_axes)


def _stacked(view: View, ndim: int) -> tuple[int, ...]:
    return tuple(axis for axis in range(ndim) if axis not in view.in_axes and axis not in view.out_axes)


def _order(view: View, ndim: int) -> tuple[int, ...]:
    return (*_stacked(view, ndim), *view.in_axes, *view.out_axes)


def _places(indices: Any, shape: tuple[int, ...], axes: tuple[int, ...]) -> Any:
    """Where the elements with these indices into some axes lie, all other axes being at 0."""
    places = 0 * indices
    for axis in reversed(axes):
        places = places + indices % shape[axis] * math.prod(shape[axis + 1 :])
        indices = indices // shape[axis]
    return places
