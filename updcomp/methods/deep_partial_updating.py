"""Deep partial updating: train in full, keep the updates that contribute most, rewind the rest, train on.

Qu, Liu, Thiele: Deep Partial Updating (ECCV 2022, arXiv 2007.03071).
"""

import dataclasses
import functools
from collections.abc import Collection
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from updcomp import arrays, contribution, delta, quantize, selection
from updcomp.methods import base, choosing, rounding
from updcomp.methods.choosing import Model
from updcomp.methods.rounding import Rounding
from updcomp.partition import AUX, KERNEL, STATE
from updcomp.training import loop
from updcomp.training.loop import Fitted
from updcomp.training.optimizers import masked
from updcomp.training.plans import Frozen, Named, Plan, Rebuild, as_trained
from updcomp.training.tasks import Task
from updcomp.trees import PyTree
from updcomp.wire.errors import Error
from updcomp.wire.kinds.sparse import Sparse
from updcomp.wire.packet import Packet

GLOBAL_SHARE = {"combined": 0.5, "global": 1.0, "local": 0.0}


def partial(
    *,
    ratio: float,
    scores: str = "combined",
    bits: int = 8,
    aux: int | None = 16,
    rate: float = 1.0,
    sparse_rate: float = 10.0,
    start: base.Initial | None = None,
    fixed_share: float | None = None,
    keep_moments: bool = False,
) -> "Partial":
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
    base.check_options(bits=bits, aux=aux, rate=min(rate, sparse_rate))
    if scores not in GLOBAL_SHARE:
        raise Error(f"scores: expected one of {sorted(GLOBAL_SHARE)}, found {scores!r}")
    narrowing(ratio, fixed_share)
    return Partial(ratio, scores, bits, aux, rate, sparse_rate, start, fixed_share, keep_moments)


@dataclasses.dataclass(frozen=True)
class Partial:
    """A method of a full training and one or more sparse ones; see `partial` for its fields."""

    ratio: float
    scores: str
    bits: int
    aux: int | None
    rate: float
    sparse_rate: float
    initial: base.Initial | None
    fixed_share: float | None
    keep_moments: bool

    def __call__(self, key: jax.Array, deployed: PyTree, task: Task) -> Packet:
        """Trains an update of all leaves."""
        model = choosing.model_of(deployed, task)
        return self.update(key, task, model, [leaf.name for leaf in model.partition.leaves])

    def update(self, key: jax.Array, task: Task, model: Model, names: Collection[str]) -> Packet:
        """Trains an update of some leaves.

        Args:
          key: PRNG key.
          task: what to train on, and how.
          model: the deployed one, all leaves chosen.
          names: the leaves that may travel.

        Returns:
          A packet.
        """
        bits = dict.fromkeys(names, self.aux)
        model = choosing.choose(model, bits)
        choosing.check_lossy(model, model.of_role(KERNEL), bits)
        begin = base.started(self.initial, key, task, model, names) if self.initial else model
        shares = narrowing(self.ratio, self.fixed_share)
        full_key, *keys = jax.random.split(key, 1 + len(shares))
        fitted = _train(full_key, task, _plan("partial-full", model, contribution.record), model, begin, self.rate)
        old: Named = model.of_role(KERNEL)
        mask: Any = None
        size = sum(kernel.size for kernel in old.values())
        for number, (sparse_key, share) in enumerate(zip(keys, shares, strict=True), 1):
            last = number == len(shares)
            new = {name: fitted.last[name] for name in old}
            local = {name: fitted.optimizer.local[name] for name in old}
            kept = np.uint32(selection.budget(share, size))
            mask, rewound = _select(old, new, local, mask, kept, global_share=GLOBAL_SHARE[self.scores])
            start = begin._replace(leaves={**begin.leaves, **fitted.last, **fitted.last_moved, **rewound})
            moments = _moments(fitted.optimizer, recorded=not last) if self.keep_moments else None
            del fitted, new, local, rewound  # so that the next training has their memory
            fitted = _train(
                sparse_key,
                task if task.checkpoints is None else task._replace(checkpoints=Path(task.checkpoints) / f"{number}"),
                _plan("partial-sparse", model, masked, rounding.rounded)
                if last
                else _plan("partial-narrow", model, _narrow),
                model,
                start,
                self.sparse_rate,
                mask=mask,
                roundings={name: Rounding(quantize.grid(self.bits), mask[name]) for name in old} if last else {},
                optimizer_state=moments,
            )

        def block(name: str) -> Sparse:
            rounded = rounding.integers(
                old[name], fitted.trainable[name], Rounding(quantize.grid(self.bits), mask[name])
            )
            return Sparse(np.flatnonzero(arrays.to_host(mask[name])), *rounded)

        makers = {name: functools.partial(block, name) for name in old}
        return base.packet_of(model, base.aux_blocks(model, fitted, bits) | makers)


def _plan(name: str, model: Model, wrap: Any, rebuild: Rebuild = as_trained) -> Plan:
    kernels = [leaf.name for leaf in model.partition.of_role(KERNEL)]
    return base.plan_of(name, model.partition, dict.fromkeys(kernels, rebuild), wrap=wrap)


def _narrow(optimizer: optax.GradientTransformation) -> optax.GradientTransformation:
    """The wrap of trainings of a mask that is chosen from once more."""
    return contribution.record(masked(optimizer))


def _train(
    key: jax.Array,
    task: Task,
    plan: Plan,
    model: Model,
    begin: Model,
    rate: float,
    *,
    mask: Named | None = None,
    roundings: Named | None = None,
    optimizer_state: Any = None,
) -> Fitted:
    """Trains the chosen leaves from where `begin` has them; kernels move where the mask is True, aux leaves freely."""
    trainable = begin.trained()
    return loop.fit(
        key,
        task,
        plan,
        trainable,
        Frozen(model.variables, roundings or {}),
        moved={name: begin.leaves[name] for name in model.of_role(STATE)},
        rates=dict.fromkeys(trainable, rate),
        masks=None if mask is None else {**mask, **dict.fromkeys(model.of_role(AUX), True)},
        optimizer_state=optimizer_state,
    )


@functools.partial(jax.jit, static_argnames="global_share")
def _select(
    old: Named, new: Named, local: Named, mask: Named | None, kept: jax.Array, *, global_share: float
) -> tuple[Named, Named]:
    """The mask of the largest contributions, within an earlier mask; and the kernels, rewound where it is False."""
    if not old:
        return {}, {}
    combined = contribution.combine(contribution.squared_change(old, new), local, global_share)
    if mask is not None:
        combined = jax.tree.map(lambda c, m: jnp.where(m, c, -jnp.inf), combined, mask)
    chosen = selection.top_k(combined, kept)
    return chosen, delta.rewind(old, new, chosen)


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
