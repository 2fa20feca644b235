"""Trained leaves as integers: the same rounding in training and on the wire."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from updcomp import arrays, quantize
from updcomp.partition import Leaf
from updcomp.wire.kind import Block
from updcomp.wire.kinds.dense import Dense
from updcomp.wire.kinds.exact import Exact
from updcomp.wire.kinds.half import Half
from updcomp.wire.kinds.raw import Raw

RAW = 32  # bits of aux leaves that travel as they are


class Rounding(NamedTuple):
    """The fixed part of kernels that train as weights whose change is rounded."""

    grid: quantize.Grid
    mask: jax.Array | None = None  # booleans like the kernel: the weights that set the step; None: all


def rounded(trained: jax.Array, fixed: Rounding, old: jax.Array, leaf: Leaf) -> jax.Array:
    """The `Rebuild` of weights whose change from the deployed ones is rounded straight-through."""
    change = trained - old
    step = quantize.dynamic_step(change, fixed.grid, where=fixed.mask)
    return old + quantize.straight_through(change, step, fixed.grid)


@jax.jit
def _levels(old: jax.Array, new: jax.Array, fixed: Rounding) -> tuple[jax.Array, jax.Array]:
    change = new - old
    step = quantize.dynamic_step(change, fixed.grid, where=fixed.mask)
    return quantize.levels(change, step, fixed.grid).astype(jnp.int16), step  # 16 bits at most


def integers(old: jax.Array, new: jax.Array, fixed: Rounding) -> tuple[np.ndarray, float]:
    """The integers and the step that `rounded` trained for a kernel.

    Args:
      old: the deployed kernel, float32.
      new: the trained weights, float32.
      fixed: as in training.

    Returns:
      int32 of the kernel's shape, or (n,) in C order where a mask chooses n of them; and the step.
    """
    found, step = _levels(old, new, fixed)
    values = arrays.to_host(found)
    values = values if fixed.mask is None else values[arrays.to_host(fixed.mask)]
    return values.astype(np.int32), float(step)


def aux_block(before: ArrayLike, after: ArrayLike, bits: int) -> Block:
    """The block of one aux leaf's change; a leaf that is positive, as a variance is, stays positive.

    Args:
      before: the deployed leaf.
      after: the trained one.
      bits: 4 and 8 are integers with a least-squares step, 16 is a float16 delta, `RAW` the leaf as it is.

    Returns:
      `Dense`, `Half` or `Raw`; also `Raw` where rounding would lose the sign or overflow, and `Exact` for integers.
    """
    old, new = arrays.to_host(before), arrays.to_host(after)
    if not jnp.issubdtype(old.dtype, jnp.floating):
        return Exact(new.astype(old.dtype))
    if bits == RAW:
        return Raw(new.astype(old.dtype))
    change = new.astype(np.float32) - old.astype(np.float32)
    block: Block
    if bits == 16:
        with np.errstate(over="ignore"):
            block = Half(change.astype(np.float16))
        increments = block.delta.astype(np.float32)
    else:
        block = Dense(*quantize.to_integers(change, bits))
        increments = (block.values * block.step).astype(np.float32)
    result = old.astype(np.float32) + increments
    positive = bool(np.all(old > 0) and np.all(new > 0))
    if np.all(np.isfinite(result)) and not (positive and np.any(result <= 0)):
        return block
    return Raw(new.astype(old.dtype))
