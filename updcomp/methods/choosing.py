"""A deployed model as methods see it, and which of its leaves train and travel."""

import contextlib
from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from updcomp import arrays, partition, trees
from updcomp.methods import rounding
from updcomp.partition import AUX, KERNEL, STATE, Partition
from updcomp.training import batches, devices, objectives, tasks
from updcomp.training.plans import Named
from updcomp.training.tasks import Task
from updcomp.trees import PyTree
from updcomp.wire import dtypes
from updcomp.wire.errors import DtypeError, Error, LeafError, NonFiniteError

_LISTED = 24  # leaves in a message


class Model(NamedTuple):
    """A deployed model as methods see it."""

    variables: PyTree  # on the task's devices
    partition: Partition
    leaves: Named  # by name

    def of_role(self, role: str) -> Named:
        """The chosen leaves of a role, by name; kernels and aux leaves as float32."""
        found = {leaf.name: self.leaves[leaf.name] for leaf in self.partition.of_role(role)}
        return found if role == STATE else {name: leaf.astype(jnp.float32) for name, leaf in found.items()}

    def trained(self) -> Named:
        """The chosen leaves that gradients train."""
        return {**self.of_role(KERNEL), **self.of_role(AUX)}


def model_of(deployed: PyTree, task: Task) -> Model:
    """A deployed model with all of its leaves chosen.

    Args:
      deployed: a dict of flax collections with "params", or any pytree of arrays.
      task: its loss says which leaves it moves, its `axes` how kernels are read.

    Returns:
      A `Model`.

    Raises:
      Error: a field of the task is not what it must be.
      LeafError: a leaf is no array; methods compile functions of the whole tree.
    """
    trees.check_arrays(deployed)
    mesh = devices.mesh_for(task.mesh, deployed)
    tasks.check(task, mesh)
    variables = devices.place(deployed, mesh)
    example = batches.example(task.train, task.batch_size)
    moved = objectives.signature(task.objective, variables, example, train=True).updated
    leaves = trees.named_leaves(variables)
    for name, leaf in trees.named_leaves(deployed).items():
        if leaves[name].dtype != leaf.dtype:
            found = f"expected a dtype that JAX keeps, found {leaf.dtype}, which becomes {leaves[name].dtype}"
            raise LeafError(f"leaf {name!r}: {found}; cast the deployed model, on the device as well")
    return Model(variables, partition.of(variables, axes=task.axes, moved=moved), leaves)


def choose(model: Model, aux: Mapping[str, int | None]) -> Model:
    """The same model with only some of its leaves chosen.

    Args:
      model: with all leaves chosen.
      aux: for every leaf that may travel, bits of aux leaves' and state's deltas; None: those stay as deployed.

    Returns:
      A `Model`; kernels in `aux` are chosen whatever their bits.

    Raises:
      Error: nothing is left that gradients train, or only a part of the statistics that the loss moves travels.
    """
    chosen = {
        leaf.name
        for leaf in model.partition.leaves
        if leaf.name in aux and (leaf.role == KERNEL or (leaf.role in (AUX, STATE) and aux[leaf.name]))
    }
    parts = model.partition._replace(chosen=frozenset(chosen))
    if not (parts.of_role(KERNEL) or parts.of_role(AUX)):
        roles = ", ".join(f"{leaf.name!r} ({leaf.role})" for leaf in parts.leaves[:_LISTED])
        advice = "let a rule choose kernels, or aux leaves with bits, and check what the loss returns as Extra.updated"
        raise Error(
            f"nothing to train: expected a kernel or an aux leaf that travels, found of all leaves {roles}; {advice}"
        )
    if (kept := sorted(parts.moved - chosen)) and (sent := sorted(parts.moved & chosen)):
        raise Error(
            f"rules: expected all moving statistics to travel, or none, found {sent[0]!r} sent and {kept[0]!r} kept"
        )
    return model._replace(partition=parts)


def check_lossy(model: Model, kernels: Iterable[str], aux: Mapping[str, int | None]) -> None:
    """Checks, before anything is trained, that the leaves whose changes are rounded have dtypes that take increments.

    Args:
      model: its leaves chosen.
      kernels: names of those that travel rounded.
      aux: bits of aux leaves' and state's deltas, by name.

    Raises:
      DtypeError: a leaf has another dtype, such as float8.
    """
    rounded = [leaf.name for role in (AUX, STATE) for leaf in model.partition.of_role(role)]
    rounded = [name for name in rounded if aux[name] != rounding.RAW and partition.is_floating(model.leaves[name])]
    for name in (*kernels, *rounded):
        try:
            dtypes.compute_dtype(dtypes.hold(np.empty(0, model.leaves[name].dtype)))
        except DtypeError as error:
            advice = "send it raw (full()), or keep it by a rule with None"
            raise DtypeError(f"leaf {name!r}: {error}; {advice}") from None


@contextlib.contextmanager
def blaming(model: Model) -> Iterator[None]:
    """Where training fails on something that is not finite, the error names the deployed leaf that is to blame.

    Raises:
      NonFiniteError: one was raised within.
    """
    try:
        yield
    except NonFiniteError:
        for name, leaf in model.trained().items():
            if not np.isfinite(arrays.to_host(leaf)).all():
                advice = "repair the deployed model, or send the leaf exactly (updcomp.diff)"
                raise NonFiniteError(
                    f"leaf {name!r}: expected finite deployed weights, found NaN or infinity; {advice}"
                ) from None
        raise
