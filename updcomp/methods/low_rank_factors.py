"""Low-rank updates: W_new = W + U V^T, trained from the frozen deployed weights.

Chen et al.: Update Compression for Deep Neural Networks on the Edge (CVPR Workshops 2022, arXiv 2203.04516).
"""

import dataclasses
from collections.abc import Mapping
from typing import NamedTuple, overload

import jax
import numpy as np

from updcomp import factorize, quantize
from updcomp.methods import base, ranks, rules
from updcomp.methods.forms import Parametrised, Site
from updcomp.partition import Leaf
from updcomp.wire import views
from updcomp.wire.errors import Error
from updcomp.wire.kind import Block


@overload
def low_rank(
    *, rank: int, zero: str | None = None, bits: int | None = 8, aux: int | None = 16, rate: float = 10.0
) -> base.Trained: ...
@overload
def low_rank(
    *,
    rank: int | Mapping[str, int] | None = None,
    energy: float | None = None,
    max_bytes: int | None = None,
    source: str = "gradient",
    zero: str | None = None,
    bits: int | None = 8,
    aux: int | None = 16,
    rate: float = 10.0,
) -> base.Method: ...
def low_rank(
    *,
    rank: int | Mapping[str, int] | None = None,
    energy: float | None = None,
    max_bytes: int | None = None,
    source: str = "gradient",
    zero: str | None = None,
    bits: int | None = 8,
    aux: int | None = 16,
    rate: float = 10.0,
) -> base.Method:
    """Trains and sends two factors per kernel, as integers whose product the device forms exactly.

    Args:
      rank: columns of each factor, at least 1, or such a number by rules over the kernels' paths, of which the first
        that matches counts (leaves without one stay as deployed); a kernel gets at most min(fan_in, fan_out).
      energy: in place of a rank, the share of the squared singular values that each kernel's rank must hold.
      max_bytes: in place of a rank, the size of the file: ranks go where they hold most for their bytes.
      source: whose singular values those are: of the `gradient` of the loss, or of the change of a first full
        `training`.
      zero: the factor that starts at zero, `left` or `right`; None: the right one up to rank 2, else the left one.
      bits: of each factor's entries, rounded straight-through; None: float32 as published.
      aux: bits of the aux leaves' deltas; None leaves them as deployed.
      rate: multiplies the task's learning rate.

    Returns:
      A method; one for use within rules where `rank` is a number.

    Raises:
      Error: an option is out of range, or not just one of rank, energy and max_bytes is given.

    Paper: Update Compression, section 3.
    """
    if sum(given is not None for given in (rank, energy, max_bytes)) != 1:
        raise Error("rank: expected one of rank, energy and max_bytes, found none of them or several; give rank=4")
    if zero not in (None, *factorize.SIDES):
        raise Error(f"zero: expected {' or '.join(factorize.SIDES)}, the factor that starts at zero, found {zero!r}")

    def of_rank(columns: int) -> base.Trained:
        factorize.check_rank(columns)
        return base.trained("low_rank", LowRank(columns, bits, zero), bits=bits, aux=aux, rate=rate)

    if isinstance(rank, Mapping):
        return rules.by_path({pattern: of_rank(columns) for pattern, columns in rank.items()})
    if rank is not None:
        return of_rank(rank)
    return ranks.Allocated(of_rank(1), ranks.check(energy, max_bytes, source))


class _Fixed(NamedTuple):
    grid: quantize.Grid | None  # None: not rounded
    rank: np.int32  # columns that count; those up to the bucket are zero


@dataclasses.dataclass(frozen=True)
class LowRank:
    """The form of kernels that change by a product of two factors."""

    rank: int
    bits: int | None
    zero: str | None = None
    seeded = False
    lossless = False

    @staticmethod
    def rebuild(trained: factorize.Factors, fixed: _Fixed, old: jax.Array, leaf: Leaf) -> jax.Array:
        """W + U V^T, both factors rounded."""
        factors = trained if fixed.grid is None else factorize.quantized(trained, fixed.grid, rank=fixed.rank)
        return old + factorize.product(factors, old.shape, view=leaf.view)

    def parametrise(self, site: Site) -> Parametrised:
        """Factors whose product is zero, with columns of zeros up to their bucket."""
        shape, view = site.old.shape, site.leaf.view
        largest = min(views.shape_of(shape, view)[1:])
        rank = np.int32(min(self.rank, largest))
        columns = factorize.bucket(int(rank), largest)
        factors = _init(site.key, shape, rank, view=view, columns=columns, zero=self.zero)
        return Parametrised(factors, _Fixed(quantize.grid(self.bits) if self.bits else None, rank))

    def block(self, trained: factorize.Factors, parametrised: Parametrised, site: Site) -> Block:
        """The integers of both factors."""
        rank = int(parametrised.fixed.rank)
        if self.bits is None:
            return factorize.to_plain_block(trained, view=site.leaf.view, rank=rank)
        return factorize.to_block(trained, self.bits, view=site.leaf.view, rank=rank)


_init = jax.jit(factorize.init, static_argnames=("shape", "view", "columns", "zero"))
