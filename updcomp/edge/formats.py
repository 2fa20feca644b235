"""What the formats of model files share: what a file says of its leaves, and how much of that is believed."""

import math
from collections.abc import Callable, Iterable
from typing import IO, Any, BinaryIO, NamedTuple, TypeAlias

import numpy as np

from updcomp.edge import progress
from updcomp.wire import dtypes, errors

LARGEST_INDEX = 8 << 20  # bytes of the header or directory that lists the leaves
_MOST_AXES = 64  # NumPy's
_LARGEST_LEAF = 1 << 63  # bytes, NumPy's; it counts axes of length 0 as 1
_PIECE = 1 << 20  # bytes read at once

Leaves: TypeAlias = Iterable[tuple[str, dtypes.Array]]
Writer: TypeAlias = Callable[[BinaryIO, Leaves], None]


class Contents(NamedTuple):
    """An open model file of which nothing but the index has been read."""

    specs: dict[str, dtypes.Spec]
    metadata: dict[str, str]
    read: Callable[[str], dtypes.Array]  # reads a leaf by name: as `dtypes.hold` gives it, in memory of its own


def check_shape(shape: tuple[Any, ...], dtype: np.dtype[Any]) -> None:
    """Checks that NumPy can hold a leaf of this shape; takes microseconds whatever the shape.

    Args:
      shape: from a file.
      dtype: of the leaf.

    Raises:
      FileError: it cannot.
    """
    if len(shape) > _MOST_AXES:
        raise errors.FileError(f"shape: expected at most {_MOST_AXES} axes, found {len(shape)}")
    # bool is a subclass of int, and true is no size.
    if not all(type(axis) is int and 0 <= axis < _LARGEST_LEAF for axis in shape):
        raise errors.FileError(f"shape: expected integers from 0 to 2^63 - 1, found {shape}")
    if math.prod(axis or 1 for axis in shape) * dtype.itemsize >= _LARGEST_LEAF:
        raise errors.FileError(f"shape: expected less than 2^63 bytes, found {shape} of {dtypes.name(dtype)}")


def check_text(text: object) -> None:
    """Checks that a name or a text of the metadata has an encoding.

    Raises:
      FileError: it is no text, or has a lone surrogate.
    """
    try:
        if isinstance(text, str):
            text.encode()
            return
    except UnicodeEncodeError:
        pass
    raise errors.FileError(f"expected a text that UTF-8 can encode, found {text!r}")


def filled(part: IO[bytes], spec: dtypes.Spec) -> dtypes.Array:
    """Reads a leaf.

    Args:
      part: at the leaf's first byte.
      spec: of the leaf.

    Returns:
      A new array, aligned.

    Raises:
      FileError: there are fewer bytes than that.
    """
    data = np.empty(spec.nbytes, np.uint8)
    end = 0
    while end < len(data):
        count = part.readinto(data[end : end + _PIECE])  # type: ignore[attr-defined]
        if not count:
            raise errors.FileError(f"expected {len(data)} bytes of a leaf, found {end}")
        end += count
        progress.advance(count)
    return data.view(spec.dtype).reshape(spec.shape)
