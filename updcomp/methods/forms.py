"""How the change of one kernel is parametrised, so that leaves of different methods train together."""

from collections.abc import Hashable
from typing import NamedTuple, Protocol

import jax

from updcomp.partition import Leaf
from updcomp.training.plans import Rebuild
from updcomp.trees import PyTree
from updcomp.wire.kind import Block


class Site(NamedTuple):
    """Where a form is used: one kernel of a deployed model.

    Attributes:
      leaf: its name, role, and how it is read as matrices.
      number: of the leaf in the sorted order of all names.
      held: the deployed array, in its own dtype.
      old: the same as float32; changes are relative to it.
      weights: float32, those that training starts from: `old`, unless a method starts elsewhere.
      seed: of the packet, which travels.
      key: PRNG key of this kernel, for what does not travel.
      place: of the kernel among those that train, in the order of their names.
    """

    leaf: Leaf
    number: int
    held: jax.Array
    old: jax.Array
    weights: jax.Array
    seed: int
    key: jax.Array
    place: int


class Parametrised(NamedTuple):
    """A kernel as it trains.

    Attributes:
      trainable: floating arrays, the start.
      fixed: what the form's `rebuild` reads beside it.
      mask: booleans like the kernel, True = sent; None: all of it moves.
      tie: kernels with the same one train one and the same `trainable`, that of the first; None: its own.
    """

    trainable: PyTree
    fixed: PyTree = None
    mask: jax.Array | None = None
    tie: Hashable = None


class Form(Protocol):
    """How the change of a kernel is parametrised: what trains, how that becomes a kernel, and the block that travels.

    Forms are frozen dataclasses, and `rebuild` is one function for all of a form's options: what differs between them
    is in `Parametrised.fixed`, so that other options compile nothing.
    """

    seeded: bool  # whether the packet's seed is drawn for it
    lossless: bool  # whether its block takes leaves of every dtype
    rebuild: Rebuild

    def parametrise(self, site: Site) -> Parametrised:
        """What trains in place of a kernel."""

    def block(self, trained: PyTree, parametrised: Parametrised, site: Site) -> Block:
        """The block of what was trained."""
