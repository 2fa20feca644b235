"""Optax wrappers for training an update: a dynamic learning rate, and masks that keep unsent weights bit for bit."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from updcomp import trees
from updcomp.trees import PyTree

OptimizerFactory = Callable[[float], optax.GradientTransformation]


def with_learning_rate(factory: OptimizerFactory) -> optax.GradientTransformationExtraArgs:
    """An optimizer whose learning rate is an argument of `update`, so that no value of it recompiles a step.

    Adam, AdamW, SGD with momentum and most of optax scale by the learning rate last, so the updates of `factory(1.0)`
    times the rate are theirs. Those that accumulate after scaling (`rmsprop` with momentum, `lars`) apply the
    schedule after momentum, unlike optax.

    Args:
      factory: learning rate -> optax transformation, such as `optax.adam`.

    Returns:
      A transformation whose `update` takes the keyword `learning_rate`: a scalar, or a tree of which the updates are
      parts, such as one scalar per named leaf.

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
        scaled = jax.tree.map(
            lambda rate, part: jax.tree.map(lambda u: (rate * u).astype(u.dtype), part), learning_rate, updates
        )
        return scaled, state

    return optax.GradientTransformationExtraArgs(inner.init, update)


def on_tree(optimizer: optax.GradientTransformation, tree: PyTree) -> optax.GradientTransformationExtraArgs:
    """Shows an optimizer the user's own tree, where the loop has trained leaves by name.

    Each trained leaf stands in its own place, as what trains there: the weights, or a subtree of factors. In place of
    every other leaf is `optax.MaskedNode()`, so that masks and labels for the whole tree fit.

    Args:
      optimizer: the user's.
      tree: the model, or any tree of its structure.

    Returns:
      The same transformation of dicts name -> leaf.

    >>> params = {"a": jnp.ones(2), "b": jnp.ones(2)}
    >>> decay = optax.add_decayed_weights(0.5, mask={"a": True, "b": True})
    >>> optimizer, named = on_tree(decay, params), {"a": jnp.ones(2)}
    >>> optimizer.update(named, optimizer.init(named), named)[0]
    {'a': Array([1.5, 1.5], dtype=float32)}
    """
    inner = optax.with_extra_args_support(optimizer)
    prefix, parameters = trees.parameters(tree)

    def placed(named: PyTree) -> PyTree:
        local = {name.removeprefix(prefix): part for name, part in named.items()}
        return trees.with_subtrees(parameters, local, optax.MaskedNode())

    def init(params: PyTree) -> optax.OptState:
        return inner.init(placed(params))

    def update(
        gradients: PyTree, state: optax.OptState, params: PyTree | None = None, **extra: Any
    ) -> tuple[PyTree, optax.OptState]:
        updates, state = inner.update(placed(gradients), state, None if params is None else placed(params), **extra)
        found = trees.subtrees_at(parameters, updates)
        return {name: found[name.removeprefix(prefix)] for name in gradients}, state

    return optax.GradientTransformationExtraArgs(init, update)


def masked(optimizer: optax.GradientTransformation) -> optax.GradientTransformationExtraArgs:
    """Moves only the weights that are sent: the *final* update is zeroed elsewhere, after momentum and decay.

    `optax.masked` chooses whole leaves; this mask is elementwise and an argument of `update`, so that a new mask does
    not recompile a step.

    Args:
      optimizer: any optax transformation whose updates are added to the weights as they are.

    Returns:
      A transformation whose `update` takes the keyword `mask`: booleans like the parameters, True = sent; a scalar
      stands for a whole leaf or subtree.

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
        moved = jax.tree.map(
            lambda m, part: jax.tree.map(lambda u: jnp.where(m, u, jnp.zeros_like(u)), part), mask, updates
        )
        return moved, state

    return optax.GradientTransformationExtraArgs(inner.init, update)


@functools.cache
def every_third(factor: float) -> Callable[[jax.Array], jax.Array]:
    """A schedule on the progress of training, from 0 to 1: times `factor` after each third of it."""
    return lambda progress: jnp.float32(factor) ** jnp.floor(3 * jnp.minimum(progress, 0.999))


def cosine(progress: jax.Array) -> jax.Array:
    """A schedule on the progress of training, from 0 to 1: half a cosine from 1 to 0."""
    return 0.5 * (1 + jnp.cos(jnp.pi * progress))


def constant(progress: jax.Array) -> jax.Array:
    """A schedule on the progress of training: 1 throughout."""
    return jnp.ones_like(progress)
