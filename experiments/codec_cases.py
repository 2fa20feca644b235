"""Pairs of models, each as it was and as it is now, on which exact updates are measured.

  A: a perceptron 784-512-512-10 of 20,000 digits of MNIST, retrained on 5,000 that are rotated by 30 to 45 degrees.
  B: a small VGG (1.15 million weights) of CIFAR-10, retrained on rotated images as well.
  As, Bs: the same with 99 % of the changes undone, drawn at random.
  C: 20 million bfloat16 weights after one step of a trainer whose float32 weights move by less than 1e-6 each.
  D6, D5: the language model in bfloat16, 20 consecutive steps of Adam at a rate of 1e-6 and of 1e-5.

A case is kept in the working folder, so that a second run finds it there.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.images import ShiftConfig, load
from experiments.trainings import task_of
from experiments.worlds import keys_of
from updcomp import methods, trees
from updcomp.edge import files
from updcomp.training import data, models, text
from updcomp.training.classification import classification
from updcomp.training.language_model import language_model
from updcomp.training.shifts import random_rotation
from updcomp.training.transformer import Variables, transformer
from updcomp.wire import apply, dtypes

Weights = dict[str, np.ndarray]

_KEPT = 0.01  # of the changes in As and Bs
_STEPS = 20
_WARM_UP = 150  # steps of the language model before the first that is sent
_RATES = {"D6": 1e-6, "D5": 1e-5}
_BLOCK = {"query": (1024, 1024), "key": (1024, 1024), "value": (1024, 1024), "out": (1024, 1024)}
_SHAPES = {
    "embedding": (7188, 1024),
    **{f"block/attention/{name}/kernel": shape for name, shape in _BLOCK.items()},
    "block/mlp/up/kernel": (1024, 4096),
    "block/mlp/down/kernel": (4096, 1024),
    "norm/scale": (1024,),
}


class Case(NamedTuple):
    """A model as it is at several times, in order."""

    name: str
    about: str
    models: list[Weights]

    @property
    def pairs(self) -> Iterator[tuple[Weights, Weights]]:
        """(old, new), one after another."""
        return zip(self.models, self.models[1:], strict=False)


def cases(names: list[str], workdir: Path, data_dir: str | None) -> Iterator[Case]:
    """The cases, each made when it is asked for and not there yet.

    Args:
      names: of `CASES`.
      workdir: where they are kept.
      data_dir: of the prepared datasets.

    Yields:
      Each case.
    """
    folder = workdir / "cases"
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        about, make = CASES[name]
        yield Case(name, about, make(folder, data_dir))


def _kept(folder: Path, name: str, count: int, make: Callable[[], list[Weights]]) -> list[Weights]:
    """The models of a case from the folder, or made and written to it."""
    paths = [folder / f"{name}-{i:02d}.safetensors" for i in range(count)]
    if not all(path.exists() for path in paths):
        for path, model in zip(paths, make(), strict=True):
            files.write_model(path, model)
    return [dict(files.read_model(path).model) for path in paths]


def _trained(config: ShiftConfig, model: models.Model) -> list[Weights]:
    """A model of upright images, and of rotated ones."""
    source = load(config).source
    counts = (config.pretrain_samples, config.samples, config.validation_samples)
    before, new, validation = data.split(source.train, counts, seed=0)
    keys, objective = keys_of(0), classification(model.apply)

    def turned(samples: data.Dataset, key: jax.Array) -> data.Dataset:
        rotated = random_rotation(key, jnp.asarray(samples.images), low=30.0, high=45.0)
        return samples._replace(images=np.asarray(rotated))

    def fit(key: jax.Array, start: Any, train: data.Dataset, known: data.Dataset, epochs: int) -> Any:
        task = task_of(config, objective, train, known)._replace(epochs=epochs)
        packet = methods.full()(key, start, task)
        return trees.with_leaves(start, apply.changed_leaves(packet, trees.HostModel(start)))

    start = model.init(keys.init, source.train.images)
    old = fit(keys.pretrain, start, before, validation, config.pretrain_epochs)
    after = turned(validation, keys.validation)
    return [
        dict(trees.HostModel(tree))
        for tree in (old, fit(keys.update, old, turned(new, keys.new), after, config.epochs))
    ]


def _perceptron(folder: Path, data_dir: str | None) -> list[Weights]:
    config = ShiftConfig(dataset="mnist", data_dir=data_dir)
    return _kept(folder, "A", 2, lambda: _trained(config, models.mlp()))


def _convolutions(folder: Path, data_dir: str | None) -> list[Weights]:
    config = ShiftConfig(dataset="cifar10", data_dir=data_dir, model="vgg", augment="none", pretrain_epochs=4, epochs=4)
    small = models.vgg(stages=((32,), (64,), (128,)), dense=(512,))
    return _kept(folder, "B", 2, lambda: _trained(config, small))


def _undone(pair: list[Weights]) -> list[Weights]:
    """The same old model, and a new one with one in a hundred of the changes."""
    rng, (old, new) = np.random.default_rng(0), pair
    less = {}
    for name, leaf in new.items():
        kept = rng.random(leaf.shape) < _KEPT
        less[name] = np.where(kept, leaf, old[name])
    return [old, less]


def _one_step(folder: Path, _: str | None) -> list[Weights]:
    return _kept(folder, "C", 2, one_step)


def one_step(scale: int = 1) -> list[Weights]:
    """Normal weights of deviation .05, and a step of deviation 7.07e-7 in float32, as Adam makes it at a small rate.

    Where a weight's last place is far larger than its step, the rounded weight hardly ever changes: 1.15 % do, 90 % of
    these by one unit in the last place; 98 % at the smallest exponents, .05 % at the largest.

    Args:
      scale: how many times the leaves are there.

    Returns:
      (old, new).
    """
    rng, old, new = np.random.default_rng(0), dict[str, np.ndarray](), dict[str, np.ndarray]()
    for name in _SHAPES if scale == 1 else (f"{i:02d}/{leaf}" for i in range(scale) for leaf in _SHAPES):
        shape = _SHAPES[name if scale == 1 else name[3:]]
        weights = rng.standard_normal(shape, np.float32) * np.float32(0.05)
        steps = rng.standard_normal(shape, np.float32) * np.float32(7.07e-7)
        old[name], new[name] = (dtypes.round_floats(one, dtypes.BFLOAT16) for one in (weights, weights + steps))
    return [old, new]


def _language(name: str) -> Callable[[Path, str | None], list[Weights]]:
    return lambda folder, _: _kept(folder, name, 1 + _STEPS, lambda: _steps(_RATES[name]))


def _steps(rate: float) -> list[Weights]:
    """The language model in bfloat16 before each of some steps of Adam on float32 weights, and after the last."""
    model = transformer(vocabulary=text.VOCABULARY, width=256, depth=4, heads=4, length=64)
    windows = text.windows(text.sources(600_000, seed=0), 64)
    objective, rates = language_model(model.apply), (1e-3, rate)
    optimizer = optax.inject_hyperparams(optax.adam)(learning_rate=rates[0])

    @jax.jit
    def step(variables: Variables, state: Any, batch: Any) -> tuple[Variables, Any]:
        gradients = jax.grad(lambda v: objective.loss(v, batch, jax.random.key(0), train=True))(variables)
        updates, state = optimizer.update(gradients, state, variables)
        return optax.apply_updates(variables, updates), state

    def held() -> Weights:
        return {
            name: dtypes.round_floats(np.asarray(leaf), dtypes.BFLOAT16)
            for name, leaf in trees.named_leaves(variables).items()
        }

    variables = model.init(jax.random.key(0))
    state, rng, found = optimizer.init(variables), np.random.default_rng(0), []
    for i in range(_WARM_UP + _STEPS):
        if i == _WARM_UP:
            state.hyperparams["learning_rate"] = jnp.asarray(rates[1])
            found.append(held())
        rows = rng.integers(0, len(windows["tokens"]), 16)
        variables, state = step(variables, state, {key: part[rows] for key, part in windows.items()})
        if i >= _WARM_UP:
            found.append(held())
    return found


CASES: dict[str, tuple[str, Callable[[Path, str | None], list[Weights]]]] = {
    "A": ("perceptron, MNIST, rotated", _perceptron),
    "B": ("small VGG, CIFAR-10, rotated", _convolutions),
    "As": ("A with 99 % of the changes undone", lambda folder, where: _undone(_perceptron(folder, where))),
    "Bs": ("B with 99 % of the changes undone", lambda folder, where: _undone(_convolutions(folder, where))),
    "C": ("20 M bfloat16 weights, one step of 1e-6", _one_step),
    "D6": ("language model in bfloat16, 20 steps of Adam at 1e-6", _language("D6")),
    "D5": ("language model in bfloat16, 20 steps of Adam at 1e-5", _language("D5")),
}
