"""Ways to make an update: factories of `(key, deployed, task) -> Packet` functions, by name.

A new method is one file here and one line in `METHODS`.
"""

from collections.abc import Callable

from updcomp.methods.base import Method
from updcomp.methods.chosen_neurons import neurons
from updcomp.methods.deep_partial_updating import partial
from updcomp.methods.fitted_budget import FAMILIES, Family, fit_budget
from updcomp.methods.fixed_mask import magnitude_mask, random_mask
from updcomp.methods.full_updating import full
from updcomp.methods.low_rank_factors import low_rank
from updcomp.methods.rules import by_path
from updcomp.methods.shared_subspace import subspace
from updcomp.methods.short_vectors import fourier, nola, pranc, random_low_rank, tiny_lora, uni_lora, vera
from updcomp.methods.sketches import stochastic_quantize, subsample, truncated_svd

METHODS: dict[str, Callable[..., Method]] = {
    "full": full,
    "partial": partial,
    "low_rank": low_rank,
    "subspace": subspace,
    "random_mask": random_mask,
    "magnitude_mask": magnitude_mask,
    "neurons": neurons,
    "fit_budget": fit_budget,
    "random_low_rank": random_low_rank,
    "subsample": subsample,
    "stochastic_quantize": stochastic_quantize,
    "truncated_svd": truncated_svd,
    "vera": vera,
    "uni_lora": uni_lora,
    "tiny_lora": tiny_lora,
    "nola": nola,
    "pranc": pranc,
    "fourier": fourier,
}

__all__ = [
    "FAMILIES",
    "METHODS",
    "Family",
    "Method",
    "by_path",
    "fit_budget",
    "fourier",
    "full",
    "low_rank",
    "magnitude_mask",
    "neurons",
    "nola",
    "partial",
    "pranc",
    "random_low_rank",
    "random_mask",
    "stochastic_quantize",
    "subsample",
    "subspace",
    "tiny_lora",
    "truncated_svd",
    "uni_lora",
    "vera",
]
