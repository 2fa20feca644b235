"""The shapes of what trains by columns: a few of them, so that another choice of neurons seldom compiles anything."""

import math
from collections.abc import Sequence

import numpy as np

from updcomp.layers import Layer
from updcomp.neurons import Choice, Cost, CostOf, Counts, whole
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


def shape_of(layers: Sequence[Layer], counts: Counts, *, whole_leaves: bool) -> Shape:
    """The shape of so many columns: in sixteenths of a kernel, so that few shapes differ.

    Args:
      layers: of the model.
      counts: name -> columns.
      whole_leaves: whether a leaf of which all columns train is trained as it is; it has no room for fewer.

    Returns:
      The shape.
    """

    def room(layer: Layer, name: str, count: int) -> int | None:
        if count == layer.neurons and whole_leaves:
            return None
        if name == layer.bias:
            return layer.neurons  # a bias costs too little for shapes of its own
        return math.ceil(math.ceil(count * _STEPS / layer.neurons) * layer.neurons / _STEPS)

    named = ((layer, name) for layer in layers for name in (layer.kernel, layer.bias) if name)
    return {name: room(layer, name, count) for layer, name in named if (count := counts.get(name, 0))}


class Shapes:
    """The shapes in use."""

    def __init__(self, layers: Sequence[Layer], most: int, cost_of: CostOf, *, whole_leaves: bool) -> None:
        """None yet.

        Args:
          layers: of the model.
          most: how many there may be.
          cost_of: what a choice costs.
          whole_leaves: see `shape_of`.
        """
        self._layers, self._whole_leaves = layers, whole_leaves
        self._views = views_of(layers)
        self._columns = whole(layers)
        self._most, self._cost_of = most, cost_of
        self.known: list[Shape] = []  # those in use

    def add(self, shape: Shape) -> None:
        """Takes a shape into use."""
        if shape not in self.known:
            self.known.append(shape)

    def of(self, counts: Counts) -> Shape:
        """The shape of its own that so many columns would have."""
        return shape_of(self._layers, counts, whole_leaves=self._whole_leaves)

    def near(self, choice: Choice) -> Shape | None:
        """A shape for a choice: one in use that costs little more than its own, or its own; None if that is too many.

        Args:
          choice: of an epoch.

        Returns:
          The shape.
        """
        own = self.of({name: len(numbers) for name, numbers in choice.items()})
        most = Cost(*(_LARGER * part for part in self._cost_of(self.room(own))))
        near = [shape for shape in self.known if _holds(shape, own) and self._cost_of(self.room(shape)).within(most)]
        if near:
            return min(near, key=lambda shape: self._cost_of(self.room(shape)).flops)
        return own if len(self.known) < self._most else None

    def within(self, shape: Shape) -> CostOf:
        """What a choice costs if it fits a shape, and more than anything if not."""
        room = self.room(shape)

        def cost_of(counts: Counts) -> Cost:
            fits = all(count <= room.get(name, 0) for name, count in counts.items())
            return self._cost_of(counts) if fits else Cost()

        return cost_of

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
    if any((room is None) != (own.get(name, 0) is None) for name, room in shape.items()):
        return False
    return all(name in shape and (shape[name] or 0) >= (room or 0) for name, room in own.items())
