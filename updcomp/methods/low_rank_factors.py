"""Low-rank updates: W_new = W + U V^T, trained from the frozen deployed weights.

Chen et al.: Update Compression for Deep Neural Networks on the Edge (CVPR Workshops 2022, arXiv 2203.04516).
"""

import dataclasses
from typing import NamedTuple

import jax
import numpy as np

from updcomp import factorize, quantize
from updcomp.methods import base
from updcomp.methods.forms import Parametrised, Site
from updcomp.partition import Leaf
from updcomp.wire import views
from updcomp.wire.kinds.factors import Factors


def low_rank(*, rank: int, bits: int = 8, aux: int | None = 16, rate: float = 10.0) -> base.Trained:
    """Trains and sends two factors per kernel, as integers whose product the device forms exactly.

    Args:
      rank: columns of each factor, at least 1; a kernel gets at most min(fan_in, fan_out).
      bits: of each factor's entries, rounded straight-through.
      aux: bits of the aux leaves' deltas; None leaves them as deployed.
      rate: multiplies the task's learning rate.

    Returns:
      A method.

    Raises:
      Error: an option is out of range.

    Paper: Update Compression, section 3.
    """
    base.check_options(bits=bits, aux=aux, rate=rate)
    factorize.check_rank(rank)
    return base.Trained("low_rank", LowRank(rank, bits), aux, rate)


class _Fixed(NamedTuple):
    grid: quantize.Grid
    rank: np.int32  # columns that count; those up to the bucket are zero


@dataclasses.dataclass(frozen=True)
class LowRank:
    """The form of kernels that change by a product of two factors."""

    rank: int
    bits: int
    seeded = False
    lossless = False

    @staticmethod
    def rebuild(trained: factorize.Factors, fixed: _Fixed, old: jax.Array, leaf: Leaf) -> jax.Array:
        """W + U V^T, both factors rounded."""
        rounded = factorize.quantized(trained, fixed.grid, rank=fixed.rank)
        return old + factorize.product(rounded, old.shape, view=leaf.view)

    def parametrise(self, site: Site) -> Parametrised:
        """Factors whose product is zero, with columns of zeros up to their bucket."""
        shape, view = site.old.shape, site.leaf.view
        largest = min(views.shape_of(shape, view)[1:])
        rank = np.int32(min(self.rank, largest))
        factors = _init(site.key, shape, rank, view=view, columns=factorize.bucket(int(rank), largest))
        return Parametrised(factors, _Fixed(quantize.grid(self.bits), rank))

    def block(self, trained: factorize.Factors, parametrised: Parametrised, site: Site) -> Factors:
        """The integers of both factors."""
        return factorize.to_block(trained, self.bits, view=site.leaf.view, rank=int(parametrised.fixed.rank))


_init = jax.jit(factorize.init, static_argnames=("shape", "view", "columns"))
