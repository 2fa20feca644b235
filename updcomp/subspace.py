"""Updates inside a basis that both sides derive from the deployed weights: W_new = W + A C B^T, only C is sent.

In floating point, with A and B the singular vectors of W, this is LoRA-XS (Balazy et al., arXiv 2405.17604).
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from updcomp import arrays, factorize, partition, quantize, trees
from updcomp.quantize import Grid
from updcomp.trees import PyTree
from updcomp.wire import basis, dtypes, views
from updcomp.wire.kinds.coefficients import Coefficients
from updcomp.wire.views import View


class Basis(NamedTuple):
    """What both sides hold for one kernel, seen as `stack` matrices (fan_in, fan_out): near-orthonormal columns."""

    left: jax.Array  # A, float32 (stack, fan_in, min(rank, fan_in))
    right: jax.Array  # B, float32 (stack, fan_out, min(rank, fan_out))


def basis_of(kernel: Any, rank: int, *, index: int, seed: int = 0, view: View | None = None) -> Basis:
    """The basis of a kernel, exactly as the device will derive it.

    Args:
      kernel: the deployed array.
      rank: number of columns asked for; a kernel gets at most `basis.max_rank` of its shape.
      index: of the leaf in the sorted order of the model's leaf names.
      seed: of the random start of the range finder; the packet's seed.
      view: which axes of the kernel are fan-in and fan-out; default: the last one is fan-out.

    Returns:
      Its `Basis`.

    Raises:
      Error: the rank is below 1.

    >>> basis_of(jnp.eye(6, 4), rank=2, index=0).left.shape
    (1, 6, 2)
    """
    factorize.check_rank(rank)
    held = dtypes.hold(arrays.to_host(kernel))
    columns = basis.of(held, min(rank, basis.max_rank(held.shape, view)), seed=seed, index=index, view=view)
    return Basis(*(jnp.asarray((side * 2.0**-basis.FRACTION).astype(np.float32)) for side in columns))


def bases_of(deployed: PyTree, rank: int, *, seed: int = 0, axes: Mapping[str, str] | None = None) -> dict[str, Basis]:
    """The bases of all kernels of a deployed model.

    Args:
      deployed: any pytree of arrays.
      rank: number of columns asked for.
      seed: as for `updcomp.pack`.
      axes: how kernels are read as matrices; see `partition.of`.

    Returns:
      Kernel name -> `Basis`.

    >>> list(bases_of({"w": jnp.eye(6, 4), "b": jnp.ones(4)}, rank=2))
    ['w']
    """
    parts, leaves = partition.of(deployed, axes=axes), trees.named_leaves(deployed)
    return {
        leaf.name: basis_of(leaves[leaf.name], rank, index=index, seed=seed, view=leaf.view)
        for index, leaf in enumerate(parts.leaves)
        if leaf.role == partition.KERNEL
    }


def widened(rank: int, shape: tuple[int, ...], *, view: View | None = None) -> int:
    """The rank of a kernel that is narrower than the rank on one side, so that it is not left with few coefficients.

    With n = min(fan_in, fan_out) a kernel has rank n coefficients where n < rank, and rank^2 elsewhere. Of rank
    sqrt(rank / n) it has the geometric mean of both: a last layer, such as (512, 10), changes much for its size.

    Args:
      rank: asked for, at least 1.
      shape: of the kernel.
      view: of the kernel, as the basis has it.

    Returns:
      The rank itself where the kernel is as wide, or empty; at most `basis.max_rank` of the shape elsewhere.

    >>> widened(40, (512, 10)), widened(40, (512, 512))
    (80, 40)
    """
    narrow = min(views.shape_of(shape, views.resolve(view, len(shape)))[1:])
    if not 0 < narrow < rank:
        return rank
    return max(1, min(round(rank * (rank / narrow) ** 0.5), basis.max_rank(shape, view)))


def update(coefficients: jax.Array, of: Basis, shape: tuple[int, ...], *, view: View | None = None) -> jax.Array:
    """The update A C B^T in the shape of its kernel.

    Args:
      coefficients: float32 (stack, A's columns, B's columns).
      of: the kernel's basis.
      shape: of the kernel.
      view: of the kernel, as the basis has it.

    Returns:
      float32 array of that shape.
    """
    return views.join(of.left @ coefficients @ of.right.mT, shape, views.resolve(view, len(shape)))


def project(delta: jax.Array, of: Basis, *, view: View | None = None) -> jax.Array:
    """The coefficients of the part of an update that lies in the basis: C = A^T delta B.

    Args:
      delta: a kernel's update.
      of: the kernel's basis.
      view: of the kernel, as the basis has it.

    Returns:
      float32 (stack, A's columns, B's columns); `update` of it is the projection of delta, as far as the basis is
      orthonormal.
    """
    return of.left.mT @ views.split(delta, views.resolve(view, delta.ndim)) @ of.right


@jax.jit
def _rounded(coefficients: jax.Array, grid: Grid, counts: jax.Array | None) -> tuple[jax.Array, jax.Array]:
    step = quantize.dynamic_step(coefficients, grid, where=counts)
    return quantize.levels(coefficients, step, grid), step


def to_block(
    coefficients: jax.Array, bits: int | Grid, *, view: View | None = None, counts: np.ndarray | None = None
) -> Coefficients:
    """The block of a kernel's trained coefficients, for a `Packet`.

    Args:
      coefficients: float32 (stack, A's columns, B's columns).
      bits: from 2 to 16, or their `Grid`.
      view: of the kernel, as the basis has it.
      counts: bool (A's columns, B's columns), a leading block of True: those that count and travel; default: all.

    Returns:
      The integers and their step.

    >>> block = to_block(jnp.array([[[0.5, -1.0], [0.0, 1.0]]]), bits=2)
    >>> block.values.tolist(), block.rank, block.step
    ([[1, -1], [0, 1]], 2, 0.91796875)
    """
    found, step = _rounded(coefficients, quantize.grid(bits), None if counts is None else counts[None])
    rows, columns = coefficients.shape[1:] if counts is None else (counts[:, 0].sum(), counts[0].sum())
    values = arrays.to_host(found)[:, :rows, :columns].astype(np.int32).reshape(-1, columns)
    return Coefficients(values, int(max(rows, columns)), float(step), view)
