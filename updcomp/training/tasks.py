"""What a method trains on, and how."""

from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import numpy as np
import optax

from updcomp.training import batches, devices
from updcomp.training.batches import Stream
from updcomp.training.objectives import BATCH_SIZE, Objective
from updcomp.training.optimizers import OptimizerFactory, constant
from updcomp.trees import PyTree
from updcomp.wire.errors import Error

KEPT = ("best", "last")  # epochs that an update may be of


class Epoch(NamedTuple):
    """What `Task.callback` gets after each epoch.

    Attributes:
      training: which training of the method, such as "partial-full".
      number: of the epoch, from 1.
      score: on the validation data.
      loss: mean over the epoch's steps.
      seconds: that the epoch took, compilation and validation included.
      metrics: means of `Extra.metrics` over the epoch's steps, as NumPy scalars.
    """

    training: str
    number: int
    score: float
    loss: float
    seconds: float
    metrics: Any


class Task(NamedTuple):
    """What a method trains on, and how.

    Trained leaves are float32 whatever the model's dtype: bfloat16 would round single optimizer steps away.

    Optimizers see the user's own tree: `deployed["params"]` where `deployed` is a dict of flax collections, else all of
    `deployed`. A leaf that trains stands in its own place (as float32 weights, or as the factors or coefficients that a
    method trains instead); any other leaf is `optax.MaskedNode()`. So masks and labels written for the tree fit.

    Attributes:
      objective: a loss to minimise and a score to choose by, higher is better.
      train: training data: a pytree of arrays with a common leading axis, on devices (fast) or on the host, memory maps
        included (streamed); or a `Stream`.
      validation: a pytree of such arrays; it chooses the best epoch, and whether to send; never the test data.
      optimizer: learning rate -> optax transformation, such as `optax.adam`. Compiled functions belong to it: keep one.
      learning_rate: at the start of each training; methods multiply it.
      epochs: per training; a method may train more than once.
      batch_size: rows per step; a `Stream` has its own.
      microbatches: how many equal parts of a batch are computed one after another; the gradient is their mean. That of
        a loss that is a mean over rows stays the same, with less memory for activations, and more time.
      samples: int (n,), the rows of `train` in use; None: all.
      schedule: share of the training's steps that are done, from 0 to below 1 -> factor of the learning rate, such as
        `optimizers.cosine` or `optax.cosine_decay_schedule(1.0, 1)`. Keep one, as for `optimizer`.
      keep: which epoch an update is of: "best", that of the best validation score; or "last", if that beats the start,
        which is the better one where the schedule anneals and few validation samples would choose by chance.
      axes: regular expression of whole leaf paths -> a word per axis, `in`, `out` or `stack`: how kernels are read as
        matrices; see `partition.of`. A leaf without an axis of fan-in is no kernel: `{".*/bias": "stack out"}`.
      mesh: the devices, as `devices.make_mesh()` has them; default: those of a sharded model, whose leaves stay sharded
        as they are, or one device.
      batch_axes: the axes of the mesh that every batch is split over, such as `("data", "fsdp")`; default: "data", if
        the mesh has that.
      eval_batch_size: the most rows at a time where the validation score is computed.
      checkpoints: folder of this one update, where long trainings save themselves to survive a kill. Training goes on
        from there for the same method, settings, model, key and `samples`; the data and functions are not compared.
      callback: called with an `Epoch` after each epoch.
    """

    objective: Objective
    train: PyTree | Stream
    validation: PyTree
    optimizer: OptimizerFactory
    learning_rate: float
    epochs: int
    batch_size: int = 128
    microbatches: int = 1
    samples: np.ndarray | None = None
    schedule: Callable[[jax.Array], jax.Array] = constant
    keep: str = "best"
    axes: Mapping[str, str] = MappingProxyType({})
    mesh: jax.sharding.Mesh | None = None
    batch_axes: tuple[str, ...] | None = None
    eval_batch_size: int = BATCH_SIZE
    checkpoints: str | Path | None = None
    callback: Callable[[Epoch], None] | None = None


