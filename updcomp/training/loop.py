"""The one training loop: compiled, donated epochs that train whatever a method sends.

A method says in a `Plan` how its trained leaves become a model; the loop does the rest. Plans are equal by value, and
everything else that differs between rounds, seeds and settings is an argument of the compiled functions, so that they
are compiled once.
"""

import hashlib
import time
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from updcomp import processes, trees
from updcomp.training import batches, devices, objectives, steps
from updcomp.training.checkpoints import Checkpoints
from updcomp.training.plans import Frozen, Named, Plan, part_of, unwrapped
from updcomp.training.steps import Rates, State
from updcomp.training.tasks import Epoch, Task
from updcomp.trees import PyTree
from updcomp.wire import fingerprint
from updcomp.wire.errors import NonFiniteError


class Fitted(NamedTuple):
    """What training gives."""

    trainable: Named  # of the epoch that `Task.keep` chooses; the start itself where no epoch beats it
    moved: Named
    last: Named  # trainable leaves of the last epoch
    last_moved: Named
    optimizer: optax.OptState  # of the last epoch
    score: float  # of the epoch that was chosen
    start_score: float  # of the start


class Training(NamedTuple):
    """A training between two epochs. Masks and the plan's fixed parts may be replaced before the next one."""

    task: Task  # its data on the devices
    plan: Plan
    frozen: Frozen
    masks: Named | None
    rates: Rates
    key: jax.Array
    mesh: jax.sharding.Mesh | None
    sharding: jax.sharding.NamedSharding | None  # of each batch
    steps_per_epoch: int
    state: State
    epoch: int  # epochs done
    start_score: float
    step_seconds: float = float("nan")  # mean over the last epoch, validation aside


def fit(
    key: jax.Array,
    task: Task,
    plan: Plan,
    trainable: Named,
    frozen: Frozen,
    *,
    moved: Named | None = None,
    rates: dict[str, float] | None = None,
    masks: Named | None = None,
    optimizer_state: optax.OptState | None = None,
) -> Fitted:
    """Trains a method's leaves for the task's epochs and keeps the epoch that `Task.keep` chooses.

    It is `begin`, `run_epoch` for each epoch, and `fitted`, with checkpoints and the task's callback.

    Args:
      key: PRNG key; decides the order of the samples, and the keys of the loss.
      task: what to train on, and how.
      plan: how the leaves become a model.
      trainable: name -> pytree of floating arrays, the start; the names of `plan.rebuild`.
      frozen: the deployed model, and what the plan's functions read.
      moved: name -> array: where the leaves start that the loss moves.
      rates: name -> multiple of the task's learning rate; default 1.
      masks: booleans like `trainable`, or scalars for whole leaves, True = sent: for a plan whose `wrap` is `masked`.
      optimizer_state: where the optimizer's state starts, such as `Fitted.optimizer` of an earlier training with this
        plan; default fresh.

    Returns:
      `Fitted`.

    Raises:
      NonFiniteError: a loss or a weight is NaN or infinite, or a score is NaN; says the training and the step.
      Error: there are fewer samples than a batch.
    """
    training = begin(
        key, task, plan, trainable, frozen, moved=moved, rates=rates, masks=masks, optimizer_state=optimizer_state
    )
    saved = Checkpoints(Path(task.checkpoints) / folder_of(training, optimizer_state)) if task.checkpoints else None
    if saved and (found := saved.restore_latest(training.state)):
        training = training._replace(epoch=found[0], state=found[1])
    while training.epoch < task.epochs:
        training = run_epoch(training)
        if saved is None and processes.is_preempted():
            raise processes.PreemptedError(f"{plan.name}: ended after epoch {training.epoch}; nothing was saved of it")
        if saved:
            saved.save_now_and_then(training.epoch, training.state, is_last=training.epoch == task.epochs)
    return fitted(training)


def begin(
    key: jax.Array,
    task: Task,
    plan: Plan,
    trainable: Named,
    frozen: Frozen,
    *,
    moved: Named | None = None,
    rates: dict[str, float] | None = None,
    masks: Named | None = None,
    optimizer_state: optax.OptState | None = None,
) -> Training:
    """A training before its first epoch, on the task's devices, with the score of its start; arguments as in `fit`."""
    per_epoch = batches.steps_per_epoch(task.train, task.samples, task.batch_size)
    mesh = devices.mesh_for(task.mesh, frozen.deployed)
    frozen, masks = devices.place((frozen, masks), mesh)
    task = task._replace(train=batches.place(task.train, mesh), validation=devices.replicate(task.validation, mesh))
    state = devices.place(_start(plan, task, trainable, moved or {}, frozen, optimizer_state), mesh)
    rate = {name: jnp.float32((rates or {}).get(name, 1.0) * task.learning_rate) for name in trainable}
    scheduled = Rates(rate, jnp.float32(per_epoch * task.epochs))
    key, sharding = devices.replicate(key, mesh), devices.batch_sharding(mesh, task.batch_axes)
    training = Training(task, plan, frozen, masks, scheduled, key, mesh, sharding, per_epoch, state, 0, float("nan"))
    training = _validated(training)
    return training._replace(start_score=float(training.state.score))


