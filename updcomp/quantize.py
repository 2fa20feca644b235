"""Uniform quantisation that training can see through, and the integers that the wire carries.

A value x becomes q = clip(round(x / step), -L, L) with L = 2^(bits - 1) - 1, and is read back as q * step. Steps are
rounded to 8 significant bits wherever they are used, so that the trainer sees a step that can travel.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from updcomp import arrays
from updcomp.wire.errors import Error
from updcomp.wire.increments import round_step

# The step, in standard deviations, of the uniform quantiser with 2 L + 1 levels that has the least mean squared error
# on a normal distribution, by bits; more bits gain nothing from clipping tails.
_NORMAL_STEP = {2: 1.224, 3: 0.651, 4: 0.352, 5: 0.191, 6: 0.104, 7: 0.0567, 8: 0.0308}
_NO_LIMIT = 1e38
_SMALLEST_STEP = 1e-15
_SMALLEST_RANGE = 1e-10  # the product of two such steps can travel


class Grid(NamedTuple):
    """What a number of bits means, as arguments of compiled functions: other bits do not compile them anew."""

    level: jax.Array | np.floating  # float32 scalar: L, the largest integer
    normal_step: jax.Array | np.floating  # float32 scalar: c, the least-squares step of a normal distribution, or huge


def max_level(bits: int) -> int:
    """L, the largest integer at a number of bits: 1, 3, 7, ... for 2, 3, 4, ...

    >>> max_level(4)
    7
    """
    if not isinstance(bits, int) or not 2 <= bits <= 16:
        raise Error(f"bits: expected from 2 to 16, found {bits}")
    return 2 ** (bits - 1) - 1


def grid(bits: int | Grid) -> Grid:
    """The grid of a number of bits, from 2 to 16; a grid is itself.

    >>> [round(float(x), 3) for x in grid(4)]
    [7.0, 0.352]
    """
    if isinstance(bits, Grid):
        return bits
    return Grid(np.float32(max_level(bits)), np.float32(_NORMAL_STEP.get(bits, _NO_LIMIT)))


def dynamic_step(x: jax.Array, bits: int | Grid, *, where: jax.Array | None = None) -> jax.Array:
    """The step for the values that an array holds now: the widest that loses neither range nor, at few bits, precision.

    step = min(max|x| / L, c(bits) * rms(x)), where c is the least-squares step of a normal distribution; rounded
    to 8 significant bits. No gradient flows through it.

    Args:
      x: floating array.
      bits: from 2 to 16, or their `Grid`.
      where: booleans that broadcast to the shape of x; the values that count (default: all).

    Returns:
      A float32 scalar above 0.

    >>> float(dynamic_step(jnp.array([-7.0, 7.0, 0.0, 1.0]), 4))
    1.0
    """
    level, normal_step = grid(bits)
    x = jax.lax.stop_gradient(x).astype(jnp.float32)
    used = jnp.ones(x.shape, bool) if where is None else jnp.broadcast_to(where, x.shape)
    magnitude = jnp.where(used, jnp.abs(x), 0)
    rms = jnp.sqrt(jnp.sum(magnitude**2) / jnp.maximum(jnp.sum(used, dtype=jnp.float32), 1))
    step = jnp.minimum(jnp.max(magnitude, initial=0) / level, normal_step * rms)
    return jax.lax.reduce_precision(jnp.maximum(step, _SMALLEST_STEP), exponent_bits=8, mantissa_bits=7)


def levels(x: jax.Array, step: jax.Array | float, bits: int | Grid) -> jax.Array:
    """Q = clip(round(x / step), -L, L), as floats; halves round to even.

    Training and the wire both round here, so that they find the same integers.

    >>> levels(jnp.array([0.24, -9.0]), 0.1, 4).tolist()
    [2.0, -7.0]
    """
    level = grid(bits).level
    # XLA divides by a scalar in some compiled functions and multiplies by its reciprocal in others.
    reciprocal = 1 / jnp.asarray(step, jnp.float32)
    return jnp.clip(jnp.round(x * reciprocal), -level, level)


def straight_through(x: jax.Array, step: jax.Array | float, bits: int | Grid) -> jax.Array:
    """What the device will read, q * step, with the gradient of the identity.

    Args:
      x: floating array.
      step: as from `dynamic_step`.
      bits: from 2 to 16, or their `Grid`.

    Returns:
      An array of the shape and dtype of x; d/dx is 1 everywhere, also where it clips.

    >>> jax.grad(lambda x: straight_through(x, 0.1, 4))(0.24).item()
    1.0
    """
    return x + jax.lax.stop_gradient(levels(x, step, bits) * step - x).astype(x.dtype)


_compiled_levels = jax.jit(levels)


def to_integers(
    x: np.ndarray | jax.Array, bits: int | Grid, *, step: float | jax.Array | None = None
) -> tuple[np.ndarray, float]:
    """The integers and the step that travel for a trained array.

    Args:
      x: floating array of any shape; rounded as float32.
      bits: from 2 to 16, or their `Grid`.
      step: the step that training used; default: the one of least mean squared error.

    Returns:
      int32 integers of the shape of x, and the step as the wire carries it.

    >>> to_integers(np.array([0.1, -0.7]), 4, step=0.1)[0].tolist()
    [1, -7]
    """
    found = round_step(float(least_squares_step(arrays.to_host(x), bits) if step is None else step))
    rounded = _compiled_levels(jnp.asarray(x, jnp.float32), jnp.float32(found), grid(bits))
    return arrays.to_host(rounded).astype(np.int32), found


def to_exact_integers(x: np.ndarray | jax.Array, bits: int) -> tuple[np.ndarray, float]:
    """Integers of at most so many bits in place of floats that are not to be rounded, and their step, a power of two.

    Args:
      x: floating array of any shape.
      bits: 32 at most; as many as the device's exact sums allow.

    Returns:
      int32 (n,), and the step.

    >>> found, step = to_exact_integers(np.array([0.5, -0.25]), 16)
    >>> found.tolist(), (found * step).tolist()
    ([16384, -8192], [0.5, -0.25])
    """
    values = arrays.to_host(x).astype(np.float64).reshape(-1)
    largest = max(float(np.abs(values).max(initial=0)), _SMALLEST_RANGE)
    step = 2.0 ** math.ceil(math.log2(largest / (2 ** (bits - 1) - 1)))
    return np.rint(values / step).astype(np.int32), step


def least_squares_step(x: np.ndarray, bits: int | Grid) -> float:
    """The step of least mean squared error among 40 between max|x| / L and an eighth of it.

    Args:
      x: floating array of any shape; up to 65,536 of its values are looked at.
      bits: from 2 to 16, or their `Grid`.

    Returns:
      A step as `round_step` gives it; 1.0 for an array of zeros.

    >>> least_squares_step(np.array([7.0, -3.0, 1.0]), 4)
    1.0
    """
    level = float(grid(bits).level)
    x = np.abs(np.asarray(x, np.float64)).ravel()
    largest = x.max(initial=0.0)
    if largest == 0:
        return 1.0
    sample = x[:: max(1, -(-x.size // 65_536))]
    steps = [round_step(largest / level * 2 ** (-i / 13)) for i in range(40)]
    errors = [np.mean((np.minimum(np.rint(sample / step), level) * step - sample) ** 2) for step in steps]
    return steps[int(np.argmin(errors))]
