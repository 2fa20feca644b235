"""Pairs of models, each as it was and as it is now, on which exact updates are measured.

  A: a perceptron 784-512-512-10 of 20,000 digits of MNIST, retrained on 5,000 that are rotated by 30 to 45 degrees.
  B: a small VGG (1.15 million weights) of CIFAR-10, retrained on rotated images as well.
  As, Bs: the same with 99 % of the changes undone, drawn at random.
  C: 20 million bfloat16 weights after one step of a trainer whose float32 weights move by less than 1e-6 each.
  D6, D5: the language model in bfloat16, 20 consecutive steps of Adam at a rate of 1e-6 and of 1e-5.
  E: the language model in bfloat16 after its warm-up, and with an adapter of rank 8 trained on other text merged into
    every matrix.

A case is kept in the working folder, so that a second run finds it there.
"""

import functools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from experiments import codec_images, codec_language
from updcomp.edge import files
from updcomp.wire import dtypes

Weights = dict[str, np.ndarray]

_KEPT = 0.01  # of the changes in As and Bs
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


def _images(name: str, folder: Path, data_dir: str | None) -> list[Weights]:
    return _kept(folder, name, 2, lambda: codec_images.pair(name, data_dir))


def _seldom(name: str, folder: Path, data_dir: str | None) -> list[Weights]:
    return _undone(_images(name, folder, data_dir))


def _undone(pair: list[Weights]) -> list[Weights]:
    """The same old model, and a new one with one in a hundred of the changes."""
    rng, (old, new) = np.random.default_rng(0), pair
    less = {}
    for name, leaf in new.items():
        kept = rng.random(leaf.shape) < _KEPT
        less[name] = np.where(kept, leaf, old[name])
    return [old, less]


def _drawn(folder: Path, _: str | None) -> list[Weights]:
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


def _steps(name: str, folder: Path, _: str | None) -> list[Weights]:
    rate = {"D6": 1e-6, "D5": 1e-5}[name]
    return _kept(folder, name, 1 + codec_language.STEPS, lambda: codec_language.steps(rate))


def _adapted(folder: Path, _: str | None) -> list[Weights]:
    return _kept(folder, "E", 2, codec_language.merged)


CASES: dict[str, tuple[str, Callable[[Path, str | None], list[Weights]]]] = {
    "A": ("perceptron, MNIST, rotated", functools.partial(_images, "A")),
    "B": ("small VGG, CIFAR-10, rotated", functools.partial(_images, "B")),
    "As": ("A with 99 % of the changes undone", functools.partial(_seldom, "A")),
    "Bs": ("B with 99 % of the changes undone", functools.partial(_seldom, "B")),
    "C": ("20 M bfloat16 weights, one step of 1e-6", _drawn),
    "D6": ("language model in bfloat16, 20 steps of Adam at 1e-6", functools.partial(_steps, "D6")),
    "D5": ("language model in bfloat16, 20 steps of Adam at 1e-5", functools.partial(_steps, "D5")),
    "E": ("language model in bfloat16, a merged adapter of rank 8", _adapted),
}
