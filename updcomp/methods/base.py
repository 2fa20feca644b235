"""What methods share: the parts of a deployed model, trainings of chosen leaves, and the blocks of what they moved."""

import dataclasses
import functools
import math
from collections.abc import Callable, Hashable, Iterable, Mapping
from typing import Any

import jax

from updcomp import arrays, quantize, trees
from updcomp.methods import choosing, rounding
from updcomp.methods.choosing import Model
from updcomp.methods.forms import Parametrised, Site
from updcomp.partition import AUX, KERNEL, STATE, Partition
from updcomp.training import loop, optimizers
from updcomp.training.loop import Fitted
from updcomp.training.plans import Frozen, Plan, Rebuild, as_trained, unwrapped
from updcomp.training.tasks import Task
from updcomp.trees import PyTree
from updcomp.wire import errors
from updcomp.wire.errors import Error, LeafError
from updcomp.wire.kind import Block
from updcomp.wire.packet import LazyBlocks, Packet

Method = Callable[[jax.Array, PyTree, Task], Packet]
"""(key, deployed, task) -> packet: trains an update of the deployed model on the task.

The packet is that of the best epoch on the validation data; where no epoch beats the start, it changes nothing. Whether
it is worth sending is the protocol's decision: see `protocol.run_round`."""

Initial = Callable[[jax.Array], PyTree]
"""key -> the model that training starts from where it is not the deployed one."""

AUX_BITS = (None, 4, 8, 16)

_SEEDS = 2**14  # a seed of two bytes on the wire
_INITIAL, _SEED, _SITES = (2**31 + i for i in range(1, 4))  # what is folded into a method's key, each for one purpose


def check_options(*, bits: int, aux: int | None, rate: float) -> None:
    """Checks a method's options once, when it is made.

    Raises:
      Error: `bits` is outside 2 to 16, `aux` is none of `AUX_BITS`, or a rate is not above 0.
    """
    quantize.max_level(bits)
    if aux not in AUX_BITS:
        raise Error(f"aux: expected one of {AUX_BITS} (bits per aux leaf's delta; None = not sent), found {aux}")
    if not isinstance(rate, int | float) or not 0 < rate < math.inf:
        raise Error(f"rate: expected above 0 (it multiplies the task's learning rate), found {rate!r}")


@dataclasses.dataclass(frozen=True)
class Trained:
    """A method of one training: every kernel has the same form."""

    name: str
    form: Any  # a Form
    aux: int | None  # bits of the aux leaves' deltas; None leaves them, and moving statistics, as deployed
    rate: float  # multiplies the task's learning rate
    initial: Initial | None = None  # the model that training starts from; default the deployed one

    def __call__(self, key: jax.Array, deployed: PyTree, task: Task) -> Packet:
        """Trains an update of all leaves."""
        model = choosing.model_of(deployed, task)
        return train_forms(key, task, model, {leaf.name: self for leaf in model.partition.leaves}, name=self.name)


def trained(name: str, form: Any, *, bits: int | None, aux: int | None, rate: float) -> Trained:
    """A method whose numbers are rounded to so many bits, or travel as published: in float32, aux leaves too.

    Args:
      name: of the training.
      form: of every kernel.
      bits: from 2 to 16, or None.
      aux: bits of the aux leaves' deltas; None leaves them as deployed.
      rate: multiplies the task's learning rate.

    Returns:
      A method.

    Raises:
      Error: as `check_options`.
    """
    check_options(bits=16 if bits is None else bits, aux=aux, rate=rate)
    return Trained(name, form, aux and rounding.RAW if bits is None else aux, rate)


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
    bits = {leaf: method.aux for leaf, method in rules.items()}
    model = choosing.choose(model, bits)
    begin = model
    for initial in {method.initial for method in rules.values() if method.initial}:
        mine = [leaf for leaf, method in rules.items() if method.initial is initial]
        begin = started(initial, key, task, begin, mine)
    sites = _sites(key, model, begin, seeded=any(method.form.seeded for method in rules.values()))
    forms = {leaf: rules[leaf].form for leaf in sites}
    choosing.check_lossy(model, [leaf for leaf, form in forms.items() if not form.lossless], bits)
    starts = {leaf: _parametrised(form, sites[leaf]) for leaf, form in forms.items()}
    owners = _owners(starts)
    fitted = _fit(key, task, model, begin, rules, starts, owners, name=name)
    makers = {
        leaf: functools.partial(form.block, fitted.trainable[owners[leaf]], starts[leaf], sites[leaf])
        for leaf, form in forms.items()
    }
    seed = next((site.seed for site in sites.values()), 0)
    return packet_of(model, makers | aux_blocks(model, fitted, bits), seed)


