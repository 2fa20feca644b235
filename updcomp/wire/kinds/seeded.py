"""Seeded: an integer for each of some weights, drawn by both sides from the packet's seed."""

from typing import NamedTuple

import numpy as np

from updcomp.wire import dtypes, kind, matrices, placed, positions
from updcomp.wire.coder import Coder


class Seeded(NamedTuple):
    """As `Sparse`, at the k positions that `positions.seeded` draws from the packet's seed: they cost no bytes."""

    values: np.ndarray  # int32 (k,), in ascending order of position
    step: float


def _places(old: dtypes.Array, count: int, seed: int, index: int) -> dtypes.Array:
    return positions.seeded(seed, index, old.size, count)


def of(coder: Coder) -> kind.Kind:
    """The kind, its integers coded in this way."""
    return placed.kind_of(Seeded, number=5, name="seeded", places=_places, cost=positions.seeded_cost, coder=coder)


KIND = of(matrices.CODER)
