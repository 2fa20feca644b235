"""Low-rank updates: W_new = W + U V^T with W frozen.

Chen et al.: Update Compression for Deep Neural Networks on the Edge (CVPR Workshops 2022, arXiv 2203.04516).
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from updcomp import arrays, quantize
from updcomp.quantize import Grid
from updcomp.wire import views
from updcomp.wire.errors import Error
from updcomp.wire.kinds import factors as wire
from updcomp.wire.kinds import mapped
from updcomp.wire.views import View

SIDES = ("left", "right")
_BUCKET = 4
_PLAIN_BITS = 20  # of entries that take 32: the product of integers must be exact


class Factors(NamedTuple):
    """The trained factors of one kernel, seen as `stack` matrices of shape (fan_in, fan_out)."""

    left: jax.Array  # U, float32 (stack, fan_in, rank)
    right: jax.Array  # V, float32 (stack, fan_out, rank)


def check_rank(rank: int) -> None:
    """Checks a number of columns that is asked for, whatever the kernel.

    Raises:
      Error: it is no integer, or below 1.
    """
    if not isinstance(rank, int) or rank < 1:
        raise Error(f"rank: expected at least 1, found {rank}")


def bucket(rank: int, largest: int) -> int:
    """The number of columns that a rank is trained with: the next power of 4, at most `largest`.

    Columns from the rank on are zero and stay so, so that ranks of one bucket share their compiled training.

    >>> [bucket(rank, 48) for rank in (1, 4, 5, 17)]
    [4, 4, 16, 48]
    """
    columns = _BUCKET
    while columns < rank:
        columns *= _BUCKET
    return min(columns, largest)


def init(
    key: jax.Array,
    shape: tuple[int, ...],
    rank: int | jax.Array,
    *,
    view: View | None = None,
    columns: int | None = None,
    zero: str | None = None,
) -> Factors:
    """Factors whose product is zero, so that training starts from the deployed kernel.

    One factor is zero and the other normal with variance 1 / (its number of rows): by default V starts at zero up to
    rank 2, U above, which is what trains better.

    Args:
      key: PRNG key.
      shape: of the kernel.
      rank: number of columns that train, at least 1 and at most min(fan_in, fan_out).
      view: which axes of the kernel are fan-in and fan-out; default: the last one is fan-out.
      columns: of each factor; those from the rank on are zero; default: the rank.
      zero: the factor that is zero, one of `SIDES`; default: by the rank.

    Returns:
      float32 `Factors`.

    Raises:
      Error: the rank is out of range.

    Paper: Update Compression (CVPR Workshops 2022), section 3.

    >>> factors = init(jax.random.key(0), (3, 3, 16, 32), rank=4)
    >>> factors.left.shape, factors.right.shape
    ((1, 144, 4), (1, 32, 4))
    """
    stack, fan_in, fan_out = views.shape_of(shape, views.resolve(view, len(shape)))
    if isinstance(rank, int):
        if not 1 <= rank <= min(fan_in, fan_out):
            raise Error(f"rank: expected from 1 to {min(fan_in, fan_out)} for shape {shape}, found {rank}")
        columns = columns or rank
    if columns is None:
        raise Error("columns: expected a number where the rank is an argument of a compiled function, found None")
    normal = jax.random.normal(key, (stack, max(fan_in, fan_out), columns))
    left, right = (normal[:, :rows] / rows**0.5 for rows in (fan_in, fan_out))
    counts = (jnp.arange(columns) < rank)[None, None]
    is_right_zero = jnp.asarray(rank) <= 2 if zero is None else jnp.asarray(zero == "right")
    return Factors(jnp.where(counts & is_right_zero, left, 0), jnp.where(counts & ~is_right_zero, right, 0))


def product(factors: Factors, shape: tuple[int, ...], *, view: View | None = None) -> jax.Array:
    """The update U V^T in the shape of its kernel.

    >>> product(Factors(jnp.ones((1, 4, 1)), jnp.ones((1, 2, 1))), (2, 2, 2)).shape
    (2, 2, 2)
    """
    return views.join(factors.left @ factors.right.mT, shape, views.resolve(view, len(shape)))


def steps(
    factors: Factors, bits: int | Grid, *, rank: int | np.int32 | jax.Array | None = None
) -> tuple[jax.Array, jax.Array]:
    """The step of each factor, over its first `rank` columns (default: all)."""
    left, right = (
        quantize.dynamic_step(
            factor, bits, where=None if rank is None else jnp.arange(factor.shape[-1])[None, None] < rank
        )
        for factor in factors
    )
    return left, right


def quantized(factors: Factors, bits: int | Grid, *, rank: int | np.int32 | jax.Array | None = None) -> Factors:
    """The factors as the wire carries them, with straight-through gradients.

    Each factor has a step of its own; the wire carries the product of both, rounded. The left factor takes up what
    that rounding changes, so that the product here is the product that the device computes.

    Args:
      factors: float32 `Factors`.
      bits: from 2 to 16, or their `Grid`.
      rank: how many of the columns count, where the others are zero; default: all.

    Returns:
      `Factors` of the same shapes.
    """
    left_step, right_step = steps(factors, bits, rank=rank)
    left = quantize.straight_through(factors.left, left_step, bits)
    correction = product_step(left_step, right_step) / (left_step * right_step)
    return Factors(left * correction, quantize.straight_through(factors.right, right_step, bits))


def product_step(left_step: jax.Array, right_step: jax.Array) -> jax.Array:
    """The one step that travels for both factors: their product, rounded to 8 significant bits."""
    return jax.lax.reduce_precision(left_step * right_step, exponent_bits=8, mantissa_bits=7)


@jax.jit
def _rounded(factors: Factors, grid: Grid, rank: jax.Array) -> tuple[Factors, jax.Array]:
    left_step, right_step = steps(factors, grid, rank=rank)
    left, right = quantize.levels(factors.left, left_step, grid), quantize.levels(factors.right, right_step, grid)
    return Factors(left, right), product_step(left_step, right_step)


def to_block(factors: Factors, bits: int | Grid, *, view: View | None = None, rank: int | None = None) -> wire.Factors:
    """The block of a kernel's trained factors, for a `Packet`.

    Args:
      factors: as `quantized` rounds them in training, or any others.
      bits: from 2 to 16, or their `Grid`.
      view: of the kernel; default: the last axis is fan-out.
      rank: how many of the columns count and travel; default: all.

    Returns:
      The integers of both factors and the step of their product.

    >>> delta = jnp.outer(jnp.array([1.0, 2.0, 3.0]), jnp.array([1.0, -1.0]))
    >>> block = to_block(truncated_svd(delta, 1), bits=8)
    >>> bool(jnp.allclose(block.left @ block.right.T * block.step, delta, atol=0.05))
    True
    """
    columns = factors.left.shape[-1] if rank is None else rank
    rounded, step = _rounded(factors, quantize.grid(bits), np.int32(columns))
    left, right = (arrays.to_host(factor)[..., :columns].astype(np.int32).reshape(-1, columns) for factor in rounded)
    return wire.Factors(left, right, float(step), view)


def to_plain_block(factors: Factors, *, view: View | None = None, rank: int | None = None) -> mapped.Mapped:
    """The block of factors in float32, for comparison: every entry takes 32 bits as it is.

    The device multiplies integers, so each entry is one of 20 bits, which is all that matters of a float32.

    Args:
      factors: any.
      view: of the kernel; default: the last axis is fan-out.
      rank: how many of the columns count and travel; default: all.

    Returns:
      A block of the map `factors`.
    """
    columns = factors.left.shape[-1] if rank is None else rank
    left, right = (arrays.to_host(factor)[..., :columns] for factor in factors)
    (u, first), (v, second) = (quantize.to_exact_integers(part, _PLAIN_BITS) for part in (left, right))
    return mapped.Mapped("factors", np.concatenate([u, v]), first * second, width=mapped.WIDEST, view=view)


def truncated_svd(delta: jax.Array, rank: int, *, view: View | None = None) -> Factors:
    """The best factors of a given update: U V^T nearest to delta in the least-squares sense (Eckart-Young).

    Args:
      delta: a kernel's update, any shape with more than one axis.
      rank: number of singular values kept, at least 1.
      view: which axes of the kernel are fan-in and fan-out; default: the last one is fan-out.

    Returns:
      `Factors` that share the singular values equally.

    >>> delta = jnp.outer(jnp.array([1.0, 2.0, 3.0]), jnp.array([1.0, -1.0]))
    >>> bool(jnp.allclose(product(truncated_svd(delta, 1), delta.shape), delta, atol=1e-5))
    True
    """
    matrices = views.split(delta, views.resolve(view, delta.ndim))
    left, values, right = jnp.linalg.svd(matrices.astype(jnp.float32), full_matrices=False)
    root = jnp.sqrt(values[:, None, :rank])
    return Factors(left[:, :, :rank] * root, right[:, :rank].mT * root)
