"""What methods share: the parts of a deployed model, trainings of chosen leaves, and the blocks of what they moved."""

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from updcomp import partition, quantize, trees
from updcomp.methods import rounding
from updcomp.partition import AUX, KERNEL, STATE, Leaf, Partition
from updcomp.training import batches, devices, loop, objectives, optimizers, tasks
from updcomp.training.loop import Fitted
from updcomp.training.plans import Frozen, Named, Plan, Rebuild, as_trained, unwrapped
from updcomp.training.tasks import Task
from updcomp.trees import PyTree
from updcomp.wire.errors import Error
from updcomp.wire.packet import Block, Packet

Method = Callable[[jax.Array, PyTree, Task], Packet]
"""(key, deployed, task) -> packet: trains an update of the deployed model on the task.

Whether it is worth sending is the protocol's decision."""

Start = Callable[[jax.Array], PyTree]
"""key -> the model that training starts from where it is not the deployed one."""

AUX_BITS = (None, 4, 8, 16)

_SEEDS = 2**14  # a seed of two bytes on the wire


def check_options(*, bits: int, aux: int | None, rate: float) -> None:
    """Checks a method's options once, when it is made.

    Raises:
      Error: `bits` is outside 2 to 16, `aux` is none of `AUX_BITS`, or a rate is not above 0.
    """
    quantize.max_level(bits)
    if aux not in AUX_BITS:
        raise Error(f"aux: expected one of {AUX_BITS} (bits per aux leaf's delta; None = not sent), found {aux}")
    if not rate > 0:
        raise Error(f"rate: expected above 0 (it multiplies the task's learning rate), found {rate}")


class Model(NamedTuple):
    """A deployed model as methods see it."""

    variables: PyTree  # on the task's devices
    partition: Partition
    leaves: Named  # by name; kernels and aux leaves as float32, state as it is

    def of_role(self, role: str) -> Named:
        """The chosen leaves of a role, by name."""
        return {leaf.name: self.leaves[leaf.name] for leaf in self.partition.of_role(role)}

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
    mesh = task.mesh or devices.mesh_of(deployed)
    tasks.check(task, mesh)
    variables = devices.place(deployed, mesh)
    example = batches.example(task.train, task.batch_size)
    moved = objectives.signature(task.objective, variables, example, train=True).updated
    parts = partition.of(variables, axes=task.axes, state=moved)
    named = trees.named_leaves(variables)
    leaves = {
        leaf.name: named[leaf.name].astype(jnp.float32) if leaf.role in (KERNEL, AUX) else named[leaf.name]
        for leaf in parts.leaves
    }
    return Model(variables, parts, leaves)


def choose(model: Model, aux: Mapping[str, int | None]) -> Model:
    """The same model with only some of its leaves chosen.

    Args:
      model: with all leaves chosen.
      aux: for every leaf that may travel, bits of aux leaves' and state's deltas; None: those stay as deployed.

    Returns:
      A `Model`; kernels in `aux` are chosen whatever their bits.
    """
    chosen = {
        leaf.name
        for leaf in model.partition.leaves
        if leaf.name in aux and (leaf.role == KERNEL or (leaf.role in (AUX, STATE) and aux[leaf.name]))
    }
    return model._replace(partition=model.partition._replace(chosen=frozenset(chosen)))


class Site(NamedTuple):
    """Where a form is used: one kernel of a deployed model."""

    leaf: Leaf
    number: int  # of the leaf in the sorted order of all names
    held: jax.Array  # the deployed array, in its own dtype
    old: jax.Array  # the same as float32
    start: jax.Array  # float32: the weights that training starts from
    seed: int  # the packet's
    key: jax.Array  # PRNG key of this kernel


class Parametrised(NamedTuple):
    """A kernel as it trains."""

    trainable: PyTree  # of floating arrays, the start
    fixed: PyTree = None  # what the form's `rebuild` reads beside it
    mask: jax.Array | None = None  # booleans like the kernel, True = sent; None: all of it moves


class Form(Protocol):
    """How the change of a kernel is parametrised: what trains, how that becomes a kernel, and the block that travels.

    Forms are frozen dataclasses, and `rebuild` is one function for all of a form's options: what differs between them
    is in `Parametrised.fixed`, so that other options compile nothing.
    """

    seeded: bool  # whether the packet's seed is drawn for it
    rebuild: Rebuild

    def start(self, site: Site) -> Parametrised:
        """What trains in place of a kernel."""

    def block(self, trained: PyTree, start: Parametrised, site: Site) -> Block:
        """The block of what was trained."""


