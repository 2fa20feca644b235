"""A world that changes: what a model was deployed for, what it meets, and the task that this gives the server."""

import dataclasses
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp

from experiments import trainings
from experiments.trainings import TrainingConfig
from updcomp.methods import base
from updcomp.training import devices
from updcomp.training.checkpoints import load_model, save_model
from updcomp.training.data import Dataset, Source, of_classes, split
from updcomp.training.loop import Task, fit
from updcomp.training.models import Model
from updcomp.training.shifts import contrast_noise, random_rotation, shift_dataset
from updcomp.trees import PyTree
from updcomp.wire.errors import Error


@dataclasses.dataclass(frozen=True)
class WorldConfig(TrainingConfig):
    """The settings that describe a world and how its models are trained."""

    shift: str = "rotation"
    pretrain_samples: int = 20_000
    samples: int = 5_000
    validation_samples: int = 1_000
    pretrain_epochs: int = 10


class World(NamedTuple):
    """One seed's world."""

    before: Dataset  # what the deployed model is trained on
    task: Task  # what the server retrains it on
    test: Dataset  # what it meets on the device; nothing is ever chosen on it


class Keys(NamedTuple):
    """One seed's PRNG keys, each for one purpose."""

    init: jax.Array  # the initial weights
    pretrain: jax.Array  # the order of samples before deployment
    new: jax.Array  # how the new samples are shifted
    validation: jax.Array  # and the validation samples
    test: jax.Array  # and the test samples
    update: jax.Array  # the methods' own


def keys_of(seed: int) -> Keys:
    """The keys of a seed."""
    return Keys(*jax.random.split(jax.random.key(seed), len(Keys._fields)))


Shift = Callable[[Dataset, jax.Array], Dataset]  # (samples, key) -> the samples as the changed world shows them


def _rotated(dataset: Dataset, key: jax.Array) -> Dataset:
    return shift_dataset(dataset, lambda key, images: random_rotation(key, images, low=30.0, high=45.0), key)


def _noisy(dataset: Dataset, key: jax.Array) -> Dataset:
    return shift_dataset(dataset, lambda key, images: contrast_noise(key, images, contrast=0.4, noise=0.1), key)


SHIFTS: dict[str, Shift] = {"rotation": _rotated, "contrast_noise": _noisy, "classes": lambda dataset, key: dataset}


def make(config: WorldConfig, source: Source, model: Model, seed: int) -> World:
    """The world of one seed: disjoint random samples for before, after and validation, and the changed test set.

    Args:
      config: the experiment's settings.
      source: the dataset.
      model: what is trained.
      seed: decides samples, shift and order.

    Returns:
      A `World`. With the shift "classes", the deployed model knows the first 60 % of the classes and then meets all.

    Raises:
      Error: there is no such shift.
      DatasetError: the dataset has too few samples.
    """
    if config.shift not in SHIFTS:
        raise Error(f"--shift: expected one of {', '.join(SHIFTS)}, found {config.shift!r}")
    counts = (config.pretrain_samples, config.samples, config.validation_samples)
    before, new, validation = split(source.train, counts, seed=seed)
    if config.shift == "classes":
        before = of_classes(before, range(round(0.6 * source.num_classes)))
    shift, keys = SHIFTS[config.shift], keys_of(seed)
    new, validation, test = shift(new, keys.new), shift(validation, keys.validation), shift(source.test, keys.test)
    return World(before, trainings.task_of(config, model, new, validation), test)


_PRETRAIN = base.plan("deployed", base.quantised_delta(None), aux=16)


def deployed_model(config: WorldConfig, world: World, model: Model, seed: int, path: Path) -> PyTree:
    """The model that the devices hold: trained on the world before the change, once, and kept as an Orbax checkpoint.

    Args:
      config: the experiment's settings.
      world: the seed's.
      model: what is trained.
      seed: decides the initial weights and the order of samples.
      path: of the checkpoint.

    Returns:
      Variables.
    """
    if path.exists():
        return jax.tree.map(jnp.asarray, load_model(path))
    keys = keys_of(seed)
    init = model.init(keys.init, world.before.images)
    parts = base.split(init, aux=16)
    before = devices.replicate(world.before, world.task.mesh)
    unfinished = path.with_name(f"{path.name}-training")
    task = world.task._replace(train=before, epochs=config.pretrain_epochs, checkpoints=unfinished)
    start = {"kernels": parts.kernels, "aux": parts.aux}
    fitted = fit(keys.pretrain, task, _PRETRAIN, start, {"deployed": init}, statistics=parts.statistics)
    variables = {**_PRETRAIN.assemble(fitted.last, {"deployed": init}), **fitted.last_statistics}
    save_model(path, variables)
    shutil.rmtree(unfinished, ignore_errors=True)
    return variables
