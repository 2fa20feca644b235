"""What the networks are made of: flax's layers as all of them have these, and pooling with a fast gradient."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from updcomp.convolution import convolve
from updcomp.wire.errors import Error

_he = nn.initializers.he_normal()
Dense = functools.partial(nn.Dense, kernel_init=_he)
# Batch norm follows every convolution and has the bias.
Conv = functools.partial(nn.Conv, use_bias=False, kernel_init=_he, conv_general_dilated=convolve)
BatchNorm = functools.partial(nn.BatchNorm, momentum=0.9, epsilon=1e-5)


def halve(x: jax.Array) -> jax.Array:
    """Max pooling 2 x 2; an odd last row or column is left out. A reshape, as its gradient is fast everywhere."""
    n, h, w, c = x.shape
    if min(h, w) < 2:
        raise Error(f"vgg: expected at least 2 x 2 pixels before each pooling, found {h} x {w}; use fewer stages")
    return x[:, : h // 2 * 2, : w // 2 * 2].reshape(n, h // 2, 2, w // 2, 2, c).max(axis=(2, 4))


def max_pool(x: jax.Array) -> jax.Array:
    """Max pooling 3 x 3, stride 2, with a border of one pixel. Maxima of slices, as their gradient is fast everywhere.

    Args:
      x: (n, h, w, c).

    Returns:
      (n, (h + 1) // 2, (w + 1) // 2, c).

    >>> max_pool(jnp.arange(12.0).reshape(1, 3, 4, 1))[0, :, :, 0].tolist()
    [[5.0, 7.0], [9.0, 11.0]]
    """
    x = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)), constant_values=-jnp.inf)
    for axis in (1, 2):
        last = (x.shape[axis] - 3) // 2 * 2 + 1  # where the last window starts, plus one
        x = functools.reduce(jnp.maximum, (lax.slice_in_dim(x, i, i + last, 2, axis) for i in range(3)))
    return x
