"""Update deltas between two parameter trees: delta = new - old."""

import jax
import jax.numpy as jnp

from updcomp.trees import PyTree


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
