"""Deep partial updating: train in full, keep the updates that contribute most, rewind the rest, train on.

Qu, Liu, Thiele: Deep Partial Updating (ECCV 2022, arXiv 2007.03071).
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from updcomp import contribution, delta, selection
from updcomp.methods import base
from updcomp.training.loop import Fitted, Task
from updcomp.training.optimizers import masked
from updcomp.trees import PyTree
from updcomp.wire.errors import Error
from updcomp.wire.packet import Packet, Sparse

GLOBAL_SHARE = {"combined": 0.5, "global": 1.0, "local": 0.0}


def partial(
    *,
    ratio: float,
    scores: str = "combined",
    bits: int = 8,
    aux: int | None = 16,
    rate: float = 1.0,
    sparse_rate: float = 10.0,
    start: base.Start | None = None,
    fixed_share: float | None = None,
    keep_moments: bool = False,
) -> base.Method:
    """Sends the weights with the largest contribution to the loss reduction, after training them once more alone.

    With `start` and a deployed model whose kernels are zero, `scores="global"` is magnitude pruning: the squared
    change is the squared weight, and rewinding sets the rest to zero.

    Args:
      ratio: updating ratio, the share of all kernels' weights that is sent, above 0 and at most 1.
      scores: which contribution ranks the weights: "combined" (DPU), "global" (GCPU) or "local" (LCPU).
      bits: of each sent weight's delta, rounded straight-through in the last sparse training.
      aux: bits of the aux leaves' deltas; None leaves them as deployed.
      rate: multiplies the task's learning rate in the full training.
      sparse_rate: multiplies it in the sparse training, where fewer weights have to move further.
      start: the model that the full training starts from; default the deployed one.
      fixed_share: fixes this share of the weights that may still move, trains, and so on until `ratio` of all is left
        (the iterative variant, for one large round); default: all that are not sent at once.
      keep_moments: the sparse training goes on with the optimizer's state of the full one; default fresh.

    Returns:
      A method.

    Raises:
      Error: an option is out of range.

    Paper: Deep Partial Updating, algorithm 1, for one round. The authors keep the moments, train at `sparse_rate=1`,
    and record gradients that contain weight decay; here the local contribution is that of the loss itself.
    """
    base.check_options(bits=bits, aux=aux)
    if scores not in GLOBAL_SHARE:
        raise Error(f"scores: expected one of {sorted(GLOBAL_SHARE)}, found {scores!r}")
    ratios = narrowing(ratio, fixed_share)
    unrounded = base.quantised_delta(None)
    full_plan = base.plan("partial-full", unrounded, aux, wrap=contribution.record)
    narrow_plan = base.plan("partial-narrow", unrounded, aux, wrap=lambda inner: contribution.record(masked(inner)))
    sparse_plan = base.plan("partial-sparse", base.quantised_delta(bits), aux, wrap=masked)

    select = jax.jit(functools.partial(_select, GLOBAL_SHARE[scores]), static_argnames="ratio")

    def method(key: jax.Array, deployed: PyTree, task: Task) -> Packet:
        parts = base.split(deployed, aux=aux)
        initial = base.started(start, key, aux=aux) if start else parts
        full_key, *sparse_keys = jax.random.split(key, 1 + len(ratios))
        fitted = base.train(full_key, task, full_plan, deployed, initial, initial.kernels, rate=rate)
        mask: PyTree = None
        for number, (sparse_key, share) in enumerate(zip(sparse_keys, ratios, strict=True), 1):
            last = number == len(ratios)
            mask = select(parts.kernels, fitted, mask, ratio=share)
            fitted = base.train(
                sparse_key,
                task if task.checkpoints is None else task._replace(checkpoints=task.checkpoints / f"{number}"),
                sparse_plan if last else narrow_plan,
                deployed,
                parts._replace(aux=fitted.last["aux"], statistics=fitted.last_statistics),
                delta.rewind(parts.kernels, fitted.last["kernels"], mask),
                rate=sparse_rate,
                mask=mask,
                optimizer_state=_moments(fitted.optimizer, recorded=not last) if keep_moments else None,
            )
        blocks = {
            name: _sparse(parts.kernels[name], kernel, bits, np.asarray(mask[name]))
            for name, kernel in fitted.trainable["kernels"].items()
        }
        return Packet({**base.aux_blocks(deployed, fitted, aux), **blocks})

    return method


def _select(global_share: float, old: PyTree, fitted: Fitted, mask: PyTree | None, *, ratio: float) -> PyTree:
    """The mask of the largest contributions, within an earlier mask."""
    change = contribution.squared_change(old, fitted.last["kernels"])
    combined = contribution.combine(change, fitted.optimizer.local["kernels"], global_share)
    if mask is not None:
        combined = jax.tree.map(lambda c, m: jnp.where(m, c, -jnp.inf), combined, mask)
    return selection.top_ratio(combined, ratio)


def _sparse(old: jax.Array, new: jax.Array, bits: int, mask: np.ndarray) -> Sparse:
    return Sparse(np.flatnonzero(mask), *base.delta_integers(old, new, bits, mask))


def _moments(state: contribution.RecordState, *, recorded: bool) -> Any:
    """The state of the recorded optimizer, for one that is recorded from now on or for one that is not."""
    return state._replace(local=jax.tree.map(jnp.zeros_like, state.local)) if recorded else state.inner


def narrowing(ratio: float, fixed_share: float | None) -> list[float]:
    """The shares of all weights that may move in the sparse trainings, one after another.

    Args:
      ratio: the last of them, above 0 and at most 1.
      fixed_share: the share of what may move that is fixed each time, in (0, 1); None: all at once.

    Returns:
      (1 - fixed_share)^i while that is above `ratio`, then `ratio`.

    Raises:
      Error: an argument is out of range.

    Paper: Deep Partial Updating, iterative rewinding; its share is 0.2.

    >>> narrowing(0.5, 0.2), narrowing(0.64, 0.2)
    ([0.8, 0.64, 0.512, 0.5], [0.8, 0.64])
    """
    selection.budget(ratio, 1)
    if fixed_share is None:
        return [ratio]
    if not 0 < fixed_share < 1:
        raise Error(f"fixed_share: expected above 0 and below 1, found {fixed_share}")
    shares: list[float] = []
    while (share := round((1 - fixed_share) ** (len(shares) + 1), 9)) > ratio:
        shares.append(share)
    return [*shares, ratio]
