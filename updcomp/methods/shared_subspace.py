"""Updates in a basis that both sides derive from the deployed weights: only coefficients travel."""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from updcomp import factorize, quantize
from updcomp import subspace as geometry
from updcomp.methods import base, recipes
from updcomp.methods.forms import Parametrised, Site
from updcomp.methods.mapped import MappedVector
from updcomp.partition import Leaf
from updcomp.wire.errors import Error
from updcomp.wire.kinds.coefficients import Coefficients


def subspace(
    *, rank: int, bits: int | None = 2, aux: int | None = None, rate: float = 30.0, widen: bool = False
) -> base.Trained:
    """Trains W + A C B^T and sends the small integer matrix C of every kernel.

    A and B span the leading singular directions of the deployed kernel, found in integer arithmetic by both sides. In
    floating point this is LoRA-XS (Balazy et al., arXiv 2405.17604).

    Args:
      rank: columns of A and B (at most the kernel's own), at least 1; a kernel costs up to rank^2 coefficients.
      bits: of each coefficient, rounded straight-through; None: float32, which is LoRA-XS as published.
      aux: bits of the aux leaves' deltas; None leaves them as deployed, which costs little accuracy here.
      rate: multiplies the task's learning rate; a coefficient moves many weights a little, so it wants to be high.
      widen: kernels that are narrower than the rank on one side get more columns on the other; see
        `updcomp.subspace.widened`. It pays where the last layer has to change much, as for new classes.

    Returns:
      A method.

    Raises:
      Error: an option is out of range.
    """
    factorize.check_rank(rank)
    if bits is None and widen:
        raise Error("widen: expected False with bits=None, which is LoRA-XS as published, found True")
    form = MappedVector(recipes.COEFFICIENTS, rank, None) if bits is None else Subspace(rank, bits, widen)
    return base.trained("subspace", form, bits=bits, aux=aux, rate=rate)


class _Fixed(NamedTuple):
    grid: quantize.Grid
    basis: geometry.Basis  # with columns of zeros up to the bucket
    counts: np.ndarray  # bool (A's columns, B's columns): the coefficients that count


@dataclasses.dataclass(frozen=True)
class Subspace:
    """The form of kernels that change within a basis of their own."""

    rank: int
    bits: int
    widen: bool = False
    seeded = False
    lossless = False

    @staticmethod
    def rebuild(trained: jax.Array, fixed: _Fixed, old: jax.Array, leaf: Leaf) -> jax.Array:
        """W + A C B^T, with C rounded."""
        step = quantize.dynamic_step(trained, fixed.grid, where=jnp.asarray(fixed.counts)[None])
        rounded = quantize.straight_through(trained, step, fixed.grid)
        return old + geometry.update(rounded, fixed.basis, old.shape, view=leaf.view)

    def parametrise(self, site: Site) -> Parametrised:
        """Coefficients of zero; those beyond the rank, up to its bucket, stay so."""
        view = site.leaf.view
        rank = geometry.widened(self.rank, site.held.shape, view=view) if self.widen else self.rank
        found = geometry.basis_of(site.held, rank, index=site.number, seed=site.seed, view=view)
        sides, counts = zip(*map(_padded, found), strict=True)
        shape = (len(sides[0]), *map(len, counts))
        fixed = _Fixed(quantize.grid(self.bits), geometry.Basis(*sides), np.logical_and.outer(*counts))
        return Parametrised(jnp.asarray(np.zeros(shape, np.float32)), fixed)

    def block(self, trained: jax.Array, parametrised: Parametrised, site: Site) -> Coefficients:
        """The integers of the coefficients."""
        return geometry.to_block(trained, self.bits, view=site.leaf.view, counts=parametrised.fixed.counts)


def _padded(side: jax.Array) -> tuple[jax.Array, np.ndarray]:
    """A side of a basis with zeros up to its bucket, and which of its columns count. NumPy compiles nothing."""
    columns = side.shape[-1]
    padded = np.zeros((*side.shape[:-1], factorize.bucket(columns, side.shape[1])), np.float32)
    padded[..., :columns] = side
    return jnp.asarray(padded), np.arange(padded.shape[-1]) < columns
