"""What training minimises and what everything is chosen by: a loss and a score over batches of any kind."""

import functools
import inspect
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from updcomp import trees
from updcomp.training import batches, devices
from updcomp.trees import PyTree
from updcomp.wire.errors import Error

BATCH_SIZE = 256


class Mean(NamedTuple):
    """A mean that merges with others: total / weight. Padding adds nothing to either.

    >>> Mean(jnp.float32(6), jnp.float32(4)).value.item()
    1.5
    """

    total: jax.Array  # float32 scalar: the sum over all valid rows, tokens, ...
    weight: jax.Array  # float32 scalar: how many there are

    @property
    def value(self) -> jax.Array:
        """The mean itself."""
        return self.total / self.weight


class Extra(NamedTuple):
    """What a loss may return beside its value.

    Attributes:
      updated: a tree of the leaves that this batch moved, such as `{"batch_stats": ...}` of flax linen or
        `nnx.state(model, nnx.BatchStat)`: its paths are among those of the variables. No gradient trains these leaves.
      metrics: a tree of scalars; `Task.callback` gets their means over an epoch.
    """

    updated: PyTree = None
    metrics: PyTree = None


class Objective(NamedTuple):
    """A loss to minimise and a score to choose by, both pure functions of the user's own variables and batches.

    The loss is called as `loss(variables, batch, key)`, with a key that differs at every step, and returns a floating
    scalar, or (scalar, `Extra`). If it has a parameter `train`, it gets `train=True` in training and `train=False` in
    evaluation. It is also False in training where the loss moves statistics that a method leaves as deployed: the model
    then has to learn with those, and without dropout.

    The score is called as `score(variables, batch)`; higher is better. It returns a scalar, the mean over the rows of
    the batch, or a `Mean`, where rows count differently. Batches differ in their number of rows but are never padded.
    Without a score it is minus the loss.

    Compiled functions belong to an objective: keep one, rather than making it anew from lambdas for each training.

    >>> regression = Objective(lambda slope, batch, key: jnp.mean((slope * batch["x"] - batch["y"]) ** 2))
    >>> make_score(regression)(jnp.float32(2), {"x": jnp.ones(3), "y": jnp.zeros(3)})
    -4.0
    """

    loss: Callable[..., Any]
    score: Callable[[PyTree, PyTree], Any] | None = None


class Signature(NamedTuple):
    """What a loss gives beside its value."""

    updated: dict[str, jax.ShapeDtypeStruct]  # name -> each leaf that it moves
    metrics: PyTree  # of `jax.ShapeDtypeStruct`


