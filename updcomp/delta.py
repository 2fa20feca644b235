"""Update deltas between two parameter trees: delta = new - old."""

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from updcomp import arrays, quantize
from updcomp.trees import PyTree
from updcomp.wire.kinds.dense import Dense
from updcomp.wire.kinds.sparse import Sparse
from updcomp.wire.views import View


def between(old: PyTree, new: PyTree) -> PyTree:
    """The update: delta = new - old, leaf by leaf.

    Args:
      old: a pytree of floating arrays.
      new: a pytree of the same structure, shapes and dtypes.

    Returns:
      A pytree of the same structure.

    >>> between({"w": jnp.array([1.0, 2.0])}, {"w": jnp.array([1.5, 2.0])})["w"].tolist()
    [0.5, 0.0]
    """
    return jax.tree.map(jnp.subtract, new, old)


def rewind(old: PyTree, new: PyTree, mask: PyTree) -> PyTree:
    """Takes back the update where it is not sent: w = m * new + (1 - m) * old.

    Args:
      old: the weights at the start of the round.
      new: the weights after full fine-tuning.
      mask: booleans of the same shapes, True = sent.

    Returns:
      A pytree of the same structure; every unsent weight has the old one's bits.

    Paper: Qu et al., Deep Partial Updating (ECCV 2022), step 5.

    >>> rewind({"w": jnp.zeros(2)}, {"w": jnp.ones(2)}, {"w": jnp.array([True, False])})["w"].tolist()
    [1.0, 0.0]
    """
    return jax.tree.map(lambda o, n, m: jnp.where(m, n, o), old, new, mask)


def to_block(
    old: ArrayLike, new: ArrayLike, bits: int, *, mask: ArrayLike | None = None, view: View | None = None
) -> Dense | Sparse:
    """The block of a leaf's change, rounded to integers, for a `Packet`.

    Args:
      old: the deployed leaf, floating.
      new: the trained one.
      bits: of each weight's change, from 2 to 16; the step is the one of `quantize.dynamic_step`.
      mask: booleans of the same shape, True = sent; default: all of it.
      view: how the leaf is read as matrices where all of it is sent; default: the last axis is fan-out.

    Returns:
      `Dense`, or `Sparse` at the positions of a mask.

    >>> block = to_block(jnp.zeros(4), jnp.array([7.0, 0.0, 1.0, 9.0]), 4, mask=jnp.array([True, False, True, False]))
    >>> block.positions.tolist(), block.values.tolist(), block.step
    ([0, 2], [7, 1], 1.0)
    """
    change = between(jnp.asarray(old, jnp.float32), jnp.asarray(new, jnp.float32))
    where = None if mask is None else jnp.asarray(mask)
    values, step = quantize.to_integers(change, bits, step=quantize.dynamic_step(change, bits, where=where))
    if where is None:
        return Dense(values, step, view)
    sent = arrays.to_host(where)
    return Sparse(np.flatnonzero(sent), values[sent], step)
