"""A world that changes: what a model was deployed for, what it meets, and how well it does, whatever the task."""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import NamedTuple

import jax

from updcomp.training.tasks import Task
from updcomp.trees import PyTree


class Score(NamedTuple):
    """What a model is judged by."""

    name: str  # names the columns of the rows: "accuracy", "bits_per_character"
    of: Callable[[PyTree, PyTree], float]  # (variables, data on the host) -> figure
    digits: int = 3  # after the decimal point in tables
    higher_is_better: bool = True

    @property
    def label(self) -> str:
        """The name in tables and plots."""
        return self.name.replace("_", " ")

    @property
    def sign(self) -> int:
        """What a difference is multiplied by to be a gain."""
        return 1 if self.higher_is_better else -1

    def shown(self, value: float, spread: float | None = None) -> str:
        """A figure as tables have it, with its standard deviation where there is one.

        >>> Score("accuracy", lambda variables, data: 1.0).shown(0.9, 0.01)
        '0.900 ± 0.010'
        """
        return f"{value:.{self.digits}f}" + ("" if spread is None else f" ± {spread:.{self.digits}f}")


class World(NamedTuple):
    """One seed's world."""

    dataset: str
    model: str
    title: str  # of the report
    init: Callable[[jax.Array], PyTree]  # PRNG key -> variables before any training
    before: Task | None  # what the deployed model is trained on; None: it is as `init` makes it
    task: Task  # what the server retrains it on
    test: PyTree  # what it meets on the device; nothing is ever chosen on it
    score: Score
    about: Mapping[str, str] = MappingProxyType({})  # what else identifies the data: columns of the rows


Worlds = Callable[[int], World]
"""seed -> its world. Raises an `Error` for settings that do not fit the data; nothing has been written by then."""


class Keys(NamedTuple):
    """One seed's PRNG keys, each for one purpose."""

    init: jax.Array  # the initial weights
    pretrain: jax.Array  # the training of the deployed model
    new: jax.Array  # how the new samples are changed
    validation: jax.Array  # and the validation samples
    test: jax.Array  # and the test samples
    update: jax.Array  # the methods' own


def keys_of(seed: int) -> Keys:
    """The keys of a seed."""
    return Keys(*jax.random.split(jax.random.key(seed), len(Keys._fields)))
