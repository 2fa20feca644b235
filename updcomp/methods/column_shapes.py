"""The shapes of what trains by columns: a few of them, so that another choice of neurons seldom compiles anything."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from updcomp import trees
from updcomp.layers import Layer
from updcomp.neurons import Choice, Cost, CostOf
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


class Shapes:
    """The shapes in use."""

    def __init__(self, layers: Sequence[Layer], most: int, cost_of: CostOf) -> None:
        """None yet.

        Args:
          layers: of the model.
          most: how many there may be.
          cost_of: what a choice costs.
        """
        self._views = views_of(layers)
        self._columns = {name: layer.neurons for layer in layers for name in (layer.kernel, layer.bias) if name}
        self._most, self._cost_of = most, cost_of
        self._known: list[Shape] = []
        self._now: Shape = {}

    @property
    def count(self) -> int:
        """How many there are."""
        return len(self._known)

    def fit(self, choice: Choice, generator: np.random.Generator) -> Choice:
        """The choice in one of the shapes, which is that of `parts` and `numbers` from then on.

        A new shape is added where none has room at little more than the cost of the choice's own. Once there are as
        many as there may be, neurons that do not fit the roomiest one are left out, at random.
        """
        own = {name: self._room(name, len(numbers)) for name, numbers in choice.items()}
        holding = [
            shape
            for shape in self._known
            if all(_holds(shape, name, own[name], numbers) for name, numbers in choice.items())
        ]
        price = self._price(own)
        near = [shape for shape in holding if self._price(shape).within(Cost(*(_LARGER * part for part in price)))]
        if near or len(self._known) < self._most:
            self._now = min(near, key=lambda shape: self._price(shape).flops) if near else own
            self._known += [] if near else [own]
            return choice
        kept = [self._cut(choice, own, shape, generator) for shape in self._known]
        sizes = [-1 if cut is None else sum(map(len, cut.values())) for cut in kept]
        best = int(np.argmax(sizes))
        if (
            cut := kept[best]
        ) is None or not cut:  # all of them train whole leaves, of which not all neurons are chosen
            self._now = own
            self._known.append(own)
            return choice
        self._now = self._known[best]
        return cut

    def forget(self) -> None:
        """Drops the shape in use, which costs too much."""
        self._known.remove(self._now)

    def parts(self) -> tuple[tuple[str, View | None], ...]:
        """The `Plan.parts` of the shape in use."""
        return tuple((name, None if room is None else self._views[name]) for name, room in sorted(self._now.items()))

    def numbers(self, choice: Choice) -> dict[str, np.ndarray]:
        """The choice's numbers in the shape in use, filled up with numbers that stand for nothing."""
        found = {}
        for name, room in self._now.items():
            if room is not None:
                found[name] = np.full(room, self._columns[name], np.int32)
                chosen = choice.get(name, np.empty(0, np.int32))
                found[name][: len(chosen)] = chosen
        return found

    def _room(self, name: str, count: int) -> int | None:
        total = self._columns[name]
        if not self._views[name].in_axes:
            return total  # a bias costs too little for shapes of its own
        sixteenths = -(-count * _STEPS // total)
        return None if count == total else -(-sixteenths * total // _STEPS)

    def _price(self, shape: Shape) -> Cost:
        return self._cost_of({name: self._columns[name] if room is None else room for name, room in shape.items()})

    def _cut(self, choice: Choice, own: Shape, shape: Shape, generator: np.random.Generator) -> Choice | None:
        """What of a choice fits a shape; None where the shape trains more than that."""
        if any(room is None and own.get(name, 0) is not None for name, room in shape.items()):
            return None
        cut = {}
        for name, numbers in choice.items():
            room = shape.get(name, 0)
            cut[name] = numbers if room is None else np.sort(generator.permutation(numbers)[:room])
        return {name: numbers for name, numbers in cut.items() if len(numbers)}


def _holds(shape: Shape, name: str, own: int | None, numbers: np.ndarray) -> bool:
    room = shape.get(name, 0)
    return own is None if room is None else len(numbers) <= room


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
        name = next(
            (name for name in after if path.endswith("/" + name) or path.endswith("/" + name.split("/", 1)[-1])), None
        )
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
