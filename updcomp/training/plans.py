"""How a method trains: which leaves, and how what trains becomes a model again."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from updcomp import trees
from updcomp.partition import Leaf, Partition
from updcomp.trees import PyTree

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
    rebuilt = {
        name: rebuild(trainable[name], frozen.fixed.get(name), deployed[name].astype(jnp.float32), leaves[name])
        for name, rebuild in plan.rebuild
    }
    new = {name: leaf.astype(deployed[name].dtype) for name, leaf in {**rebuilt, **moved}.items()}
    return trees.replace(frozen.deployed, new)
