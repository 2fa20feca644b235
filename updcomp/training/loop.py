"""The one training loop: compiled, donated epochs that train whatever a method sends.

A method says in a `Plan` how its trained leaves become a model; the loop does the rest. Everything that differs between
rounds, seeds and settings is an argument of the compiled functions, so they are compiled once per method.
"""

import functools
import time
from collections.abc import Callable, Iterator
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
CHUNK_BYTES = 2**28  # of images that come to the devices at once, where the host holds the dataset


def cross_entropy(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """The mean softmax cross-entropy of a batch, in nats."""
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


class Task(NamedTuple):
    """What a method trains on, and how."""

    apply: Apply  # (variables, images, train=) -> (logits, updated statistics)
    train: Dataset  # all training samples: on the devices (fast), or in NumPy arrays on the host, then streamed
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
    """How a method trains: static and made once, since compiled functions belong to each plan."""

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
    """The learning-rate schedule of one training: dynamic arguments of the compiled steps."""

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
    optimizer_state: optax.OptState | None = None,
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
      optimizer_state: where the optimizer's state starts, such as `Fitted.optimizer` of an earlier training with this
        plan; default fresh.

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
    rate = task.learning_rate if learning_rate is None else learning_rate
    frozen = devices.replicate(frozen, task.mesh)
    steps = functools.partial(
        _compiled_steps(plan, task.apply, task.optimizer, task.loss, task.schedule, task.augment, task.mesh),  # type: ignore[arg-type]
        frozen=frozen,
        rates=Rates(jnp.float32(rate), jnp.float32(-(-len(samples) // task.batch_size) * task.epochs)),
        key=key,
    )
    validation = devices.replicate(task.validation, task.mesh)
    validate = functools.partial(_compiled_validation(plan, task.apply), frozen=frozen, validation=validation)  # type: ignore[arg-type]
    state = devices.replicate(_start(plan, task, trainable, statistics or {}, optimizer_state), task.mesh)
    state = validate(state, epoch=np.int32(0))
    start_correct = int(state.best_correct)
    saved = Checkpoints(task.checkpoints / plan.name) if task.checkpoints else None
    done = 0
    if saved and (found := saved.restore_latest(state)):
        done, state = found
    last_save = time.monotonic()
    for epoch in range(done, task.epochs):
        for portion in _portions(task, _shuffled(key, epoch, samples, task.batch_size)):
            state.step.block_until_ready()  # so that at most two chunks are on the device
            state = steps(state, **portion)
        state = validate(state, epoch=np.int32(epoch + 1))
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


def _start(
    plan: Plan,
    task: Task,
    trainable: PyTree,
    statistics: dict[str, PyTree],
    optimizer_state: optax.OptState | None,
) -> State:
    """The state before the first step; nothing in it shares a buffer, since all of it is donated."""

    def copy(tree: PyTree) -> PyTree:
        return jax.tree.map(lambda leaf: jnp.array(leaf, copy=True), tree)

    if optimizer_state is None:
        optimizer_state = plan.wrap(with_learning_rate(task.optimizer)).init(trainable)
    return State(
        trainable=copy(trainable),
        statistics=copy(statistics),
        optimizer=copy(optimizer_state),
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


def _portions(task: Task, order: np.ndarray) -> Iterator[dict[str, Any]]:
    """An epoch as arguments of the compiled steps, whose shapes are the same whatever the number of samples.

    One portion where the images are on devices. Images on the host come chunk by chunk in the epoch's order, each
    gathered while the devices still compute on the one before.
    """
    images, labels = task.train
    size = -(-len(labels) // task.batch_size)
    if not isinstance(images, np.ndarray):
        rows = np.zeros((size, task.batch_size), np.int32)
        rows[: len(order)] = order
        yield {"train": task.train, "order": rows, "batches": np.int32(len(order))}
        return
    size = min(size, max(1, CHUNK_BYTES // (task.batch_size * images[:1].nbytes)))
    gathered = np.arange(size * task.batch_size, dtype=np.int32).reshape(size, task.batch_size)
    for start in range(0, len(order), size):
        rows = order[start : start + size]
        chunk = Dataset(*(_gather(part, rows.ravel(), gathered.size) for part in (images, np.asarray(labels))))
        yield {"train": devices.replicate(chunk, task.mesh), "order": gathered, "batches": np.int32(len(rows))}


def _gather(array: np.ndarray, rows: np.ndarray, size: int) -> np.ndarray:
    """These rows of an array, then zeros up to `size` rows."""
    out = np.zeros((size, *array.shape[1:]), array.dtype)
    np.take(array, rows, axis=0, out=out[: len(rows)], mode="clip")  # the default mode copies once more
    return out


def model_of(plan: Plan, trainable: PyTree, frozen: dict[str, PyTree], statistics: dict[str, PyTree]) -> PyTree:
    """The variables of the model that a plan makes of trained leaves, with its statistics."""
    variables = plan.assemble(trainable, frozen)
    return {**variables, **statistics} if statistics else variables


@functools.lru_cache(maxsize=128)
def _compiled_steps(
    plan: Plan,
    apply: Apply,
    factory: OptimizerFactory,
    loss: Callable[[jax.Array, jax.Array], jax.Array],
    schedule: Callable[[jax.Array], jax.Array],
    augment: Callable[[jax.Array, jax.Array], jax.Array] | None,
    mesh: jax.sharding.Mesh | None,
) -> Callable[..., State]:
    """One step for each of the first `batches` rows of `order`, as one compiled function that donates its state."""
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

    def steps(state: State, *, batches: jax.Array, **rest: Any) -> State:
        return jax.lax.fori_loop(0, batches, functools.partial(step, **rest), state)

    return jax.jit(steps, donate_argnums=0)


@functools.lru_cache(maxsize=128)
def _compiled_validation(plan: Plan, apply: Apply) -> Callable[..., State]:
    """The end of an epoch, as one compiled function that donates its state: checks the weights and keeps the best."""

    def validate(state: State, *, frozen: dict[str, PyTree], validation: Dataset, epoch: jax.Array) -> State:
        # The loss before each step cannot tell that the last one diverged.
        leaves = jax.tree.leaves((state.trainable, state.statistics))
        finite = jnp.stack([jnp.array(True), *(jnp.isfinite(leaf).all() for leaf in leaves)])
        failed = (state.failed_step < 0) & ~finite.all()
        correct = count_correct(apply, model_of(plan, state.trainable, frozen, state.statistics), validation)
        # Among epochs that are equally good the later one is better trained, but an epoch must beat the start.
        better = (correct > state.best_correct) | ((correct == state.best_correct) & (state.best_epoch > 0))
        current = (state.trainable, state.statistics)
        return state._replace(
            failed_step=jnp.where(failed, state.step - 1, state.failed_step),
            best=jax.tree.map(lambda new, old: jnp.where(better, new, old), current, state.best),
            best_epoch=jnp.where(better, epoch, state.best_epoch),
            best_correct=jnp.where(better, correct, state.best_correct),
        )

    return jax.jit(validate, donate_argnums=0)
