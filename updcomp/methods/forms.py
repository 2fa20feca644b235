"""How the change of one kernel is parametrised, so that leaves of different methods train together."""

from typing import NamedTuple, Protocol

import jax

from updcomp.partition import Leaf
from updcomp.training.plans import Rebuild
from updcomp.trees import PyTree
from updcomp.wire.kind import Block


class Site(NamedTuple):
    """Where a form is used: one kernel of a deployed model."""

    leaf: Leaf
    number: int  # of the leaf in the sorted order of all names
    held: jax.Array  # the deployed array, in its own dtype
    old: jax.Array  # the same as float32
    weights: jax.Array  # float32: those that training starts from
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
    lossless: bool  # whether its block takes leaves of every dtype
    rebuild: Rebuild

    def parametrise(self, site: Site) -> Parametrised:
        """What trains in place of a kernel."""

    def block(self, trained: PyTree, parametrised: Parametrised, site: Site) -> Block:
        """The block of what was trained."""
