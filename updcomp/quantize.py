"""Uniform quantisation that training can see through, and the integers that the wire carries.

A value x becomes q = clip(round(x / step), -L, L) with L = 2^(bits - 1) - 1, and is read back as q * step. Steps are
rounded to 8 significant bits wherever they are used, so that the trainer sees a step that can travel.
"""

import jax
import jax.numpy as jnp
import numpy as np

from updcomp.wire.errors import Error
from updcomp.wire.packet import round_step

# The step, in standard deviations, of the uniform quantiser with 2 L + 1 levels that has the least mean squared error
# on a normal distribution, by bits; more bits gain nothing from clipping tails.
_NORMAL_STEP = {2: 1.224, 3: 0.651, 4: 0.352, 5: 0.191, 6: 0.104, 7: 0.0567, 8: 0.0308}
_SMALLEST_STEP = 1e-15


def max_level(bits: int) -> int:
    """L, the largest integer at a number of bits: 1, 3, 7, ... for 2, 3, 4, ...

    >>> max_level(4)
    7
    """
    if not isinstance(bits, int) or not 2 <= bits <= 16:
        raise Error(f"bits: expected from 2 to 16, found {bits}")
    return 2 ** (bits - 1) - 1


def dynamic_step(x: jax.Array, bits: int, *, where: jax.Array | None = None) -> jax.Array:
    """The step for the values that an array holds now: the widest that loses neither range nor, at few bits, precision.

    step = min(max|x| / L, c(bits) * rms(x)), where c is the least-squares step of a normal distribution; rounded
    to 8 significant bits. No gradient flows through it.

    Args:
      x: floating array.
      bits: from 2 to 16.
      where: booleans of the shape of x; the values that count (default: all).

    Returns:
      A float32 scalar above 0.

    >>> float(dynamic_step(jnp.array([-7.0, 7.0, 0.0, 1.0]), 4))
    1.0
    """
    level = max_level(bits)
    x = jax.lax.stop_gradient(x).astype(jnp.float32)
    used = jnp.ones(x.shape, bool) if where is None else where
    magnitude = jnp.where(used, jnp.abs(x), 0)
    step = jnp.max(magnitude, initial=0) / level
    if bits in _NORMAL_STEP:
        rms = jnp.sqrt(jnp.sum(magnitude**2) / jnp.maximum(jnp.sum(used, dtype=jnp.float32), 1))
        step = jnp.minimum(step, _NORMAL_STEP[bits] * rms)
    return jax.lax.reduce_precision(jnp.maximum(step, _SMALLEST_STEP), exponent_bits=8, mantissa_bits=7)


def levels(x: jax.Array, step: jax.Array, bits: int) -> jax.Array:
    """Q = clip(round(x / step), -L, L), as floats; halves round to even.

    >>> levels(jnp.array([0.24, -9.0]), 0.1, 4).tolist()
    [2.0, -7.0]
    """
    level = max_level(bits)
    return jnp.clip(jnp.round(x / step), -level, level)


def straight_through(x: jax.Array, step: jax.Array, bits: int) -> jax.Array:
    """What the device will read, q * step, with the gradient of the identity.

    Args:
      x: floating array.
      step: as from `dynamic_step`.
      bits: from 2 to 16.

    Returns:
      An array of the shape and dtype of x; d/dx is 1 everywhere, also where it clips.

    >>> jax.grad(lambda x: straight_through(x, 0.1, 4))(0.24).item()
    1.0
    """
    return x + jax.lax.stop_gradient(levels(x, step, bits) * step - x).astype(x.dtype)


def to_integers(x: np.ndarray, bits: int, *, step: float | None = None) -> tuple[np.ndarray, float]:
    """The integers and the step that travel for a trained array.

    Args:
      x: floating array of any shape.
      bits: from 2 to 16.
      step: the step that training used; default: the one of least mean squared error.

    Returns:
      int32 integers of the shape of x, and the step as the wire carries it.

    >>> to_integers(np.array([0.1, -0.7]), 4, step=0.1)[0].tolist()
    [1, -7]
    """
    level = max_level(bits)
    x = np.asarray(x, np.float64)
    step = least_squares_step(x, bits) if step is None else round_step(step)
    return np.clip(np.rint(x / step), -level, level).astype(np.int32), step


def least_squares_step(x: np.ndarray, bits: int) -> float:
    """The step of least mean squared error among 40 between max|x| / L and an eighth of it.

    Args:
      x: floating array of any shape; up to 65,536 of its values are looked at.
      bits: from 2 to 16.

    Returns:
      A step as `round_step` gives it; 1.0 for an array of zeros.

    >>> least_squares_step(np.array([7.0, -3.0, 1.0]), 4)
    1.0
    """
    level = max_level(bits)
    x = np.abs(np.asarray(x, np.float64)).ravel()
    largest = x.max(initial=0.0)
    if largest == 0:
        return 1.0
    sample = x[:: max(1, -(-x.size // 65_536))]
    steps = [round_step(largest / level * 2 ** (-i / 13)) for i in range(40)]
    errors = [np.mean((np.minimum(np.rint(sample / step), level) * step - sample) ** 2) for step in steps]
    return steps[int(np.argmin(errors))]
