"""Ways to make an update: factories of `(key, deployed, task) -> Packet` functions, by name.

A new method is one file here and one line in `METHODS`.
"""

from collections.abc import Callable

from updcomp.methods.base import Method
from updcomp.methods.fixed_mask import magnitude_mask, random_mask
from updcomp.methods.full import full
from updcomp.methods.low_rank import low_rank
from updcomp.methods.partial import partial
from updcomp.methods.subspace import subspace

METHODS: dict[str, Callable[..., Method]] = {
    "full": full,
    "partial": partial,
    "low_rank": low_rank,
    "subspace": subspace,
    "random_mask": random_mask,
    "magnitude_mask": magnitude_mask,
}

__all__ = ["METHODS", "Method", "full", "low_rank", "magnitude_mask", "partial", "random_mask", "subspace"]