def loss_of(
    objective: Objective, variables: PyTree, batch: PyTree, key: jax.Array, *, train: bool
) -> tuple[jax.Array, Extra]:
    """The loss of a batch in one form, whatever of the allowed ones the user's function returns.

    Args:
      objective: has the loss.
      variables: of the model.
      batch: pytree of arrays.
      key: PRNG key of the step.
      train: for losses that have this parameter.

    Returns:
      (float32 scalar, `Extra`).

    Raises:
      Error: the loss is no floating scalar, or comes with something else than `Extra`.
    """
    parameters = inspect.signature(objective.loss).parameters
    takes_train = "train" in parameters
    positional = [p for p in parameters.values() if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    if len(positional) < 3 and not any(p.kind == p.VAR_POSITIONAL for p in parameters.values()):
        raise Error(f"loss: expected parameters (variables, batch, key), found ({', '.join(parameters)})")
    found = objective.loss(variables, batch, key, **({"train": train} if takes_train else {}))
    value, extra = found if isinstance(found, tuple) and len(found) == 2 else (found, Extra())
    if not isinstance(extra, Extra):
        raise Error(
            f"loss: expected a scalar, or a scalar and an Extra, found {type(extra).__name__} beside the scalar"
        )
    metrics = jax.tree_util.tree_map_with_path(
        lambda path, metric: _scalar(
            f"metric {jax.tree_util.keystr(path, simple=True, separator='/')!r}", metric, counts=True
        ),
        extra.metrics,
    )
    updated = jax.tree.map(lambda leaf: jnp.asarray(leaf) if isinstance(leaf, int | float) else leaf, extra.updated)
    return _scalar("loss", value), Extra(updated, metrics)


def score_of(objective: Objective, variables: PyTree, batch: PyTree) -> Mean:
    """The score of a batch as a mean that merges.

    Args:
      objective: has the score; without one it is minus the loss.
      variables: of the model.
      batch: pytree of arrays with a common leading axis.

    Returns:
      A `Mean`.

    Raises:
      Error: the score is neither a scalar nor a `Mean` of scalars.
    """
    rows = jnp.float32(batches.rows(batch))
    if objective.score is None:
        return Mean(-rows * loss_of(objective, variables, batch, jax.random.key(0), train=False)[0], rows)
    found = objective.score(variables, batch)
    if isinstance(found, Mean):
        return Mean(*(_scalar(f"score: Mean.{name}", part, counts=True) for name, part in found._asdict().items()))
    return Mean(rows * _scalar("score", found), rows)


def mean_score(
    objective: Objective,
    variables: PyTree,
    data: PyTree,
    *,
    batch_size: int = BATCH_SIZE,
    sharding: jax.sharding.NamedSharding | None = None,
) -> jax.Array:
    """The score on data of any number of rows, for use inside a compiled function.

    The batches run in a loop, so that memory does not grow with the data. Nothing is padded: batches have the largest
    size up to `batch_size` that divides the rows, or the last one is smaller.

    Args:
      objective: has the score.
      variables: of the model.
      data: pytree of arrays with a common leading axis.
      batch_size: the largest number of rows at a time.
      sharding: of each batch, where its parts divide the rows.

    Returns:
      float32 scalar; NaN where there are no rows.
    """
    rows = batches.rows(data)
    size = _even_size(rows, batch_size)
    parts = devices.parts_of(sharding)[1]

    def add(mean: Mean, batch: PyTree) -> Mean:
        batch = batch if batches.rows(batch) % parts else devices.shard_batch(batch, sharding)
        return Mean(*(old + new for old, new in zip(mean, score_of(objective, variables, batch), strict=True)))

    def body(i: jax.Array, mean: Mean) -> Mean:
        return add(mean, jax.tree.map(lambda leaf: jax.lax.dynamic_slice_in_dim(leaf, i * size, size), data))

    mean = Mean(jnp.float32(0), jnp.float32(0))
    if rows >= size:
        mean = jax.lax.fori_loop(0, rows // size, body, mean)
    if rest := rows % size:
        mean = add(mean, jax.tree.map(lambda leaf: leaf[rows - rest :], data))
    return mean.value


def make_score(
    objective: Objective, *, batch_size: int = BATCH_SIZE, batch_axes: Sequence[str] | None = None
) -> Callable[[PyTree, PyTree], float]:
    """The score on data that stay on the host, of any number of rows.

    Args:
      objective: has the score.
      batch_size: rows per compiled call.
      batch_axes: of a sharded model's mesh, the axes that batches are split over, as in `Task`.

    Returns:
      A function (variables, data) -> score; NaN where there are no rows.

    >>> accuracy = Objective(loss=lambda v, b, key: 0.0, score=lambda v, b: jnp.mean(b["x"] > v, dtype=jnp.float32))
    >>> make_score(accuracy, batch_size=2)(jnp.float32(1), {"x": jnp.arange(5.0)})
    0.6000000238418579
    """
    compiled = jax.jit(functools.partial(score_of, objective))

    def score(variables: PyTree, data: PyTree) -> float:
        rows = batches.rows(data)
        size = _even_size(rows, batch_size)
        mesh = devices.mesh_of(variables)
        variables, sharding = devices.place(variables, mesh), devices.batch_sharding(mesh, batch_axes)
        slices = (
            jax.tree.map(lambda leaf, start=start: leaf[start : start + size], data) for start in range(0, rows, size)
        )
        parts = [compiled(variables, devices.put_batch(batch, sharding)) for batch in slices]
        total, weight = (sum((float(part[i]) for part in parts), start=0.0) for i in range(2))
        return float(jnp.float32(total) / jnp.float32(weight)) if weight else float("nan")

    return score


@functools.lru_cache(maxsize=256)
def _signature(objective: Objective, structure: Any, avals: tuple[Any, ...], train: bool) -> Signature:
    variables, batch = jax.tree.unflatten(structure, avals)
    key = jax.eval_shape(lambda: jax.random.key(0))
    _, extra = jax.eval_shape(functools.partial(loss_of, objective, train=train), variables, batch, key)
    return Signature(trees.named_leaves(extra.updated), extra.metrics)


def signature(objective: Objective, variables: PyTree, batch: PyTree, *, train: bool) -> Signature:
    """Finds out what a loss moves and measures, by tracing it once for each combination of shapes.

    Args:
      objective: has the loss.
      variables: of the model, or their `jax.ShapeDtypeStruct`.
      batch: a batch, or its `jax.ShapeDtypeStruct`.
      train: for losses that have this parameter.

    Returns:
      Its `Signature`.

    Raises:
      Error: the loss gives something else than it may, or moves leaves that the variables do not have in this shape.
    """
    leaves, structure = jax.tree.flatten((variables, batch))
    found = _signature(objective, structure, tuple(_aval(leaf) for leaf in leaves), train)
    names = trees.named_leaves(variables)
    for name, leaf in found.updated.items():
        if name not in names:
            raise Error(f"loss: Extra.updated has a leaf {name!r}; expected paths of the variables: {sorted(names)}")
        old = names[name]
        kinds = [jnp.issubdtype(dtype, jnp.floating) or dtype for dtype in (old.dtype, leaf.dtype)]
        if leaf.shape != old.shape or kinds[0] != kinds[1]:
            expected = f"expected {old.dtype} {old.shape}"
            raise Error(f"loss: Extra.updated leaf {name!r}: {expected}, found {leaf.dtype} {leaf.shape}")
    return found


def _aval(leaf: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype)


def _even_size(rows: int, batch_size: int) -> int:
    """The largest divisor of the rows up to `batch_size`, or `batch_size` where that is less than half of it."""
    largest = next((size for size in range(min(batch_size, rows), 0, -1) if rows % size == 0), 1)
    return largest if 2 * largest > min(batch_size, rows) else batch_size


def _scalar(what: str, value: Any, *, counts: bool = False) -> jax.Array:
    """A float32 scalar; of integers and booleans only where they may be counts."""
    array = jnp.asarray(value)
    if array.ndim or not (jnp.issubdtype(array.dtype, jnp.floating) or counts):
        advice = "return the mean over the rows, or Mean(sum, count)" if what.startswith("score") else "take its mean"
        raise Error(f"{what}: expected a floating scalar, found {array.dtype} {array.shape}; {advice}")
    return array.astype(jnp.float32)
