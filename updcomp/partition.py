"""What each leaf of a model is, how its kernels are read as matrices, and which leaves train and travel."""

import re
from collections.abc import Collection, Iterable, Mapping
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp

from updcomp import trees
from updcomp.trees import PyTree
from updcomp.wire import errors, views
from updcomp.wire.errors import Error, LeafError
from updcomp.wire.views import View

ValueT = TypeVar("ValueT")

_LISTED = 24  # paths in a message

KERNEL = "kernel"  # floating, with axes of fan-in and of fan-out: what selection and factorisation work on
AUX = "aux"  # floating, everything else that gradients train: biases, norm scales and shifts
STATE = "state"  # what the loss moves instead of a gradient: batch statistics
FIXED = "fixed"  # integers, booleans, complex numbers, PRNG keys and leaves without elements: never trained


class Leaf(NamedTuple):
    """One leaf of a model."""

    name: str  # its path, joined by "/"
    role: str  # KERNEL, AUX, STATE or FIXED
    view: View  # how it is read as matrices (fan-in, fan-out)
    depth: int | None = None  # place of its layer in the program, from 0; None where nobody has looked


class Partition(NamedTuple):
    """What trains and travels: static and hashable, so that compiled functions belong to it by value.

    Only chosen leaves are differentiated, so no gradient is computed for anything below the lowest of them.
    """

    leaves: tuple[Leaf, ...]  # of the whole model, in sorted order of their names
    chosen: frozenset[str]  # names of the leaves that train and travel
    moved: frozenset[str] = frozenset()  # names of the floating leaves that the loss moves

    def of_role(self, role: str) -> tuple[Leaf, ...]:
        """The chosen leaves of a role."""
        return tuple(leaf for leaf in self.leaves if leaf.role == role and leaf.name in self.chosen)

    def keeps_state(self) -> bool:
        """Whether statistics that the loss moves stay as deployed."""
        return bool(self.moved - self.chosen)


def of(variables: PyTree, *, axes: Mapping[str, str] | None = None, moved: Collection[str] = ()) -> Partition:
    """What the leaves of a model are, all of them chosen.

    By default the last axis of a leaf is its fan-out and all others are its fan-in, as in flax. `axes` says otherwise:
    pattern -> one word for each axis, `in`, `out` or `stack` (an axis of equal layers, as `scan` has it). The first
    pattern that matches a whole path counts. A leaf without an axis of fan-in is no kernel: `stack out` is a stacked
    bias.
    In a dict of flax collections, with "params", all other collections are state.

    Args:
      variables: any pytree of arrays.
      axes: such as `{".*/query/kernel": "in out out", "layers/.*/bias": "stack out"}`.
      moved: names of the leaves that the loss moves; they are state as well.

    Returns:
      A `Partition`.

    Raises:
      Error: a pattern matches no leaf; an unknown word.
      LeafError: a leaf has another number of axes than words.

    >>> [leaf.role for leaf in of({"b": jnp.ones((3, 4)), "w": jnp.ones((3, 4))}, axes={"b": "stack out"}).leaves]
    ['aux', 'kernel']
    """
    leaves = trees.named_leaves(variables)
    words = match(axes or {}, leaves)
    collections = {name for name in leaves if not name.startswith("params/")} if trees.is_collections(variables) else ()
    in_state = {*moved, *collections}
    described = []
    for name, leaf in leaves.items():
        view = views.last_axis_out(leaf.ndim)
        if name in words:
            if len(words[name].split()) != leaf.ndim:
                expected = f"expected {leaf.ndim} words for shape {leaf.shape}"
                raise LeafError(f"axes: leaf {name!r}: {expected}, found {words[name]!r}")
            with errors.of_leaf(name):
                view = views.of_words(words[name])
        described.append(Leaf(name, _role(leaf, view, name in in_state), view))
    statistics = frozenset(name for name in moved if is_floating(leaves[name]))
    return Partition(tuple(described), frozenset(leaves), statistics)


def is_floating(leaf: Any) -> bool:
    """Whether an array has floats of any width, those that NumPy lacks included."""
    return bool(jnp.issubdtype(leaf.dtype, jnp.floating))


def _role(leaf: Any, view: View, is_state: bool) -> str:
    if not is_floating(leaf):
        return STATE if is_state and not jnp.issubdtype(leaf.dtype, jax.dtypes.extended) else FIXED
    if is_state:
        return STATE
    if not leaf.size:
        return FIXED
    return KERNEL if view.in_axes and view.out_axes else AUX


def match(rules: Mapping[str, ValueT], names: Iterable[str]) -> dict[str, ValueT]:
    """Applies rules by path: the first pattern that matches the whole of a leaf's path counts.

    Args:
      rules: regular expression -> value, in order of precedence.
      names: paths of leaves.

    Returns:
      name -> value of the first matching rule, for the names that have one.

    Raises:
      Error: a pattern is no regular expression, matches no path (lists the paths), or only what earlier ones match.

    >>> match({".*bias": 1, "a/.*": 2}, ["a/bias", "a/kernel", "b/kernel"])
    {'a/bias': 1, 'a/kernel': 2}
    """
    names = list(names)
    found: dict[str, ValueT] = {}
    by: dict[str, str] = {}
    for pattern, value in rules.items():
        try:
            matched = [name for name in names if re.fullmatch(pattern, name)]
        except re.error as error:
            raise Error(f"rule {pattern!r}: expected a regular expression of leaf paths; {error}") from None
        if not matched:
            raise Error(f"rule {pattern!r}: matches no leaf; expected a regular expression for {_some(names)}")
        if not (first := [name for name in matched if name not in found]):
            taken = f"what it matches is taken by an earlier rule, {by[matched[0]]!r}"
            raise Error(f"rule {pattern!r}: {taken}; put it first, or leave it out")
        found.update(dict.fromkeys(first, value))
        by.update(dict.fromkeys(first, pattern))
    return {name: found[name] for name in names if name in found}


def _some(names: list[str]) -> str:
    more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    return f"some of {', '.join(map(repr, names[:_LISTED]))}{more}"