def _parametrised(form: Any, site: Site) -> Parametrised:
    with errors.of_leaf(site.leaf.name):
        return form.parametrise(site)


def _fit(
    key: jax.Array,
    task: Task,
    model: Model,
    begin: Model,
    rules: Mapping[str, Trained],
    starts: Mapping[str, Parametrised],
    owners: Mapping[str, str],
    *,
    name: str,
) -> Fitted:
    """The training of these kernels, and of the aux leaves, from where they begin."""
    aux = begin.of_role(AUX)
    trainable = {leaf: starts[leaf].trainable for leaf in dict.fromkeys(owners.values())} | aux
    masks = {leaf: True if leaf in aux or starts[leaf].mask is None else starts[leaf].mask for leaf in trainable}
    has_masks = any(mask is not True for mask in masks.values())
    plan = plan_of(
        name,
        model.partition,
        {leaf: rules[leaf].form.rebuild for leaf in starts},
        wrap=optimizers.masked if has_masks else unwrapped,
        ties=tuple((leaf, owner) for leaf, owner in owners.items() if leaf != owner),
    )
    with choosing.blaming(begin):
        return loop.fit(
            key,
            task,
            plan,
            trainable,
            Frozen(model.variables, {leaf: start.fixed for leaf, start in starts.items()}),
            moved=begin.of_role(STATE),
            rates={leaf: rules[leaf].rate for leaf in trainable},
            masks=masks if has_masks else None,
        )


def _owners(starts: Mapping[str, Parametrised]) -> dict[str, str]:
    """For each kernel the one whose trained values it has: the first of its tie."""
    first: dict[Hashable, str] = {}
    return {leaf: leaf if start.tie is None else first.setdefault(start.tie, leaf) for leaf, start in starts.items()}


def packet_of(model: Model, makers: Mapping[str, Callable[[], Block]], seed: int = 0) -> Packet:
    """The packet of the blocks that these functions make: on access if the model is on several devices, else at once.

    Args:
      model: the deployed one.
      makers: leaf name -> function that makes its block.
      seed: the packet's.

    Returns:
      A packet.
    """
    blocks = LazyBlocks(makers)
    return Packet(blocks if arrays.spans_devices(model.variables) else dict(blocks), seed)


def _sites(key: jax.Array, model: Model, begin: Model, *, seeded: bool) -> dict[str, Site]:
    """Every chosen kernel, by name."""
    seed = int(jax.random.randint(jax.random.fold_in(key, _SEED), (), 0, _SEEDS)) if seeded else 0
    kernels = model.of_role(KERNEL)
    weights = kernels if begin is model else begin.of_role(KERNEL)
    site_key, places = jax.random.fold_in(key, _SITES), {name: place for place, name in enumerate(kernels)}
    return {
        leaf.name: Site(
            leaf=leaf,
            number=number,
            held=model.leaves[leaf.name],
            old=kernels[leaf.name],
            weights=weights[leaf.name],
            seed=seed,
            key=jax.random.fold_in(site_key, number),
            place=places[leaf.name],
        )
        for number, leaf in enumerate(model.partition.leaves)
        if leaf.name in kernels
    }


def started(initial: Initial, key: jax.Array, task: Task, model: Model, names: Iterable[str]) -> Model:
    """The model, with these leaves as `initial` gives them for a key that nothing else uses.

    Raises:
      LeafError: it gives a leaf of another shape, or lacks one.
    """
    other = trees.named_leaves(initial(jax.random.fold_in(key, _INITIAL)))
    for name in names:
        expected, found = model.leaves[name].shape, other[name].shape if name in other else "no such leaf"
        if found != expected:
            raise LeafError(f"start: leaf {name!r}: expected shape {expected} as in the deployed model, found {found}")
    placed = {name: arrays.to_devices(other[name], model.leaves[name].sharding) for name in names}
    return model._replace(leaves={**model.leaves, **placed})


def aux_blocks(model: Model, fitted: Fitted, bits: Mapping[str, int | None]) -> dict[str, Callable[[], Block]]:
    """The blocks of all aux leaves that gradients trained and all leaves that the loss moved.

    Args:
      model: the deployed one, its leaves chosen.
      fitted: of its training.
      bits: of each leaf's delta, by name; see `rounding.aux_block`.

    Returns:
      Leaf name -> function that makes its block.
    """
    held = trees.named_leaves(model.variables)
    new = {name: fitted.trainable[name] for name in model.of_role(AUX)} | fitted.moved
    return {
        name: functools.partial(rounding.aux_block, held[name], leaf, bits[name] or rounding.RAW)
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
