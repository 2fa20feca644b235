"""How a method trains: which leaves, and how what trains becomes a model again."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from updcomp import layers, trees
from updcomp.layers import Columns
from updcomp.partition import Leaf, Partition
from updcomp.trees import PyTree
from updcomp.wire.views import View

Named = dict[str, Any]  # leaf name -> array or subtree

Rebuild = Callable[[PyTree, PyTree, jax.Array, Leaf], jax.Array]
"""(what trains, what stays fixed, the deployed leaf as float32, the leaf) -> the new leaf, float32."""


def as_trained(trained: jax.Array, fixed: None, old: jax.Array, leaf: Leaf) -> jax.Array:
    """The `Rebuild` of a leaf that trains as it is."""
    return trained


def unwrapped(optimizer: optax.GradientTransformation) -> optax.GradientTransformation:
    """The `Plan.wrap` of a training that moves all that it trains."""
    return optimizer


class Plan(NamedTuple):
    """How a method trains: static, and equal by value, since compiled functions belong to each plan."""

    name: str  # of the training, for error messages, callbacks and checkpoints
    partition: Partition  # which leaves train
    rebuild: tuple[tuple[str, Rebuild], ...]  # (name, how it becomes a leaf) of every leaf that gradients train
    wrap: Callable[[optax.GradientTransformation], optax.GradientTransformation] = unwrapped
    parts: tuple[tuple[str, View | None], ...] | None = None  # see `part_of`
    ties: tuple[tuple[str, str], ...] = ()  # (leaf, the one whose trained values it has in place of its own)

    @property
    def train(self) -> bool:
        """The mode of the loss: where statistics stay as deployed, the model has to be trained with those."""
        return not self.partition.keeps_state()


class Frozen(NamedTuple):
    """What training reads and leaves alone."""

    deployed: PyTree  # the model
    fixed: Named  # what each leaf's `Rebuild` takes beside what trains, by name; leaves without it have none


def variables_of(plan: Plan, trainable: Named, moved: Named, frozen: Frozen) -> PyTree:
    """The model that a plan makes of trained leaves, with the dtypes of the deployed one."""
    deployed = trees.named_leaves(frozen.deployed)
    leaves = {leaf.name: leaf for leaf in plan.partition.leaves}
    owners = dict(plan.ties)
    rebuilt = {
        name: rebuild(
            trainable[owners.get(name, name)], frozen.fixed.get(name), deployed[name].astype(jnp.float32), leaves[name]
        )
        for name, rebuild in plan.rebuild
    }
    new = {name: leaf.astype(deployed[name].dtype) for name, leaf in {**rebuilt, **moved}.items()}
    return trees.replace(frozen.deployed, new)


def part_of(plan: Plan, trainable: Named, frozen: Frozen) -> Named:
    """What of the leaves that may train is differentiated, and has gradients and an optimizer's state.

    Args:
      plan: its `parts` are the names of these leaves, each with None where it trains whole, or with the view whose
        columns train; `frozen.fixed` has their numbers. Without `parts` all leaves train whole.
      trainable: all leaves that may train, whole.
      frozen: of the training.

    Returns:
      name -> the leaf, or the values of its columns (fan_in, k).
    """
    if plan.parts is None:
        return trainable
    return {
        name: trainable[name] if view is None else layers.take(trainable[name], view, frozen.fixed[name])
        for name, view in plan.parts
    }


def with_part(plan: Plan, trainable: Named, part: Named, frozen: Frozen) -> Named:
    """The leaves that may train, with these parts of some of them; the inverse of `part_of`."""
    views = dict(plan.parts or ())

    def leaf(name: str, old: PyTree) -> PyTree:
        view = views.get(name)
        if name not in part:
            return old
        return part[name] if view is None else layers.put(old, view, frozen.fixed[name], part[name])

    return {name: leaf(name, old) for name, old in trainable.items()}


def columns_of(plan: Plan, part: Named, frozen: Frozen) -> dict[str, Columns]:
    """The kernels that train by columns."""
    kernels = [name for name, view in plan.parts or () if view is not None and view.in_axes]
    return {name: Columns(frozen.fixed[name], part[name]) for name in kernels}
