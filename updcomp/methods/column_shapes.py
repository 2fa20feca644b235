"""The shapes of what trains by columns: a few of them, so that another choice of neurons seldom compiles anything."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from updcomp import trees
from updcomp.layers import Layer
from updcomp.neurons import Choice, Cost, CostOf, Counts, whole
from updcomp.trees import PyTree
from updcomp.wire import views
from updcomp.wire.views import View

_STEPS = 16  # a shape has room for so many sixteenths of a layer
_LARGER = 1.25  # times the cost of its own shape a choice may take another one

Shape = dict[str, int | None]
"""name -> columns that there is room for; None: all of them train, as the leaf itself"""

BIAS = View((), (0,))


def views_of(layers: Sequence[Layer]) -> dict[str, View]:
    """Name of each kernel and bias -> how its columns are read."""
    kernels = {layer.kernel: layer.view for layer in layers}
    return kernels | {layer.bias: BIAS for layer in layers if layer.bias}


def shape_of(layers: Sequence[Layer], counts: Counts) -> Shape:
    """The shape of so many columns: in sixteenths of a kernel, so that few shapes differ."""

    def room(layer: Layer, name: str, count: int) -> int | None:
        if count == layer.neurons:
            return None
        if name == layer.bias:
            return layer.neurons  # a bias costs too little for shapes of its own
        return math.ceil(math.ceil(count * _STEPS / layer.neurons) * layer.neurons / _STEPS)

    named = ((layer, name) for layer in layers for name in (layer.kernel, layer.bias) if name)
    return {name: room(layer, name, count) for layer, name in named if (count := counts.get(name, 0))}


class Shapes:
    """The shapes in use."""

    def __init__(self, layers: Sequence[Layer], most: int, cost_of: CostOf) -> None:
        """None yet.

        Args:
          layers: of the model.
          most: how many there may be.
          cost_of: what a choice costs.
        """
        self._layers = layers
        self._views = views_of(layers)
        self._columns = whole(layers)
        self._most, self._cost_of = most, cost_of
        self._known: list[Shape] = []

    @property
    def count(self) -> int:
        """How many there are."""
        return len(self._known)

    def add(self, shape: Shape) -> None:
        """Takes a shape into use."""
        if shape not in self._known:
            self._known.append(shape)

    def fit(self, choice: Choice, generator: np.random.Generator) -> tuple[Choice, Shape]:
        """A shape for a choice: one in use that costs little more than the choice's own, or else its own.

        Once there are as many as there may be, neurons that do not fit the roomiest one are left out, at random.

        Args:
          choice: of an epoch.
          generator: draws what is left out.

        Returns:
          (the choice, the shape).
        """
        own = shape_of(self._layers, {name: len(numbers) for name, numbers in choice.items()})
        most = Cost(*(_LARGER * part for part in self._cost_of(self.room(own))))
        near = [shape for shape in self._known if _holds(shape, own) and self._cost_of(self.room(shape)).within(most)]
        if near:
            return choice, min(near, key=lambda shape: self._cost_of(self.room(shape)).flops)
        cuts = [(cut, shape) for shape in self._known if (cut := _cut(choice, own, shape, generator))]
        if len(self._known) < self._most or not cuts:
            return choice, own
        return max(cuts, key=lambda found: sum(map(len, found[0].values())))

    def room(self, shape: Shape) -> dict[str, int]:
        """How many columns a shape has room for."""
        return {name: self._columns[name] if room is None else room for name, room in shape.items()}

    def parts(self, shape: Shape) -> tuple[tuple[str, View | None], ...] | None:
        """The `Plan.parts` of a shape."""
        if len(shape) == len(self._columns) and not any(shape.values()):
            return None
        return tuple((name, None if room is None else self._views[name]) for name, room in sorted(shape.items()))

    def numbers(self, choice: Choice, shape: Shape) -> dict[str, np.ndarray]:
        """The choice's numbers in a shape, filled up with numbers that stand for nothing."""
        found = {}
        for name, room in shape.items():
            if room is not None:
                found[name] = np.full(room, self._columns[name], np.int32)
                chosen = choice.get(name, np.empty(0, np.int32))
                found[name][: len(chosen)] = chosen
        return found


def _holds(shape: Shape, own: Shape) -> bool:
    """Whether a shape has room for another one; a leaf that trains whole is in both."""
    whole_ = {name for name, room in shape.items() if room is None}
    if whole_ != {name for name, room in own.items() if room is None}:
        return False
    return all((shape.get(name) or 0) >= (room or 0) for name, room in own.items())


def _cut(choice: Choice, own: Shape, shape: Shape, generator: np.random.Generator) -> Choice:
    """What of a choice fits a shape; nothing where the shape trains a leaf whole of which not all is chosen."""
    if any(room is None and own.get(name, 0) is not None for name, room in shape.items()):
        return {}
    rooms = {name: len(choice[name]) if shape[name] is None else shape[name] or 0 for name in choice if name in shape}
    return {name: np.sort(generator.permutation(choice[name])[:room]) for name, room in rooms.items() if room}


def carried(
    old: PyTree, new: PyTree, before: Mapping[str, Any], after: Mapping[str, Any], views_: Mapping[str, View]
) -> PyTree:
    """An optimizer's state for other columns: that of columns which train on, and fresh for the others.

    Args:
      old: state of the training so far, in the user's tree.
      new: fresh state of the next choice.
      before: name -> numbers of the columns so far, None for a whole leaf.
      after: name -> numbers of the next ones.
      views_: name -> how its columns are read.

    Returns:
      The new state.
    """
    held = trees.named_leaves(old)

    def of(path: str, fresh: jax.Array) -> jax.Array:
        ends = [name for name in after if f"/{path}".endswith("/" + name.removeprefix("params/"))]
        name = max(ends, key=len, default="" if "" in after and fresh.ndim else None)
        if path not in held:
            return fresh
        if name is None:
            return held[path]
        return _moved(held[path], fresh, before.get(name), after[name], views_[name])

    return trees.replace(new, {path: of(path, leaf) for path, leaf in trees.named_leaves(new).items()})


def _moved(old: jax.Array, fresh: jax.Array, before: Any, after: Any, view: View) -> jax.Array:
    columns = views.split(old, view)[0] if before is None else old
    wanted = np.arange(views.split(fresh, view)[0].shape[1]) if after is None else np.asarray(after)
    numbers = np.arange(columns.shape[1]) if before is None else np.asarray(before)
    place = np.searchsorted(numbers, wanted)
    place = np.minimum(place, len(numbers) - 1)
    stays = numbers[place] == wanted
    target = views.split(fresh, view)[0] if after is None else fresh
    moved = jnp.where(stays[None], jnp.take(columns, place, axis=1), target)
    return views.join(moved[None], fresh.shape, view) if after is None else moved