def run_epoch(training: Training) -> Training:
    """One epoch of a training, and its score; the state of `training` is donated to it.

    Raises:
      NonFiniteError: a loss or a weight is NaN or infinite, or the score is NaN; says the training and the step.
    """
    task, plan, state = training.task, training.plan, training.state
    start = time.perf_counter()
    run = steps.compiled_steps(*program_of(training))
    state = state._replace(sums=jax.tree.map(jnp.zeros_like, state.sums))
    for portion in batches.epoch(
        task.train, task.samples, task.batch_size, key=training.key, number=training.epoch, sharding=training.sharding
    ):
        state.step.block_until_ready()  # so that at most two chunks are on the device
        state = run(state, portion=portion, **arguments_of(training))
    state.step.block_until_ready()
    seconds = (time.perf_counter() - start) / training.steps_per_epoch
    training = _validated(training._replace(state=state, epoch=training.epoch + 1, step_seconds=seconds))
    _check_finite(training)
    if task.callback:
        loss, metrics = jax.tree.map(lambda total: np.asarray(total) / training.steps_per_epoch, training.state.sums)
        seconds = time.perf_counter() - start
        told = Epoch(plan.name, training.epoch, float(training.state.score), float(loss), seconds, metrics)
        task.callback(told)
    return training


def program_of(training: Training) -> tuple[Any, ...]:
    """What compiled steps belong to: the arguments of `steps.compiled_steps`."""
    task, placing = training.task, steps.placing_of(training.mesh, training.state)
    plan = training.plan._replace(name="")
    return plan, task.objective, task.optimizer, task.schedule, training.sharding, task.microbatches, placing


def arguments_of(training: Training) -> dict[str, Any]:
    """The arguments of compiled steps beside the state and the data."""
    return {
        "frozen": training.frozen,
        "masks": training.masks,
        "rates": training.rates,
        "key": training.key,
    }


def fitted(training: Training) -> Fitted:
    """What a training gives after its last epoch."""
    state = training.state
    trainable, moved = kept(training)
    return Fitted(
        trainable=trainable,
        moved=moved,
        last=state.trainable,
        last_moved=state.moved,
        optimizer=state.optimizer,
        score=float(state.score if is_last_kept(training) else state.best_score),
        start_score=training.start_score,
    )


def is_last_kept(training: Training) -> bool:
    """Whether the epoch that `Task.keep` chooses is the one that was run last."""
    return training.task.keep == "last" and float(training.state.score) > training.start_score


def kept(training: Training) -> tuple[Named, Named]:
    """The trainable and the moved leaves of the epoch that `Task.keep` chooses; the start where none beats it."""
    state = training.state
    return (state.trainable, state.moved) if is_last_kept(training) else state.best


def folder_of(training: Training, optimizer_state: optax.OptState | None = None) -> str:
    """Where a training saves itself: its name, and a digest of all that it starts from but its data and functions.

    Args:
      training: before its first epoch.
      optimizer_state: where the optimizer's state starts; None: fresh.
    """
    task, plan, state = training.task, training.plan, training.state
    samples = None if task.samples is None else np.asarray(task.samples).tolist()
    options = (
        task.epochs,
        task.batch_size,
        task.microbatches,
        samples,
        sorted(plan.partition.chosen),
        [name for name, _ in plan.rebuild],
    )
    digest = hashlib.sha256(repr((plan.name, *options)).encode())
    start = (
        training.key,
        training.rates,
        training.frozen,
        training.masks,
        state.trainable,
        state.moved,
        optimizer_state,
    )
    for name, leaf in trees.HostModel(start).items():
        digest.update(fingerprint.leaf_digest(name, leaf))
    return f"{plan.name}-{digest.hexdigest()[:12]}"


def _validated(training: Training) -> Training:
    """The end of an epoch, without the optimizer's state: methods with the same leaves share what is compiled."""
    task, plan, state = training.task, training.plan, training.state
    scored = state._replace(optimizer=())
    validate = steps.compiled_validation(
        plan._replace(name="", wrap=unwrapped, parts=None, partition=plan.partition._replace(chosen=frozenset())),
        task.objective,
        task.eval_batch_size,
        training.sharding,
        steps.placing_of(training.mesh, scored),
    )
    frozen = training.frozen if plan.parts is None else Frozen(training.frozen.deployed, {})
    new = validate(scored, frozen=frozen, validation=task.validation, epoch=np.int32(training.epoch))
    return training._replace(state=new._replace(optimizer=state.optimizer))


def _start(
    plan: Plan, task: Task, trainable: Named, moved: Named, frozen: Frozen, optimizer_state: optax.OptState | None
) -> State:
    """The state before the first step; nothing in it shares a buffer, since all of it is donated."""

    def copy(tree: PyTree) -> PyTree:
        return jax.tree.map(lambda leaf: jnp.array(leaf, copy=True), tree)

    example = batches.example(task.train, task.batch_size)
    metrics = objectives.signature(task.objective, frozen.deployed, example, train=plan.train).metrics
    if optimizer_state is None:
        part = part_of(plan, trainable, frozen)
        optimizer_state = steps.optimizer_of(plan, task.optimizer, frozen.deployed).init(part)
    return State(
        trainable=copy(trainable),
        moved=copy(moved),
        optimizer=copy(optimizer_state),
        step=jnp.int32(0),
        failed_step=jnp.int32(-1),
        sums=(jnp.float32(0), jax.tree.map(lambda metric: jnp.zeros(metric.shape, jnp.float32), metrics)),
        best=(copy(trainable), copy(moved)),
        best_epoch=jnp.int32(-1),
        best_score=jnp.float32(-jnp.inf),
        score=jnp.float32(-jnp.inf),
    )


def _check_finite(training: Training) -> None:
    name, state = training.plan.name, training.state
    if (failed := int(state.failed_step)) >= 0:
        found = f"the loss or a weight is not finite at step {failed}"
        raise NonFiniteError(f"{name}: {found}; lower the learning rate ({training.task.learning_rate})")
    if np.isnan(state.score):
        raise NonFiniteError(f"{name}: the score on the validation data is NaN after {int(state.step)} steps")
