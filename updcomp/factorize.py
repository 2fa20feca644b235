"""Low-rank updates: W_new = W + U V^T with W frozen.

Chen et al.: Update Compression for Deep Neural Networks on the Edge (CVPR Workshops 2022, arXiv 2203.04516).
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from updcomp import quantize
from updcomp.trees import matrix_shape
from updcomp.wire.errors import Error


class Factors(NamedTuple):
    """The trained factors of one kernel."""

    left: jax.Array  # U, float32 (fan_in, rank)
    right: jax.Array  # V, float32 (fan_out, rank)


def init(key: jax.Array, shape: tuple[int, ...], rank: int) -> Factors:
    """Factors whose product is zero, so that training starts from the deployed kernel.

    One factor is zero and the other normal with variance 1 / (its number of rows): V starts at zero up to rank 2, U
    above, which is what trains better.

    Args:
      key: PRNG key.
      shape: of the kernel; it is read as the matrix (fan_in, fan_out).
      rank: number of columns; at most min(fan_in, fan_out) of them are made.

    Returns:
      float32 `Factors`.

    Raises:
      Error: the rank is below 1.

    Paper: Update Compression (CVPR Workshops 2022), section 3.

    >>> factors = init(jax.random.key(0), (3, 3, 16, 32), rank=4)
    >>> factors.left.shape, factors.right.shape
    ((144, 4), (32, 4))
    """
    if rank < 1:
        raise Error(f"rank: expected at least 1, found {rank}")
    fan_in, fan_out = matrix_shape(shape)
    rank = min(rank, fan_in, fan_out)
    if rank <= 2:
        return Factors(jax.random.normal(key, (fan_in, rank)) / fan_in**0.5, jnp.zeros((fan_out, rank)))
    return Factors(jnp.zeros((fan_in, rank)), jax.random.normal(key, (fan_out, rank)) / fan_out**0.5)


def product(factors: Factors, shape: tuple[int, ...]) -> jax.Array:
    """The update U V^T in the shape of its kernel.

    >>> product(Factors(jnp.ones((4, 1)), jnp.ones((2, 1))), (2, 2, 2)).shape
    (2, 2, 2)
    """
    return (factors.left @ factors.right.T).reshape(shape)


def quantized(factors: Factors, bits: int) -> Factors:
    """The factors as the wire carries them, with straight-through gradients.

    Each factor has a step of its own; the wire carries the product of both, rounded. The left factor takes up what
    that rounding changes, so that the product here is the product that the device computes.

    Args:
      factors: float32 `Factors`.
      bits: from 2 to 16.

    Returns:
      `Factors` of the same shapes.
    """
    left_step, right_step = (quantize.dynamic_step(factor, bits) for factor in factors)
    left = quantize.straight_through(factors.left, left_step, bits)
    correction = product_step(left_step, right_step) / (left_step * right_step)
    return Factors(left * correction, quantize.straight_through(factors.right, right_step, bits))


def product_step(left_step: jax.Array, right_step: jax.Array) -> jax.Array:
    """The one step that travels for both factors: their product, rounded to 8 significant bits."""
    return jax.lax.reduce_precision(left_step * right_step, exponent_bits=8, mantissa_bits=7)


def truncated_svd(delta: jax.Array, rank: int) -> Factors:
    """The best factors of a given update: U V^T nearest to delta in the least-squares sense (Eckart-Young).

    Args:
      delta: a kernel's update, any shape with more than one axis.
      rank: number of singular values kept, at least 1.

    Returns:
      `Factors` that share the singular values equally.

    >>> delta = jnp.outer(jnp.array([1.0, 2.0, 3.0]), jnp.array([1.0, -1.0]))
    >>> bool(jnp.allclose(product(truncated_svd(delta, 1), delta.shape), delta, atol=1e-5))
    True
    """
    matrix = delta.reshape(matrix_shape(delta.shape))
    left, values, right = jnp.linalg.svd(matrix.astype(jnp.float32), full_matrices=False)
    root = jnp.sqrt(values[:rank])
    return Factors(left[:, :rank] * root[None], right[:rank].T * root[None])
