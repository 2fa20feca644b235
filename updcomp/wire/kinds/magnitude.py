"""Magnitude: an integer for each of the largest deployed weights."""

from typing import NamedTuple

import numpy as np

from updcomp.wire import dtypes, kind, matrices, placed, positions
from updcomp.wire.coder import Coder


class Magnitude(NamedTuple):
    """As `Sparse`, at the k largest deployed magnitudes (`positions.largest`): they cost no bytes."""

    values: np.ndarray  # int32 (k,), in ascending order of position
    step: float


def _places(old: dtypes.Array, count: int, _: int, __: int) -> dtypes.Array:
    return positions.largest(old, count)


def of(coder: Coder) -> kind.Kind:
    """The kind, its integers coded in this way."""
    return placed.kind_of(
        Magnitude, number=6, name="magnitude", places=_places, cost=positions.largest_cost, coder=coder
    )


KIND = of(matrices.CODER)
