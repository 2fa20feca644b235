"""Optax wrappers for training an update: a dynamic learning rate, and masks that keep unsent weights bit for bit."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from updcomp.trees import PyTree

OptimizerFactory = Callable[[float], optax.GradientTransformation]


def with_learning_rate(factory: OptimizerFactory) -> optax.GradientTransformationExtraArgs:
    """An optimizer whose learning rate is an argument of `update`, so that no value of it recompiles a step.

    Adam, AdamW, SGD with momentum and most of optax scale by the learning rate last, so the updates of `factory(1.0)`
    times the rate are theirs. Those that accumulate after scaling (`rmsprop` with momentum, `lars`) see the schedule
    outside of their momentum instead.

    Args:
      factory: learning rate -> optax transformation, such as `optax.adam`.

    Returns:
      A transformation whose `update` takes the keyword `learning_rate`.

    >>> optimizer = with_learning_rate(optax.sgd)
    >>> updates, _ = optimizer.update(jnp.array(2.0), optimizer.init(jnp.array(0.0)), learning_rate=0.5)
    >>> float(updates)
    -1.0
    """
    inner = optax.with_extra_args_support(factory(1.0))

    def update(
        gradients: PyTree, state: optax.OptState, params: PyTree | None = None, *, learning_rate: Any, **extra: Any
    ) -> tuple[PyTree, optax.OptState]:
        # Adam's bias correction mixes dtypes, which would fail in a strict session.
        with jax.numpy_dtype_promotion("standard"):
            updates, state = inner.update(gradients, state, params, **extra)
        return jax.tree.map(lambda u: (learning_rate * u).astype(u.dtype), updates), state

    return optax.GradientTransformationExtraArgs(inner.init, update)


def masked(optimizer: optax.GradientTransformation) -> optax.GradientTransformationExtraArgs:
    """Moves only the weights that are sent: the *final* update is zeroed elsewhere, after momentum and decay.

    `optax.masked` chooses whole leaves; this mask is elementwise and an argument of `update`, so that a new mask does
    not recompile a step.

    Args:
      optimizer: any optax transformation whose updates are added to the weights as they are.

    Returns:
      A transformation whose `update` takes the keyword `mask`: booleans like the parameters (or scalars that stand
      for whole leaves), True = sent.

    >>> optimizer = masked(optax.sgd(1.0))
    >>> state = optimizer.init(jnp.zeros(2))
    >>> optimizer.update(jnp.ones(2), state, mask=jnp.array([True, False]))[0].tolist()
    [-1.0, 0.0]
    """
    inner = optax.with_extra_args_support(optimizer)

    def update(
        gradients: PyTree, state: optax.OptState, params: PyTree | None = None, *, mask: PyTree, **extra: Any
    ) -> tuple[PyTree, optax.OptState]:
        updates, state = inner.update(gradients, state, params, **extra)
        return jax.tree.map(lambda u, m: jnp.where(m, u, jnp.zeros_like(u)), updates, mask), state

    return optax.GradientTransformationExtraArgs(inner.init, update)


def every_third(factor: float) -> Callable[[jax.Array], jax.Array]:
    """A schedule on the progress of training, from 0 to 1: times `factor` after each third of it."""
    return lambda progress: jnp.float32(factor) ** jnp.floor(3 * jnp.minimum(progress, 0.999))


def cosine(progress: jax.Array) -> jax.Array:
    """A schedule on the progress of training, from 0 to 1: half a cosine from 1 to 0."""
    return 0.5 * (1 + jnp.cos(jnp.pi * progress))


def constant(progress: jax.Array) -> jax.Array:
    """A schedule on the progress of training: 1 throughout."""
    return jnp.ones_like(progress)
