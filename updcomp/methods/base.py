"""What methods share: the parts of a deployed model that train, and the blocks that carry aux leaves and deltas."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from updcomp import delta, quantize, trees
from updcomp.training.loop import Fitted, Plan, Task, fit
from updcomp.trees import PyTree
from updcomp.wire.errors import Error
from updcomp.wire.packet import Block, Dense, Half, Packet, Raw

Method = Callable[[jax.Array, PyTree, Task], Packet]
"""(key, deployed, task) -> packet: trains an update of the deployed model on the task.

Whether it is worth sending is the protocol's decision."""

Start = Callable[[jax.Array], PyTree]
"""key -> the model that training starts from where it is not the deployed one."""

AUX_BITS = (None, 4, 8, 16)


class Parts(NamedTuple):
    """A deployed model as methods see it."""

    kernels: dict[str, jax.Array]  # leaves with more than one axis, by name
    aux: dict[str, jax.Array]  # aux leaves that gradients train; empty where aux leaves are not sent
    statistics: dict[str, PyTree]  # the model's other collections, such as batch statistics


def check_options(*, bits: int, aux: int | None) -> None:
    """Checks a method's bit widths once, when it is made.

    Raises:
      Error: `bits` is outside 2 to 16, or `aux` is none of `AUX_BITS`.
    """
    quantize.max_level(bits)
    if aux not in AUX_BITS:
        raise Error(f"aux: expected one of {AUX_BITS} (bits per aux leaf's delta; None = not sent), found {aux}")


def split(deployed: PyTree, *, aux: int | None) -> Parts:
    """The parts of a deployed model: a dict of flax collections with "params", or any pytree of arrays.

    Kernels and aux leaves come as float32 whatever the dtype: one step is smaller than a bfloat16's last place.

    Raises:
      LeafError: a leaf is no array; methods compile functions of the whole tree.
    """
    trees.check_arrays(deployed)
    is_collections = isinstance(deployed, dict) and "params" in deployed
    statistics = {name: tree for name, tree in deployed.items() if name != "params"} if is_collections else {}
    in_statistics = trees.named_leaves(statistics)

    def trained(leaves: dict[str, jax.Array]) -> dict[str, jax.Array]:
        return {name: leaf.astype(jnp.float32) for name, leaf in leaves.items() if name not in in_statistics}

    return Parts(trained(trees.kernels(deployed)), trained(trees.aux(deployed)) if aux else {}, statistics)


def started(start: Start, key: jax.Array, *, aux: int | None) -> Parts:
    """The parts of the model that `start` gives, with a key that no training of the method uses."""
    return split(start(jax.random.fold_in(key, 0)), aux=aux)


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
      A `Plan` whose model has the deployed one's dtypes.
    """

    def assemble(trainable: PyTree, frozen: dict[str, PyTree]) -> PyTree:
        deployed = trees.named_leaves(frozen["deployed"])
        leaves = {**kernels(trainable["kernels"], frozen), **trainable["aux"]}
        cast = {leaf_name: leaf.astype(deployed[leaf_name].dtype) for leaf_name, leaf in leaves.items()}
        return trees.replace(frozen["deployed"], cast)

    return Plan(name, assemble, train_statistics=aux is not None, **options)


def train(
    key: jax.Array,
    task: Task,
    plan: Plan,
    deployed: PyTree,
    parts: Parts,
    kernels: Any,
    *,
    rate: float,
    mask: dict[str, jax.Array] | None = None,
    optimizer_state: Any = None,
    **frozen: PyTree,
) -> Fitted:
    """Trains a plan of `plan` from the deployed model; see `training.loop.fit`.

    Args:
      key: PRNG key.
      task: what to train on, and how.
      plan: of the method.
      deployed: the model that the device holds.
      parts: its parts; their aux leaves and statistics are where those start.
      kernels: where the trainable kernels' part starts.
      rate: multiplies the task's learning rate.
      mask: booleans by kernel name, True = sent, for a plan whose optimizer is `masked`; aux leaves move freely.
      optimizer_state: where the optimizer starts; default fresh.
      **frozen: what the plan reads besides the deployed model.

    Returns:
      `Fitted`.
    """
    if mask is not None:
        frozen["mask"] = {"kernels": mask, "aux": jax.tree.map(lambda _: jnp.array(True), parts.aux)}
    return fit(
        key,
        task,
        plan,
        {"kernels": kernels, "aux": parts.aux},
        {"deployed": deployed, **frozen},
        statistics=parts.statistics,
        learning_rate=rate * task.learning_rate,
        optimizer_state=optimizer_state,
    )


def deployed_kernel(frozen: dict[str, PyTree], name: str) -> jax.Array:
    """A kernel of the deployed model as float32, to which an increment is added."""
    return trees.named_leaves(frozen["deployed"])[name].astype(jnp.float32)


def quantised_delta(bits: int | None) -> Callable[[Any, dict[str, PyTree]], dict[str, jax.Array]]:
    """Kernels trained as weights whose delta from the deployed ones is rounded straight-through (not at all: None)."""

    def kernels(weights: dict[str, jax.Array], frozen: dict[str, PyTree]) -> dict[str, jax.Array]:
        if bits is None:
            return weights
        masks = frozen.get("mask", {}).get("kernels", {})

        def rounded(name: str, weight: jax.Array) -> jax.Array:
            deployed = deployed_kernel(frozen, name)
            change = delta.between(deployed, weight)
            step = quantize.dynamic_step(change, bits, where=masks.get(name))
            return deployed + quantize.straight_through(change, step, bits)

        return {name: rounded(name, weight) for name, weight in weights.items()}

    return kernels


def delta_integers(old: jax.Array, new: jax.Array, bits: int, mask: Any = None) -> tuple[np.ndarray, float]:
    """The integers and step that `quantised_delta` trained for a kernel; with a mask, of the sent ones."""
    change = np.asarray(delta.between(old, new))
    step = float(quantize.dynamic_step(jnp.asarray(change), bits, where=None if mask is None else jnp.asarray(mask)))
    values = change if mask is None else change[np.asarray(mask)]
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
    return {name: aux_block(np.asarray(old[name]), np.asarray(leaf), bits) for name, leaf in new.items() if leaf.size}


def aux_block(old: np.ndarray, new: np.ndarray, bits: int) -> Block:
    """The block of one aux leaf's change; a leaf that is positive, as a variance is, stays positive.

    Args:
      old: the deployed leaf.
      new: the trained one.
      bits: 4, 8 or 16.

    Returns:
      `Half` at 16 bits, else `Dense`; `Raw` where rounding would lose the sign or overflow.
    """
    change = new.astype(np.float32) - old.astype(np.float32)
    block: Block
    if bits == 16:
        with np.errstate(over="ignore"):
            block = Half(change.astype(np.float16))
        increments = block.delta.astype(np.float32)
    else:
        block = Dense(*quantize.to_integers(change, bits))
        increments = (block.values * block.step).astype(np.float32)
    result = old.astype(np.float32) + increments
    positive = bool(np.all(old > 0) and np.all(new > 0))
    if np.all(np.isfinite(result)) and not (positive and np.any(result <= 0)):
        return block
    return Raw(new.astype(old.dtype))
