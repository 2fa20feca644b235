"""How much each weight's update contributes to the loss reduction: the scores of deep partial updating.

Qu, Liu, Thiele: Deep Partial Updating (ECCV 2022, arXiv 2007.03071).
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from updcomp.trees import PyTree
from updcomp.wire.errors import Error


class RecordState(NamedTuple):
    """State of `record`."""

    local: PyTree  # the sum of -g * d so far, one float32 per weight
    inner: optax.OptState  # the state of the recorded optimizer


def record(optimizer: optax.GradientTransformation) -> optax.GradientTransformationExtraArgs:
    """Records the local contribution of what an optimizer really does: c += -g_q * d_q at each step q.

    `d_q` is the increment that the wrapped optimizer returns (after momentum, decay and learning rate), `g_q` the
    gradient that it was given. To first order, the sum is the loss reduction that each weight is responsible for.

    Args:
      optimizer: any optax transformation whose updates are added to the weights as they are.

    Returns:
      A transformation with the same updates and `RecordState` around the inner state.

    Paper: Deep Partial Updating, section 3 (local contribution).

    >>> optimizer = record(optax.sgd(0.1))
    >>> state = optimizer.init({"w": jnp.zeros(1)})
    >>> _, state = optimizer.update({"w": jnp.array([2.0])}, state)
    >>> round(float(state.local["w"][0]), 6)
    0.4
    """
    inner = optax.with_extra_args_support(optimizer)

    def init(params: PyTree) -> RecordState:
        zeros = jax.tree.map(lambda p: jnp.zeros_like(p, jnp.float32), params)
        return RecordState(local=zeros, inner=inner.init(params))

    def update(
        gradients: PyTree, state: RecordState, params: PyTree | None = None, **extra: Any
    ) -> tuple[PyTree, RecordState]:
        updates, inner_state = inner.update(gradients, state.inner, params, **extra)
        local = jax.tree.map(
            lambda c, g, d: c - g.astype(jnp.float32) * d.astype(jnp.float32), state.local, gradients, updates
        )
        return updates, RecordState(local, inner_state)

    return optax.GradientTransformationExtraArgs(init, update)


def squared_change(old: PyTree, new: PyTree) -> PyTree:
    """The global contribution c = (new - old)^2.

    For an L-smooth loss whose gradient vanishes at `new`, the loss lost by rewinding a set of weights is at most L/2
    times the sum of their squared changes.

    Args:
      old: the weights at the start of the round.
      new: the weights after full fine-tuning.

    Returns:
      A pytree of float32 scores.

    Paper: Deep Partial Updating, section 3 (global contribution).

    >>> squared_change({"w": jnp.zeros(2)}, {"w": jnp.array([1.0, -3.0])})["w"].tolist()
    [1.0, 9.0]
    """
    return jax.tree.map(lambda o, n: jnp.square(n.astype(jnp.float32) - o.astype(jnp.float32)), old, new)


def combine(global_: PyTree, local: PyTree, weight: float = 0.5) -> PyTree:
    """Combines both contributions, each divided by its sum over all leaves.

    c = weight * global / sum(global) + (1 - weight) * local / sum(local). A local contribution whose sum is not
    positive says that training raised the loss to first order: it ranks nothing, so the global one decides alone
    (and the other way round for a global one of zero).

    Args:
      global_: scores, all >= 0.
      local: scores of the same structure.
      weight: share of the global contribution, from 0 to 1.

    Returns:
      A pytree of float32 scores.

    Raises:
      Error: the weight is outside [0, 1].

    Paper: Deep Partial Updating, section 3 (combined contribution), weight 0.5.

    >>> combine({"w": jnp.array([1.0, 3.0])}, {"w": jnp.array([1.0, 0.0])})["w"].tolist()
    [0.625, 0.375]
    """
    if not 0 <= weight <= 1:
        raise Error(f"weight: expected a number from 0 to 1, found {weight}")

    def total(scores: PyTree) -> jax.Array:
        return sum((jnp.sum(leaf) for leaf in jax.tree.leaves(scores)), start=jnp.float32(0))

    global_total, local_total = total(global_), total(local)
    share = jnp.where(local_total > 0, jnp.where(global_total > 0, weight, 0.0), 1.0)
    global_share = share / jnp.where(global_total > 0, global_total, 1.0)
    local_share = (1 - share) / jnp.where(local_total > 0, local_total, 1.0)
    return jax.tree.map(lambda g, c: global_share * g + local_share * c, global_, local)


def squared_gradients(
    loss: Callable[[PyTree, PyTree, jax.Array], jax.Array], variables: PyTree, batch: PyTree, key: jax.Array
) -> PyTree:
    """How much the loss feels an error of each weight: the diagonal of the empirical Fisher information.

    f_i = mean over rows n of (d loss_n / d w_i)^2. Where the loss is a negative log-likelihood and the model fits, it
    is the expected curvature, so that errors e raise the loss by about sum_i f_i e_i^2 / 2.

    Args:
      loss: (variables, batch, key) -> scalar, the mean over the rows of a batch.
      variables: any pytree of arrays, all of whose floating leaves count, statistics too.
      batch: a pytree of arrays with a common leading axis; memory is taken for one row's gradient at a time.
      key: PRNG key of the loss.

    Returns:
      A pytree like the variables: float32 of each leaf's shape, zeros for leaves that are not floating. It is what
      `updcomp.diff(..., sensitivity=)` takes; means of several batches of one size are means of these.

    >>> fit = lambda slope, batch, key: jnp.mean((slope * batch["x"] - batch["y"]) ** 2)
    >>> batch = {"x": jnp.array([1.0, 2.0]), "y": jnp.zeros(2)}
    >>> squared_gradients(fit, jnp.float32(1), batch, jax.random.key(0)).item()
    34.0
    """
    leaves, structure = jax.tree.flatten(variables)
    floats = [jnp.issubdtype(leaf.dtype, jnp.floating) for leaf in leaves]

    def of_row(moving: list[jax.Array], row: PyTree) -> jax.Array:
        own = iter(moving)
        whole = [next(own) if is_float else leaf for leaf, is_float in zip(leaves, floats, strict=True)]
        return loss(jax.tree.unflatten(structure, whole), jax.tree.map(lambda part: part[None], row), key)

    def add(sums: list[jax.Array], row: PyTree) -> tuple[list[jax.Array], None]:
        gradients = jax.grad(of_row)(moving, row)
        return [s + jnp.square(g.astype(jnp.float32)) for s, g in zip(sums, gradients, strict=True)], None

    moving = [leaf for leaf, is_float in zip(leaves, floats, strict=True) if is_float]
    sums, _ = jax.lax.scan(add, [jnp.zeros(leaf.shape, jnp.float32) for leaf in moving], batch)
    found, rows = iter(sums), len(jax.tree.leaves(batch)[0])
    means = [
        next(found) / rows if is_float else jnp.zeros(leaf.shape, jnp.float32)
        for leaf, is_float in zip(leaves, floats, strict=True)
    ]
    return jax.tree.unflatten(structure, means)
