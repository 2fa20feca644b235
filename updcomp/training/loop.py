"""The one training loop: compiled, donated epochs that train whatever a method sends.

A method says in a `Plan` how its trained leaves become a model; the loop does the rest. Plans are equal by value, and
everything else that differs between rounds, seeds and settings is an argument of the compiled functions, so that they
are compiled once.
"""

import functools
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from updcomp import partition, trees
from updcomp.training import batches, devices, objectives
from updcomp.training.checkpoints import Checkpoints
from updcomp.training.objectives import Objective
from updcomp.training.optimizers import OptimizerFactory, on_tree, with_learning_rate
from updcomp.training.plans import Frozen, Named, Plan, unwrapped, variables_of
from updcomp.training.tasks import Epoch, Task
from updcomp.trees import PyTree
from updcomp.wire.errors import NonFiniteError

SECONDS_BETWEEN_CHECKPOINTS = 60.0


class State(NamedTuple):
    """What an epoch carries on."""

    trainable: Named
    moved: Named  # the leaves that the loss moves; empty where there are none, or they stay as deployed
    optimizer: optax.OptState
    step: jax.Array  # int32 scalar: steps done
    failed_step: jax.Array  # int32 scalar: the first step with a non-finite loss, or -1
    sums: tuple[jax.Array, PyTree]  # of the loss and the metrics over the steps of the epoch
    best: tuple[Named, Named]  # trainable and moved leaves of the best epoch so far
    best_epoch: jax.Array  # int32 scalar: 0 is the start, before any step
    best_score: jax.Array  # float32 scalar
    score: jax.Array  # float32 scalar: of the last epoch


class Fitted(NamedTuple):
    """What training gives."""

    trainable: Named  # of the best epoch on the validation data; the start itself where no epoch beats it
    moved: Named
    last: Named  # trainable leaves of the last epoch
    last_moved: Named
    optimizer: optax.OptState  # of the last epoch
    score: float  # of the best epoch
    start_score: float  # of the start