def check(task: Task, mesh: jax.sharding.Mesh | None) -> None:
    """Checks a task before anything is compiled.

    Args:
      task: what to train on, and how.
      mesh: the task's, or that of a sharded model.

    Raises:
      Error: a field is not what it must be; names it.
    """
    objective: Any = task.objective
    if not isinstance(objective, Objective):
        found = type(objective).__name__
        raise Error(f"objective: expected updcomp.training.Objective(loss, score), found {found}")
    for what, function in (("loss", objective.loss), ("score", objective.score)):
        if function is not None and not callable(function):
            raise Error(f"{what}: expected a function, found {type(function).__name__}")
        try:
            hash(function)
        except TypeError:
            found = f"found a {type(function).__name__} that cannot be hashed"
            raise Error(f"{what}: expected a function that compiled functions can be kept by, {found}") from None
    if isinstance(task.optimizer, optax.GradientTransformation) or not callable(task.optimizer):
        found = type(task.optimizer).__name__
        advice = "give optax.adam, and Task(learning_rate=1e-3) in place of optax.adam(1e-3)"
        raise Error(f"optimizer: expected a function of the learning rate, found {found}; {advice}")
    for name in ("epochs", "batch_size", "microbatches", "eval_batch_size"):
        count: Any = getattr(task, name)
        if not isinstance(count, int | np.integer) or isinstance(count, bool) or count < 1:
            raise Error(f"{name}: expected a whole number from 1 on, found {count!r}")
    rate: Any = task.learning_rate
    if not isinstance(rate, int | float | np.number) or not 0 <= rate < np.inf:
        found = f"found {rate if isinstance(rate, int | float | np.number) else type(rate).__name__}"
        raise Error(
            f"learning_rate: expected a finite number from 0 on, {found}; give a schedule as Task(schedule=...)"
        )
    if not callable(task.schedule):
        raise Error(f"schedule: expected a function of the progress, found {type(task.schedule).__name__}")
    if task.keep not in KEPT:
        raise Error(f"keep: expected one of {', '.join(KEPT)}, found {task.keep!r}")
    _check_samples(task)
    if not batches.rows(task.validation):
        raise Error(
            "validation: expected at least one row, found none; without it no epoch and no update can be chosen"
        )
    batches.steps_per_epoch(task.train, task.samples, task.batch_size)
    _check_batch(task, mesh)


def _check_batch(task: Task, mesh: jax.sharding.Mesh | None) -> None:
    """Checks that a batch can be split as it is to be."""
    names = mesh.axis_names if mesh else ()
    if isinstance(task.batch_axes, str):
        raise Error(f"batch_axes: expected a tuple of names, found {task.batch_axes!r}; give ({task.batch_axes!r},)")
    if task.batch_axes is not None and (unknown := [name for name in task.batch_axes if name not in names]):
        raise Error(f"batch_axes: expected some of the mesh's axes, {names}, found {unknown[0]!r}")
    if task.batch_axes is not None and len(set(task.batch_axes)) < len(task.batch_axes):
        raise Error(f"batch_axes: expected each name once, found {task.batch_axes}")
    if task.mesh and task.batch_axes is None and devices.DATA not in names:
        expected = f"expected one with an axis {devices.DATA!r}, as updcomp.training.make_mesh() makes it"
        raise Error(f"mesh: {expected}, found {names}; say Task(batch_axes=...) for axes of other names")
    sharding = devices.batch_sharding(mesh, task.batch_axes)
    parts = devices.parts_of(sharding)[1]
    size = batches.rows_per_step(task.train, task.batch_size, sharding)
    if size % parts:
        raise Error(
            f"batch_size: expected a multiple of {parts} (the parts that the mesh splits it into), found {size}"
        )
    if size // parts % task.microbatches:
        found = f"found {task.microbatches} for {size // parts} rows"
        raise Error(f"microbatches: expected a divisor of the rows of a batch on each device, {found}")


def _check_samples(task: Task) -> None:
    if task.samples is None or isinstance(task.train, Stream):
        return
    samples, rows = np.asarray(task.samples), batches.rows(task.train)
    if samples.ndim != 1 or not np.issubdtype(samples.dtype, np.integer):
        advice = "; for booleans give np.flatnonzero of them" if samples.dtype == bool else ""
        raise Error(f"samples: expected integers (n,), found {samples.dtype} {samples.shape}{advice}")
    if samples.size and not (samples.min() >= 0 and samples.max() < rows):
        found = f"found {samples.min()} to {samples.max()}"
        raise Error(f"samples: expected row numbers from 0 to {rows - 1}, those of the training data, {found}")
