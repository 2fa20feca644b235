"""Models of images before and after these turn, the perceptron and the small VGG of the codec's cases; their judges."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

from experiments.images import ShiftConfig, load
from experiments.trainings import task_of
from experiments.worlds import keys_of
from updcomp import methods, trees
from updcomp.training import data, models
from updcomp.training.classification import classification
from updcomp.training.objectives import make_score
from updcomp.training.shifts import random_rotation, shift_dataset
from updcomp.wire import apply

Weights = dict[str, np.ndarray]

_SETTINGS: dict[str, dict[str, Any]] = {  # a config asks JAX for its devices, which is too early here
    "A": {"dataset": "mnist"},
    "B": {"dataset": "cifar10", "model": "vgg", "augment": "none", "pretrain_epochs": 4, "epochs": 4},
}
_CHOOSING = 5_000  # samples on which steps are chosen; no other use is made of them


class Judge(NamedTuple):
    """How right a model is on turned images, from 0 to 1."""

    validation: Callable[[Weights], float]  # on which settings are chosen
    test: Callable[[Weights], float]


class _Parts(NamedTuple):
    """Samples, of which no two parts share any but for validation."""

    before: data.Dataset  # upright
    known: data.Dataset  # validation samples of `before`
    new: data.Dataset  # these and all below are turned
    validation: data.Dataset  # the samples of `known`
    choosing: data.Dataset
    test: data.Dataset


def _of(name: str, data_dir: str | None) -> tuple[ShiftConfig, models.Model]:
    model = models.mlp() if name == "A" else models.vgg(stages=((32,), (64,), (128,)), dense=(512,))
    return ShiftConfig(**_SETTINGS[name], data_dir=data_dir), model


def _turned(samples: data.Dataset, key: jax.Array) -> data.Dataset:
    return shift_dataset(samples, random_rotation, key, low=30.0, high=45.0)


@functools.cache
def _parts(config: ShiftConfig) -> _Parts:
    source, keys = load(config).source, keys_of(0)
    counts = (config.pretrain_samples, config.samples, config.validation_samples, _CHOOSING)
    before, new, validation, choosing = data.split(source.train, counts, seed=0)
    return _Parts(
        before,
        validation,
        _turned(new, keys.new),
        _turned(validation, keys.validation),
        _turned(choosing, jax.random.fold_in(keys.validation, 1)),
        _turned(source.test, keys.test),
    )


def pair(name: str, data_dir: str | None) -> list[Weights]:
    """A model of upright images, and the same retrained on turned ones.

    Args:
      name: A or B.
      data_dir: of the prepared datasets.

    Returns:
      (old, new).
    """
    config, model = _of(name, data_dir)
    parts, keys, objective = _parts(config), keys_of(0), classification(model.apply)

    def fit(key: jax.Array, start: Any, train: data.Dataset, known: data.Dataset, epochs: int) -> Any:
        task = task_of(config, objective, train, known)._replace(epochs=epochs)
        packet = methods.full()(key, start, task)
        return trees.with_leaves(start, apply.changed_leaves(packet, trees.HostModel(start)))

    start = model.init(keys.init, parts.before.images)
    old = fit(keys.pretrain, start, parts.before, parts.known, config.pretrain_epochs)
    new = fit(keys.update, old, parts.new, parts.validation, config.epochs)
    return [dict(trees.HostModel(tree)) for tree in (old, new)]


def judge(name: str, data_dir: str | None) -> Judge:
    """What judges the models of a case.

    Args:
      name: A or B.
      data_dir: as `pair` takes it.
    """
    config, model = _of(name, data_dir)
    parts, score = _parts(config), make_score(classification(model.apply))
    like = model.init(keys_of(0).init, parts.before.images)

    def on(samples: data.Dataset) -> Callable[[Weights], float]:
        return lambda weights: score(trees.with_leaves(like, weights.items()), samples)

    return Judge(on(parts.choosing), on(parts.test))