class Rates(NamedTuple):
    """The learning-rate schedule of one training: dynamic arguments of the compiled steps."""

    learning_rate: Named  # float32 scalar at the start, by name of the trained leaf
    steps: jax.Array  # float32 scalar: all steps of the training


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
    """Trains a method's leaves for the task's epochs and keeps the best epoch on the validation data.

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
    steps = batches.steps_per_epoch(task.train, task.samples, task.batch_size)
    mesh = task.mesh or devices.mesh_of(frozen.deployed)
    frozen, masks = devices.place((frozen, masks), mesh)
    state = devices.place(_start(plan, task, trainable, moved or {}, frozen, optimizer_state), mesh)
    placing = None if mesh is None else jax.tree.map(lambda leaf: leaf.sharding, state)
    rate = {name: jnp.float32((rates or {}).get(name, 1.0) * task.learning_rate) for name in trainable}
    run = functools.partial(
        _compiled_steps(
            plan._replace(name=""), task.objective, task.optimizer, task.schedule, mesh, _hashable(placing)
        ),
        frozen=frozen,
        masks=masks,
        rates=Rates(rate, jnp.float32(steps * task.epochs)),
        key=key,
    )
    validation = devices.replicate(task.validation, mesh)
    validated = _compiled_validation(
        plan._replace(name="", wrap=unwrapped),
        task.objective,
        task.eval_batch_size,
        _hashable(placing and placing._replace(optimizer=())),
    )

    def validate(state: State, epoch: int) -> State:
        # Without the optimizer's state, so that methods with the same leaves share what is compiled.
        new = validated(state._replace(optimizer=()), frozen=frozen, validation=validation, epoch=np.int32(epoch))
        return new._replace(optimizer=state.optimizer)

    state = validate(state, 0)
    start_score = float(state.score)
    saved = Checkpoints(task.checkpoints / plan.name) if task.checkpoints else None
    done = 0
    if saved and (found := saved.restore_latest(state)):
        done, state = found
    last_save = time.monotonic()
    for epoch in range(done, task.epochs):
        start = time.perf_counter()
        state = state._replace(sums=jax.tree.map(jnp.zeros_like, state.sums))
        for portion in batches.epoch(task.train, task.samples, task.batch_size, key=key, number=epoch, mesh=mesh):
            state.step.block_until_ready()  # so that at most two chunks are on the device
            state = run(state, portion=portion)
        state = validate(state, epoch + 1)
        _check_finite(plan, state, task)
        if task.callback:
            loss, metrics = jax.tree.map(lambda total: np.asarray(total) / steps, state.sums)
            seconds = time.perf_counter() - start
            task.callback(Epoch(plan.name, epoch + 1, float(state.score), float(loss), seconds, metrics))
        if saved and time.monotonic() - last_save > SECONDS_BETWEEN_CHECKPOINTS:
            saved.save(epoch + 1, state)
            last_save = time.monotonic()
    return Fitted(
        trainable=state.best[0],
        moved=state.best[1],
        last=state.trainable,
        last_moved=state.moved,
        optimizer=state.optimizer,
        score=float(state.best_score),
        start_score=start_score,
    )


def _start(
    plan: Plan, task: Task, trainable: Named, moved: Named, frozen: Frozen, optimizer_state: optax.OptState | None
) -> State:
    """The state before the first step; nothing in it shares a buffer, since all of it is donated."""

    def copy(tree: PyTree) -> PyTree:
        return jax.tree.map(lambda leaf: jnp.array(leaf, copy=True), tree)

    example = batches.example(task.train, task.batch_size)
    metrics = objectives.signature(task.objective, frozen.deployed, example, train=plan.train).metrics
    if optimizer_state is None:
        optimizer_state = _optimizer(plan, task.optimizer, frozen.deployed).init(trainable)
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


def _optimizer(plan: Plan, factory: OptimizerFactory, deployed: PyTree) -> optax.GradientTransformationExtraArgs:
    """The user's optimizer on the user's tree, with a dynamic learning rate, wrapped as the method needs it."""
    inner = with_learning_rate(lambda rate: on_tree(factory(rate), deployed))
    return optax.with_extra_args_support(plan.wrap(inner))


def _check_finite(plan: Plan, state: State, task: Task) -> None:
    if (failed := int(state.failed_step)) >= 0:
        found = f"the loss or a weight is not finite at step {failed}"
        raise NonFiniteError(f"{plan.name}: {found}; lower the learning rate ({task.learning_rate})")
    if np.isnan(state.score):
        raise NonFiniteError(f"{plan.name}: the score on the validation data is NaN after {int(state.step)} steps")


def _hashable(placing: State | None) -> Any:
    """Shardings as a key of compiled functions."""
    leaves, structure = jax.tree.flatten(placing)
    return structure, tuple(leaves)


def _jit(function: Callable[..., State], placing: Any) -> Callable[..., State]:
    """Compiled, with the state donated, and placed in the end as it was in the beginning."""
    return jax.jit(function, donate_argnums=0, out_shardings=jax.tree.unflatten(*placing))


@functools.lru_cache(maxsize=128)
def _compiled_steps(
    plan: Plan,
    objective: Objective,
    factory: OptimizerFactory,
    schedule: Callable[[jax.Array], jax.Array],
    mesh: jax.sharding.Mesh | None,
    placing: Any,
) -> Callable[..., State]:
    """One step for each of a portion's batches, as one compiled function that donates its state."""

    def loss(trainable: Named, moved: Named, frozen: Frozen, batch: PyTree, key: jax.Array) -> Any:
        variables = variables_of(plan, trainable, moved, frozen)
        value, extra = objectives.loss_of(objective, variables, batch, key, train=plan.train)
        updated = trees.named_leaves(extra.updated)
        kept = {name: jnp.asarray(updated.get(name, old)).astype(old.dtype) for name, old in moved.items()}
        return value, (kept, extra.metrics)

    def step(
        i: jax.Array,
        state: State,
        frozen: Frozen,
        masks: Named | None,
        portion: batches.Portion,
        rates: Rates,
        key: jax.Array,
    ) -> State:
        rows = portion.order[i]
        batch = devices.shard_batch(jax.tree.map(lambda leaf: leaf[rows], portion.data), mesh)
        gradient = jax.value_and_grad(loss, has_aux=True)
        step_key = jax.random.fold_in(key, state.step)
        (value, (moved, metrics)), gradients = gradient(state.trainable, state.moved, frozen, batch, step_key)
        factor = schedule(state.step.astype(jnp.float32) / rates.steps)
        extra = {} if masks is None else {"mask": masks}
        updates, optimizer_state = _optimizer(plan, factory, frozen.deployed).update(
            gradients,
            state.optimizer,
            state.trainable,
            learning_rate=jax.tree.map(lambda rate: rate * factor, rates.learning_rate),
            **extra,
        )
        failed = (state.failed_step < 0) & ~jnp.isfinite(value)
        return state._replace(
            trainable=optax.apply_updates(state.trainable, updates),
            moved=moved,
            optimizer=optimizer_state,
            step=state.step + 1,
            failed_step=jnp.where(failed, state.step, state.failed_step),
            sums=jax.tree.map(lambda total, new: total + new.astype(jnp.float32), state.sums, (value, metrics)),
        )

    def steps(state: State, *, portion: batches.Portion, **rest: Any) -> State:
        return jax.lax.fori_loop(0, portion.steps, functools.partial(step, portion=portion, **rest), state)

    return _jit(steps, placing)


@functools.lru_cache(maxsize=128)
def _compiled_validation(plan: Plan, objective: Objective, batch_size: int, placing: Any) -> Callable[..., State]:
    """The end of an epoch, as one compiled function that donates its state: checks the weights and keeps the best."""

    def validate(state: State, *, frozen: Frozen, validation: PyTree, epoch: jax.Array) -> State:
        # The loss before each step cannot tell that the last one diverged.
        leaves = [leaf for leaf in jax.tree.leaves((state.trainable, state.moved)) if partition.is_floating(leaf)]
        finite = jnp.stack([jnp.array(True), *(jnp.isfinite(leaf).all() for leaf in leaves)])
        failed = (state.failed_step < 0) & ~finite.all()
        variables = variables_of(plan, state.trainable, state.moved, frozen)
        score = objectives.mean_score(objective, variables, validation, batch_size=batch_size)
        # Among epochs that are equally good the later one is better trained, but an epoch must beat the start.
        better = (score > state.best_score) | ((score == state.best_score) & (state.best_epoch > 0))
        current = (state.trainable, state.moved)
        return state._replace(
            failed_step=jnp.where(failed, state.step - 1, state.failed_step),
            best=jax.tree.map(lambda new, old: jnp.where(better, new, old), current, state.best),
            best_epoch=jnp.where(better, epoch, state.best_epoch),
            best_score=jnp.where(better, score, state.best_score),
            score=score,
        )

    return _jit(validate, placing)
