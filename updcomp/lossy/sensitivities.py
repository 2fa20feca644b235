"""What a squared error of a weight counts, as a user says it."""

from collections.abc import Callable, Mapping

import numpy as np

from updcomp.wire import dtypes
from updcomp.wire.errors import LeafError


def of(
    given: Mapping[str, np.ndarray | float] | None, specs: Mapping[str, dtypes.Spec], names: list[str]
) -> Callable[[str], np.ndarray]:
    """Looks a leaf's sensitivity up; 1 where none is given.

    Args:
      given: leaf name -> non-negative numbers, of the leaf's shape or one for all.
      specs: of the leaves.
      names: of those that may be asked for.

    Returns:
      name -> float array of the leaf's shape or ().

    Raises:
      LeafError: a leaf is missing, or has another shape; of a leaf when it is asked for: a number is negative or NaN.

    >>> of({"w": 2.0}, {"w": dtypes.Spec((3,), np.dtype("<f4"))}, ["w"])("w").tolist()
    2.0
    """
    if given is None:
        return lambda name: np.array(1.0)
    if missing := [name for name in names if name not in given]:
        raise LeafError(f"sensitivity: expected a number or an array for every leaf, found none for {missing[0]!r}")
    for name in names:
        if (shape := np.shape(given[name])) not in ((), specs[name].shape):
            raise LeafError(f"leaf {name!r}: sensitivity: expected shape {specs[name].shape} or (), found {shape}")
    return lambda name: _checked(np.asarray(given[name]))


def _checked(values: np.ndarray) -> np.ndarray:
    floats = values.astype(np.float32)
    is_right = (floats >= 0) & np.isfinite(floats)
    if not is_right.all():
        wrong = floats[~is_right].reshape(-1)[0]
        raise LeafError(f"sensitivity: expected finite numbers of at least 0, found {wrong}")
    return floats
