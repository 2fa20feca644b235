"""The one training loop: compiled, donated epochs that train whatever a method sends.

A method says in a `Plan` how its trained leaves become a model; the loop does the rest. Everything that differs between
rounds, seeds and settings is an argument of the compiled epoch, so it is compiled once per method.
"""

import functools
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from updcomp.training import devices
from updcomp.training.checkpoints import Checkpoints
from updcomp.training.data import Dataset, to_float
from updcomp.training.evaluation import count_correct
from updcomp.training.models import Apply
from updcomp.training.optimizers import OptimizerFactory, constant, with_learning_rate
from updcomp.trees import PyTree
from updcomp.wire.errors import Error, NonFiniteError

SECONDS_BETWEEN_CHECKPOINTS = 60.0


def cross_entropy(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """The mean softmax cross-entropy of a batch, in nats."""
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


class Task(NamedTuple):
    """What a method trains on, and how."""

    apply: Apply  # (variables, images, train=) -> (logits, updated statistics)
    train: Dataset  # all training samples, placed on the device once
    validation: Dataset  # chooses the best epoch; never the test set
    optimizer: OptimizerFactory  # learning rate -> optax transformation
    learning_rate: float  # at the start of each training; methods may scale it
    epochs: int  # per training; a method may train more than once
    batch_size: int = 128
    samples: np.ndarray | None = None  # int (n,): the indices of the training samples in use; None = all
    schedule: Callable[[jax.Array], jax.Array] = constant  # progress from 0 to 1 -> factor of the learning rate
    loss: Callable[[jax.Array, jax.Array], jax.Array] = cross_entropy  # (logits, labels) -> scalar
    augment: Callable[[jax.Array, jax.Array], jax.Array] | None = None  # (key, images) -> images, inside the step
    mesh: jax.sharding.Mesh | None = None  # shards every batch over its "data" axis
    checkpoints: Path | None = None  # folder of this one update, where long trainings save themselves to survive a kill


class Plan(NamedTuple):
    """How a method trains: static and made once, since a compiled epoch belongs to each plan."""

    name: str  # the method, for error messages and checkpoints
    assemble: Callable[[PyTree, dict[str, PyTree]], PyTree]  # (trainable, frozen) -> variables of the model
    wrap: Callable[[optax.GradientTransformation], optax.GradientTransformation] = lambda optimizer: optimizer
    train_statistics: bool = True  # False: normalise with the deployed statistics, which are not sent


class State(NamedTuple):
    """What an epoch carries on."""

    trainable: PyTree
    statistics: dict[str, PyTree]  # the model's batch statistics; {} where it has none
    optimizer: optax.OptState
    step: jax.Array  # int32 scalar: steps done
    failed_step: jax.Array  # int32 scalar: the first step with a non-finite loss, or -1
    best: tuple[PyTree, dict[str, PyTree]]  # trainable and statistics of the best epoch so far
    best_epoch: jax.Array  # int32 scalar: 0 is the start, before any step
    best_correct: jax.Array  # int32 scalar: validation samples that the best epoch gets right


class Fitted(NamedTuple):
    """What training gives."""

    trainable: PyTree  # of the best epoch on the validation set; the start itself where no epoch beats it
    statistics: dict[str, PyTree]
    last: PyTree  # trainable leaves of the last epoch
    last_statistics: dict[str, PyTree]
    optimizer: optax.OptState  # of the last epoch
    correct: int  # validation samples that the best epoch gets right
    start_correct: int  # validation samples that the start gets right


class Rates(NamedTuple):
    """The learning-rate schedule of one training: dynamic arguments of the compiled epoch."""

    learning_rate: jax.Array  # float32 scalar at the start
    steps: jax.Array  # float32 scalar: all steps of the training


def fit(
    key: jax.Array,
    task: Task,
    plan: Plan,
    trainable: PyTree,
    frozen: dict[str, PyTree],
    *,
    statistics: dict[str, PyTree] | None = None,
    learning_rate: float | None = None,
) -> Fitted:
    """Trains a method's leaves for the task's epochs and keeps the best epoch on the validation set.

    Args:
      key: PRNG key; decides the order of the samples and the augmentation.
      task: what to train on, and how.
      plan: how the leaves become a model.
      trainable: pytree of floating arrays, the start.
      frozen: what the plan's functions read and training leaves alone: second argument of `plan.assemble`, and extra
        arguments of the optimizer (such as `mask`).
      statistics: the model's batch statistics at the start.
      learning_rate: default: the task's.

    Returns:
      `Fitted`.

    Raises:
      NonFiniteError: a loss is NaN or infinite; says the method and the step.
      Error: there are fewer samples than a batch.
    """
    samples = np.arange(len(task.train.labels)) if task.samples is None else np.asarray(task.samples)
    if len(samples) < task.batch_size:
        expected = f"expected at most the number of training samples, {len(samples)}"
        raise Error(f"batch_size: {expected}, found {task.batch_size}; use a smaller batch or more samples")
    batches = -(-len(samples) // task.batch_size)
    rate = task.learning_rate if learning_rate is None else learning_rate
    run = functools.partial(
        _compiled_epoch(plan, task.apply, task.optimizer, task.loss, task.schedule, task.augment, task.mesh),  # type: ignore[arg-type]
        frozen=devices.replicate(frozen, task.mesh),
        train=task.train,
        validation=task.validation,
        rates=Rates(jnp.float32(rate), jnp.float32(batches * task.epochs)),
        key=key,
    )
    state = devices.replicate(_start(plan, task, trainable, statistics or {}), task.mesh)
    order = np.zeros((-(-len(task.train.labels) // task.batch_size), task.batch_size), np.int32)
    state = run(state, epoch=np.int32(0), order=order, batches=np.int32(0))
    start_correct = int(state.best_correct)
    saved = Checkpoints(task.checkpoints / plan.name) if task.checkpoints else None
    done = 0
    if saved and (found := saved.restore_latest(state)):
        done, state = found
    last_save = time.monotonic()
    for epoch in range(done, task.epochs):
        order[:batches] = _shuffled(key, epoch, samples, task.batch_size)
        state = run(state, epoch=np.int32(epoch + 1), order=order, batches=np.int32(batches))
        if (failed := int(state.failed_step)) >= 0:
            raise NonFiniteError(
                f"{plan.name}: the loss or a weight is not finite at step {failed}; lower the learning rate ({rate})"
            )
        if saved and time.monotonic() - last_save > SECONDS_BETWEEN_CHECKPOINTS:
            saved.save(epoch + 1, state)
            last_save = time.monotonic()
    best, best_statistics = state.best
    last = (state.trainable, state.statistics)
    return Fitted(best, best_statistics, *last, state.optimizer, int(state.best_correct), start_correct)


def _start(plan: Plan, task: Task, trainable: PyTree, statistics: dict[str, PyTree]) -> State:
    """The state before the first step; nothing in it shares a buffer, since all of it is donated."""

    def copy(tree: PyTree) -> PyTree:
        return jax.tree.map(lambda leaf: jnp.array(leaf, copy=True), tree)

    return State(
        trainable=copy(trainable),
        statistics=copy(statistics),
        optimizer=plan.wrap(with_learning_rate(task.optimizer)).init(trainable),
        step=jnp.int32(0),
        failed_step=jnp.int32(-1),
        best=(copy(trainable), copy(statistics)),
        best_epoch=jnp.int32(-1),
        best_correct=jnp.int32(-1),
    )


def _shuffled(key: jax.Array, epoch: int, samples: np.ndarray, batch_size: int) -> np.ndarray:
    """The samples in a new order as whole batches; the last is filled up from the start of that order."""
    generator = np.random.default_rng([*jax.random.key_data(key).tolist(), epoch])
    return np.resize(generator.permutation(samples), (-(-len(samples) // batch_size), batch_size))


def model_of(plan: Plan, trainable: PyTree, frozen: dict[str, PyTree], statistics: dict[str, PyTree]) -> PyTree:
    """The variables of the model that a plan makes of trained leaves, with its statistics."""
    variables = plan.assemble(trainable, frozen)
    return {**variables, **statistics} if statistics else variables


@functools.lru_cache(maxsize=128)
def _compiled_epoch(
    plan: Plan,
    apply: Apply,
    factory: OptimizerFactory,
    loss: Callable[[jax.Array, jax.Array], jax.Array],
    schedule: Callable[[jax.Array], jax.Array],
    augment: Callable[[jax.Array, jax.Array], jax.Array] | None,
    mesh: jax.sharding.Mesh | None,
) -> Callable[..., State]:
    """One epoch over `batches` rows of `order`, then validation, as one compiled function that donates its state."""
    optimizer = plan.wrap(with_learning_rate(factory))

    def objective(trainable: PyTree, statistics: Any, frozen: Any, images: jax.Array, labels: jax.Array) -> Any:
        variables = model_of(plan, trainable, frozen, statistics)
        logits, updated = apply(variables, images, train=plan.train_statistics)
        return loss(logits, labels), updated if plan.train_statistics else statistics

    def step(
        i: jax.Array, state: State, frozen: Any, train: Dataset, order: jax.Array, rates: Rates, key: jax.Array
    ) -> State:
        images, labels = devices.shard_batch((train.images[order[i]], train.labels[order[i]]), mesh)
        images = to_float(images)
        if augment is not None:
            images = augment(jax.random.fold_in(key, state.step), images)
        gradient = jax.value_and_grad(objective, has_aux=True)
        (value, statistics), gradients = gradient(state.trainable, state.statistics, frozen, images, labels)
        learning_rate = rates.learning_rate * schedule(state.step.astype(jnp.float32) / rates.steps)
        updates, optimizer_state = optimizer.update(
            gradients, state.optimizer, state.trainable, learning_rate=learning_rate, **frozen
        )
        failed = (state.failed_step < 0) & ~jnp.isfinite(value)
        return state._replace(
            trainable=optax.apply_updates(state.trainable, updates),
            statistics=statistics,
            optimizer=optimizer_state,
            step=state.step + 1,
            failed_step=jnp.where(failed, state.step, state.failed_step),
        )

    def epoch(
        state: State,
        *,
        frozen: dict[str, PyTree],
        train: Dataset,
        validation: Dataset,
        rates: Rates,
        key: jax.Array,
        epoch: jax.Array,
        order: jax.Array,
        batches: jax.Array,
    ) -> State:
        body = functools.partial(step, frozen=frozen, train=train, order=order, rates=rates, key=key)
        state = jax.lax.fori_loop(0, batches, body, state)
        # The loss before each step cannot tell that the last one diverged.
        leaves = jax.tree.leaves((state.trainable, state.statistics))
        finite = jnp.stack([jnp.array(True), *(jnp.isfinite(leaf).all() for leaf in leaves)])
        failed = (state.failed_step < 0) & ~finite.all()
        state = state._replace(failed_step=jnp.where(failed, state.step - 1, state.failed_step))
        variables = model_of(plan, state.trainable, frozen, state.statistics)
        correct = count_correct(apply, variables, validation)
        # Among epochs that are equally good the later one is better trained, but an epoch must beat the start.
        better = (correct > state.best_correct) | ((correct == state.best_correct) & (state.best_epoch > 0))
        current = (state.trainable, state.statistics)
        return state._replace(
            best=jax.tree.map(lambda new, old: jnp.where(better, new, old), current, state.best),
            best_epoch=jnp.where(better, epoch, state.best_epoch),
            best_correct=jnp.where(better, correct, state.best_correct),
        )

    return jax.jit(epoch, donate_argnums=0)
