"""What methods share: the parts of a deployed model that train, and the blocks that carry aux leaves and deltas."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from updcomp import quantize, trees
from updcomp.training.loop import Fitted, Plan, Task
from updcomp.trees import PyTree
from updcomp.wire.packet import Block, Dense, Half, Packet

Method = Callable[[jax.Array, PyTree, Task], Packet]
"""(key, deployed, task) -> packet: trains an update of the deployed model on the task."""

AUX_BITS = (None, 4, 8, 16)


class Parts(NamedTuple):
    """A deployed model as methods see it."""

    kernels: dict[str, jax.Array]  # leaves with more than one axis, by name
    aux: dict[str, jax.Array]  # aux leaves that gradients train; empty where aux leaves are not sent
    statistics: dict[str, PyTree]  # the model's other collections, such as batch statistics


def check_options(*, bits: int | None, aux: int | None) -> None:
    """Checks a method's bit widths once, when it is made.

    Raises:
      ValueError: `bits` is outside 2 to 16, or `aux` is none of `AUX_BITS`.
    """
    if bits is not None:
        quantize.max_level(bits)
    if aux not in AUX_BITS:
        raise ValueError(f"aux: expected one of {AUX_BITS} (bits per aux leaf's delta; None = not sent), found {aux}")


def split(deployed: PyTree, *, aux: int | None) -> Parts:
    """The parts of a deployed model: a dict of flax collections, or any pytree of parameters alone."""
    is_collections = isinstance(deployed, dict) and "params" in deployed
    statistics = {name: tree for name, tree in deployed.items() if name != "params"} if is_collections else {}
    in_statistics = trees.named_leaves(statistics)
    trained = {name: leaf for name, leaf in trees.aux(deployed).items() if name not in in_statistics}
    return Parts(trees.kernels(deployed), trained if aux else {}, statistics)


def plan(
    name: str, kernels: Callable[[Any, dict[str, PyTree]], dict[str, jax.Array]], aux: int | None, **options: Any
) -> Plan:
    """A training plan for `{"kernels": ..., "aux": ...}` leaves.

    Args:
      name: of the method.
      kernels: (trainable kernels' part, frozen) -> the model's kernels by name; `frozen["deployed"]` is the model.
      aux: bits of the aux leaves; None keeps them, and the batch statistics, as deployed.
      **options: further fields of `Plan`.

    Returns:
      A `Plan`.
    """

    def assemble(trainable: PyTree, frozen: dict[str, PyTree]) -> PyTree:
        return trees.replace(frozen["deployed"], {**kernels(trainable["kernels"], frozen), **trainable["aux"]})

    return Plan(name, assemble, train_statistics=aux is not None, **options)


def quantised_delta(bits: int | None) -> Callable[[Any, dict[str, PyTree]], dict[str, jax.Array]]:
    """Kernels trained as weights whose delta from the deployed ones is rounded straight-through (not at all: None)."""

    def kernels(weights: dict[str, jax.Array], frozen: dict[str, PyTree]) -> dict[str, jax.Array]:
        if bits is None:
            return weights
        deployed, masks = trees.kernels(frozen["deployed"]), frozen.get("mask", {}).get("kernels", {})

        def rounded(name: str, weight: jax.Array) -> jax.Array:
            delta = weight - deployed[name]
            step = quantize.dynamic_step(delta, bits, where=masks.get(name))
            return deployed[name] + quantize.straight_through(delta, step, bits)

        return {name: rounded(name, weight) for name, weight in weights.items()}

    return kernels


def delta_integers(old: jax.Array, new: jax.Array, bits: int, mask: Any = None) -> tuple[np.ndarray, float]:
    """The integers and step that `quantised_delta` trained for a kernel; with a mask, of the sent ones."""
    delta = jnp.subtract(new, old)
    step = float(quantize.dynamic_step(delta, bits, where=None if mask is None else jnp.asarray(mask)))
    values = np.asarray(delta) if mask is None else np.asarray(delta)[np.asarray(mask)]
    return quantize.to_integers(values, bits, step=step)


def aux_blocks(deployed: PyTree, fitted: Fitted, bits: int | None) -> dict[str, Block]:
    """The blocks of all aux leaves that training moved, batch statistics included.

    Args:
      deployed: the model before.
      fitted: the trained leaves, `{"kernels": ..., "aux": ...}`, and statistics.
      bits: None sends none of them; 4 and 8 are integers with a least-squares step; 16 is a float16 delta.

    Returns:
      Leaf name -> block.
    """
    if bits is None:
        return {}
    old = trees.named_leaves(deployed)
    new = {**fitted.trainable["aux"], **trees.aux(fitted.statistics)}
    return {name: _aux_block(np.asarray(old[name]), np.asarray(leaf), bits) for name, leaf in new.items()}


def _aux_block(old: np.ndarray, new: np.ndarray, bits: int) -> Block:
    delta = new.astype(np.float32) - old.astype(np.float32)
    if bits == 16:
        return Half(delta.astype(np.float16))
    values, step = quantize.to_integers(delta, bits)
    if np.all(old > 0) and np.all(new > 0):
        # A variance must stay one: where rounding would carry it to zero or below, it stops at the last step above.
        values = np.maximum(values, np.ceil(-old.astype(np.float64) / step * 0.99).astype(np.int32))
    return Dense(values, step)
