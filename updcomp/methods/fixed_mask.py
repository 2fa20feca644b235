"""Sparse updates at positions that both sides know before training, so that only values travel."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from updcomp import selection
from updcomp.methods import base
from updcomp.training.loop import Task
from updcomp.training.optimizers import masked
from updcomp.trees import PyTree, to_model
from updcomp.wire import positions
from updcomp.wire.packet import Block, Magnitude, Packet, Seeded

_Positions = Callable[[np.ndarray, int, int, int], np.ndarray]  # (leaf, seed, leaf index, count) -> positions
_SEEDS = 2**14  # a seed of two bytes on the wire


def random_mask(*, ratio: float, bits: int = 4, aux: int | None = 16, rate: float = 20.0) -> base.Method:
    """Trains a random share of each kernel, drawn from a seed that travels in place of the positions.

    The *structured random mask* of Konecny et al.: Federated Learning (arXiv 1610.05492), section 2.

    Args:
      ratio: share of each kernel's weights that is sent, above 0 and at most 1.
      bits: of each sent weight's delta, rounded straight-through.
      aux: bits of the aux leaves' deltas; None leaves them as deployed.
      rate: multiplies the task's learning rate; few weights have to move far.

    Returns:
      A method.

    Raises:
      ValueError: an option is out of range.
    """

    def seeded(leaf: np.ndarray, seed: int, index: int, count: int) -> np.ndarray:
        return positions.seeded(seed, index, leaf.size, count)

    return _fixed_mask("random_mask", seeded, Seeded, ratio, bits, aux, rate)


def magnitude_mask(*, ratio: float, bits: int = 4, aux: int | None = 16, rate: float = 20.0) -> base.Method:
    """Trains the weights of largest deployed magnitude in each kernel: the device finds the same ones.

    Args:
      ratio: share of each kernel's weights that is sent, above 0 and at most 1.
      bits: of each sent weight's delta, rounded straight-through.
      aux: bits of the aux leaves' deltas; None leaves them as deployed.
      rate: multiplies the task's learning rate; few weights have to move far.

    Returns:
      A method.

    Raises:
      ValueError: an option is out of range.
    """

    def largest(leaf: np.ndarray, seed: int, index: int, count: int) -> np.ndarray:
        return positions.largest(leaf, count)

    return _fixed_mask("magnitude_mask", largest, Magnitude, ratio, bits, aux, rate)


def _fixed_mask(
    name: str,
    choose: _Positions,
    block: type[Seeded] | type[Magnitude],
    ratio: float,
    bits: int,
    aux: int | None,
    rate: float,
) -> base.Method:
    base.check_options(bits=bits, aux=aux)
    selection.budget(ratio, 1)
    plan = base.plan(name, base.quantised_delta(bits), aux, wrap=masked)

    def masks(deployed: PyTree, kernels: dict[str, jax.Array], seed: int) -> dict[str, jax.Array]:
        chosen = {}
        for index, (leaf_name, leaf) in enumerate(to_model(deployed).items()):
            if leaf_name in kernels:
                mask = np.zeros(leaf.size, bool)
                mask[choose(leaf, seed, index, selection.budget(ratio, leaf.size))] = True
                chosen[leaf_name] = jnp.asarray(mask.reshape(leaf.shape))
        return chosen

    def method(key: jax.Array, deployed: PyTree, task: Task) -> Packet:
        parts = base.split(deployed, aux=aux)
        train_key, seed_key = jax.random.split(key)
        seed = int(jax.random.randint(seed_key, (), 0, _SEEDS)) if block is Seeded else 0
        mask = masks(deployed, parts.kernels, seed)
        fitted = base.train(train_key, task, plan, deployed, parts, parts.kernels, rate=rate, mask=mask)
        blocks: dict[str, Block] = base.aux_blocks(deployed, fitted, aux)
        for leaf_name, kernel in fitted.trainable["kernels"].items():
            blocks[leaf_name] = block(*base.delta_integers(parts.kernels[leaf_name], kernel, bits, mask[leaf_name]))
        return Packet(blocks, seed)

    return method