@dataclasses.dataclass(frozen=True)
class Trained:
    """A method of one training: every kernel has the same form."""

    name: str
    form: Any  # a Form
    aux: int | None  # bits of the aux leaves' deltas; None leaves them, and moving statistics, as deployed
    rate: float  # multiplies the task's learning rate
    initial: Start | None = None  # the model that training starts from; default the deployed one

    def __call__(self, key: jax.Array, deployed: PyTree, task: Task) -> Packet:
        """Trains an update of all leaves."""
        model = model_of(deployed, task)
        return train_forms(key, task, model, {leaf.name: self for leaf in model.partition.leaves}, name=self.name)


def train_forms(key: jax.Array, task: Task, model: Model, rules: Mapping[str, Trained], *, name: str) -> Packet:
    """One training of all leaves that have a method, each in its method's form.

    Args:
      key: PRNG key.
      task: what to train on, and how.
      model: the deployed one, all leaves chosen.
      rules: leaf name -> its method; leaves without one stay as deployed.
      name: of the training.

    Returns:
      A packet.
    """
    model = choose(model, {leaf: method.aux for leaf, method in rules.items()})
    begin = model
    for initial in {method.initial for method in rules.values() if method.initial}:
        mine = [leaf for leaf, method in rules.items() if method.initial is initial]
        begin = started(initial, key, task, begin, mine)
    seeded = any(method.form.seeded for method in rules.values())
    seed = int(jax.random.randint(jax.random.fold_in(key, 2**31), (), 0, _SEEDS)) if seeded else 0
    held = trees.named_leaves(model.variables)
    sites = {
        leaf.name: Site(
            leaf,
            index,
            held[leaf.name],
            model.leaves[leaf.name],
            begin.leaves[leaf.name],
            seed,
            jax.random.fold_in(key, 1 + index),
        )
        for index, leaf in enumerate(model.partition.leaves)
        if leaf.role == KERNEL and leaf.name in model.partition.chosen
    }
    starts = {leaf: rules[leaf].form.start(site) for leaf, site in sites.items()}
    aux = begin.of_role(AUX)
    masks = {leaf: True if start.mask is None else start.mask for leaf, start in starts.items()}
    has_masks = any(start.mask is not None for start in starts.values())
    rebuilds = {leaf: rules[leaf].form.rebuild for leaf in starts}
    fitted = loop.fit(
        key,
        task,
        plan_of(name, model.partition, rebuilds, wrap=optimizers.masked if has_masks else unwrapped),
        {leaf: start.trainable for leaf, start in starts.items()} | aux,
        Frozen(model.variables, {leaf: start.fixed for leaf, start in starts.items()}),
        moved=begin.of_role(STATE),
        rates={leaf: rules[leaf].rate for leaf in (*starts, *aux)},
        masks=masks | dict.fromkeys(aux, True) if has_masks else None,
    )
    blocks: dict[str, Block] = {
        leaf: rules[leaf].form.block(fitted.trainable[leaf], starts[leaf], site) for leaf, site in sites.items()
    }
    return Packet(blocks | aux_blocks(model, fitted, {leaf: method.aux for leaf, method in rules.items()}), seed)


def started(initial: Start, key: jax.Array, task: Task, model: Model, names: Iterable[str]) -> Model:
    """The model, with these leaves as `initial` gives them for a key that no training of the method uses."""
    other = model_of(initial(jax.random.fold_in(key, 0)), task).leaves
    return model._replace(leaves={**model.leaves, **{name: other[name] for name in names}})


def aux_blocks(model: Model, fitted: Fitted, bits: Mapping[str, int | None]) -> dict[str, Block]:
    """The blocks of all aux leaves that gradients trained and all leaves that the loss moved.

    Args:
      model: the deployed one, its leaves chosen.
      fitted: of its training.
      bits: of each leaf's delta, by name; see `rounding.aux_block`.

    Returns:
      Leaf name -> block.
    """
    held = trees.named_leaves(model.variables)
    new = {name: fitted.trainable[name] for name in model.of_role(AUX)} | fitted.moved
    return {
        name: rounding.aux_block(np.asarray(held[name]), np.asarray(leaf), bits[name] or rounding.RAW)
        for name, leaf in new.items()
    }


def plan_of(name: str, parts: Partition, rebuilds: Mapping[str, Rebuild], **options: Any) -> Plan:
    """A plan that trains the chosen leaves.

    Args:
      name: of the training.
      parts: which leaves are chosen.
      rebuilds: how each kernel is made of what trains, by name; aux leaves train as they are.
      **options: further fields of `Plan`.

    Returns:
      A `Plan`.
    """
    all_rebuilds: dict[str, Rebuild] = {
        **dict.fromkeys((leaf.name for leaf in parts.of_role(AUX)), as_trained),
        **rebuilds,
    }
    return Plan(name, parts, tuple((name, all_rebuilds[name]) for name in sorted(all_rebuilds)), **options)
