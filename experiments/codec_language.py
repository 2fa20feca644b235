"""The language model of the codec's cases: consecutive steps of a trainer, and a merged low-rank adapter."""

import math
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from updcomp import trees
from updcomp.training import text
from updcomp.training.language_model import language_model
from updcomp.training.objectives import Objective
from updcomp.training.transformer import Transformer, Variables, transformer
from updcomp.wire import dtypes

Weights = dict[str, np.ndarray]

STEPS = 20
_WARM_UP = 150  # steps before the first that is sent
_RATE = 1e-3  # of the warm-up
_LENGTH, _BATCH, _CHARACTERS = 64, 16, 600_000
_RANK, _ADAPTER_STEPS, _ADAPTER_RATE = 8, 150, 1e-2


def steps(rate: float) -> list[Weights]:
    """The model before each of some steps of Adam on float32 weights, and after the last.

    Args:
      rate: of these steps.

    Returns:
      `STEPS` + 1 models in bfloat16.
    """
    optimizer = optax.inject_hyperparams(optax.adam)(learning_rate=_RATE)
    variables, state, batches = _warmed_up(optimizer)
    step, found = _step_of(_model()[1], optimizer), [_held(variables)]
    state.hyperparams["learning_rate"] = jnp.asarray(rate)
    for _ in range(STEPS):
        variables, state = step(variables, state, next(batches))
        found.append(_held(variables))
    return found


def merged() -> list[Weights]:
    """The model after its warm-up, and with an adapter merged: W + A B of rank 8 for every matrix, W frozen.

    Returns:
      (old, new) in bfloat16.
    """
    variables = _warmed_up(optax.adam(_RATE))[0]
    _, objective = _model()
    frozen = trees.named_leaves(variables)
    shapes = {name: shape for name, leaf in frozen.items() if (shape := _matrix(leaf.shape)) is not None}
    keys = jax.random.split(jax.random.key(1), len(shapes))
    adapter = {
        name: {"A": jax.random.normal(key, (rows, _RANK)) / math.sqrt(rows), "B": jnp.zeros((_RANK, columns))}
        for key, (name, (rows, columns)) in zip(keys, shapes.items(), strict=True)
    }

    def whole(factors: Any) -> Variables:
        sums = {name: frozen[name] + (ab["A"] @ ab["B"]).reshape(frozen[name].shape) for name, ab in factors.items()}
        return trees.replace(variables, sums)

    adapted = Objective(lambda factors, *rest, **train: objective.loss(whole(factors), *rest, **train), objective.score)
    optimizer = optax.adam(_ADAPTER_RATE)
    state, batches, step = optimizer.init(adapter), _batches(seed=1), _step_of(adapted, optimizer)
    for _ in range(_ADAPTER_STEPS):
        adapter, state = step(adapter, state, next(batches))
    return [_held(variables), _held(whole(adapter))]


def _matrix(shape: tuple[int, ...]) -> tuple[int, int] | None:
    """(rows, columns), as square as the axes allow; None where there is one axis."""
    splits = [(math.prod(shape[:i]), math.prod(shape[i:])) for i in range(1, len(shape))]
    return min(splits, key=sum, default=None)


def _model() -> tuple[Transformer, Objective]:
    model = transformer(vocabulary=text.VOCABULARY, width=256, depth=4, heads=4, length=_LENGTH)
    return model, language_model(model.apply)


def _batches(seed: int) -> Iterator[Any]:
    windows = text.windows(text.sources(_CHARACTERS, seed=seed), _LENGTH)
    rng = np.random.default_rng(seed)
    while True:
        rows = rng.integers(0, len(windows["tokens"]), _BATCH)
        yield {key: part[rows] for key, part in windows.items()}


def _step_of(objective: Objective, optimizer: optax.GradientTransformation) -> Any:
    @jax.jit
    def step(variables: Any, state: Any, batch: Any) -> tuple[Any, Any]:
        gradients = jax.grad(lambda v: objective.loss(v, batch, jax.random.key(0), train=True))(variables)
        updates, state = optimizer.update(gradients, state, variables)
        return optax.apply_updates(variables, updates), state

    return step


def _warmed_up(optimizer: optax.GradientTransformation) -> tuple[Variables, Any, Iterator[Any]]:
    """(the model, the optimizer's state, the batches that follow)."""
    model, objective = _model()
    variables, batches, step = model.init(jax.random.key(0)), _batches(seed=0), _step_of(objective, optimizer)
    state = optimizer.init(variables)
    for _ in range(_WARM_UP):
        variables, state = step(variables, state, next(batches))
    return variables, state, batches


def _held(variables: Variables) -> Weights:
    return {
        name: dtypes.round_floats(np.asarray(leaf), dtypes.BFLOAT16)
        for name, leaf in trees.named_leaves(variables).items()
    }
