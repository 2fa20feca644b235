"""Deep partial updating: train in full, keep the updates that contribute most, rewind the rest, train on.

Qu, Liu, Thiele: Deep Partial Updating (ECCV 2022, arXiv 2007.03071).
"""

import jax
import numpy as np

from updcomp import contribution, delta, selection
from updcomp.methods import base
from updcomp.training.loop import Task
from updcomp.training.optimizers import masked
from updcomp.trees import PyTree
from updcomp.wire.errors import Error
from updcomp.wire.packet import Block, Packet, Sparse

GLOBAL_SHARE = {"combined": 0.5, "global": 1.0, "local": 0.0}


def partial(
    *,
    ratio: float,
    scores: str = "combined",
    bits: int = 8,
    aux: int | None = 16,
    rate: float = 1.0,
    sparse_rate: float = 10.0,
) -> base.Method:
    """Sends the weights with the largest contribution to the loss reduction, after training them once more alone.

    Args:
      ratio: updating ratio, the share of all kernels' weights that is sent, above 0 and at most 1.
      scores: which contribution ranks the weights: "combined" (DPU), "global" (GCPU) or "local" (LCPU).
      bits: of each sent weight's delta, rounded straight-through in the sparse training.
      aux: bits of the aux leaves' deltas; None leaves them as deployed.
      rate: multiplies the task's learning rate in the full training.
      sparse_rate: multiplies it in the sparse training, where fewer weights have to move further.

    Returns:
      A method whose packet is empty if nothing it found beats the deployed model on the validation set.

    Raises:
      Error: an option is out of range.

    Paper: Deep Partial Updating, algorithm 1, for one round. Unlike the authors' code, the sparse training starts with
    fresh optimizer moments, and gradients are recorded without weight decay.
    """
    base.check_options(bits=bits, aux=aux)
    selection.budget(ratio, 1)
    if scores not in GLOBAL_SHARE:
        raise Error(f"scores: expected one of {sorted(GLOBAL_SHARE)}, found {scores!r}")
    full_plan = base.plan("partial-full", base.quantised_delta(None), aux, wrap=contribution.record)
    sparse_plan = base.plan("partial-sparse", base.quantised_delta(bits), aux, wrap=masked)

    @jax.jit
    def select(old: PyTree, new: PyTree, local: PyTree) -> tuple[PyTree, PyTree]:
        combined = contribution.combine(contribution.squared_change(old, new), local, GLOBAL_SHARE[scores])
        mask = selection.top_ratio(combined, ratio)
        return mask, delta.rewind(old, new, mask)

    def method(key: jax.Array, deployed: PyTree, task: Task) -> Packet:
        parts = base.split(deployed, aux=aux)
        full_key, sparse_key = jax.random.split(key)
        full = base.train(full_key, task, full_plan, deployed, parts, parts.kernels, rate=rate)
        mask, rewound = select(parts.kernels, full.last["kernels"], full.optimizer.local["kernels"])
        moved = parts._replace(aux=full.last["aux"], statistics=full.last_statistics)
        sparse = base.train(sparse_key, task, sparse_plan, deployed, moved, rewound, rate=sparse_rate, mask=mask)
        blocks: dict[str, Block] = base.aux_blocks(deployed, sparse, aux)
        for name, kernel in sparse.trainable["kernels"].items():
            sent = np.asarray(mask[name])
            values, step = base.delta_integers(parts.kernels[name], kernel, bits, sent)
            blocks[name] = Sparse(np.flatnonzero(sent), values, step)
        return base.accepted(Packet(blocks), deployed, task)

    return method
