"""What a training compiles: its steps, and the end of an epoch. Both donate the state that they are given."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from updcomp import layers, partition, trees
from updcomp.training import batches, devices, objectives
from updcomp.training.objectives import Objective
from updcomp.training.optimizers import OptimizerFactory, on_tree, with_learning_rate
from updcomp.training.plans import Frozen, Named, Plan, columns_of, part_of, variables_of, with_part
from updcomp.trees import PyTree

_LOSS = 2**31  # apart from all that methods fold into or split off their keys


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


class Rates(NamedTuple):
    """The learning-rate schedule of one training: dynamic arguments of the compiled steps."""

    learning_rate: Named  # float32 scalar at the start, by name of the trained leaf
    steps: jax.Array  # float32 scalar: all steps of the training


def optimizer_of(plan: Plan, factory: OptimizerFactory, deployed: PyTree) -> optax.GradientTransformationExtraArgs:
    """The user's optimizer on the user's tree, with a dynamic learning rate, wrapped as the method needs it."""
    inner = with_learning_rate(lambda rate: on_tree(factory(rate), deployed))
    return optax.with_extra_args_support(plan.wrap(inner))


def placing_of(mesh: jax.sharding.Mesh | None, state: State) -> Any:
    """Where the state's leaves are on a mesh, as a key of compiled functions."""
    leaves, structure = jax.tree.flatten(None if mesh is None else jax.tree.map(lambda leaf: leaf.sharding, state))
    return structure, tuple(leaves)


def _jit(function: Callable[..., State], placing: Any) -> Callable[..., State]:
    """Compiled, with the state donated, and placed in the end as it was in the beginning."""
    return jax.jit(function, donate_argnums=0, out_shardings=jax.tree.unflatten(*placing))


@functools.lru_cache(maxsize=128)
def compiled_steps(
    plan: Plan,
    objective: Objective,
    factory: OptimizerFactory,
    schedule: Callable[[jax.Array], jax.Array],
    sharding: jax.sharding.NamedSharding | None,
    microbatches: int,
    placing: Any,
) -> Callable[..., State]:
    """One step for each of a portion's batches, as one compiled function that donates its state."""

    def loss(part: Named, trainable: Named, moved: Named, frozen: Frozen, batch: PyTree, key: jax.Array) -> Any:
        columns = columns_of(plan, part, frozen)
        whole = {name: leaf for name, leaf in part.items() if name not in columns}
        variables = variables_of(plan, with_part(plan, trainable, whole, frozen), moved, frozen)
        of_model = functools.partial(objectives.loss_of, objective, train=plan.train)
        value, extra = layers.evaluate(of_model, variables, columns, batch, key)
        updated = trees.named_leaves(extra.updated)
        kept = {name: jnp.asarray(updated.get(name, old)).astype(old.dtype) for name, old in moved.items()}
        return value, (kept, extra.metrics)

    gradient = _in_microbatches(jax.value_and_grad(loss, has_aux=True), microbatches)

    def step(
        i: jax.Array,
        state: State,
        frozen: Frozen,
        masks: Named | None,
        portion: batches.Portion,
        rates: Rates,
        key: jax.Array,
    ) -> State:
        batch = devices.shard_batch(portion.batch(i), sharding)
        step_key = jax.random.fold_in(jax.random.fold_in(key, _LOSS), state.step)
        part = part_of(plan, state.trainable, frozen)
        (value, (moved, metrics)), gradients = gradient(part, state.trainable, state.moved, frozen, batch, step_key)
        factor = schedule(state.step.astype(jnp.float32) / rates.steps)
        extra = {} if masks is None else {"mask": masks}
        updates, optimizer_state = optimizer_of(plan, factory, frozen.deployed).update(
            gradients,
            state.optimizer,
            part,
            learning_rate={name: rates.learning_rate[name] * factor for name in part},
            **extra,
        )
        failed = (state.failed_step < 0) & ~jnp.isfinite(value)
        return state._replace(
            trainable=with_part(plan, state.trainable, optax.apply_updates(part, updates), frozen),
            moved=moved,
            optimizer=optimizer_state,
            step=state.step + 1,
            failed_step=jnp.where(failed, state.step, state.failed_step),
            sums=jax.tree.map(lambda total, new: total + new.astype(jnp.float32), state.sums, (value, metrics)),
        )

    def steps(state: State, *, portion: batches.Portion, **rest: Any) -> State:
        return jax.lax.fori_loop(0, portion.steps, functools.partial(step, portion=portion, **rest), state)

    return _jit(steps, placing)


def _in_microbatches(gradient: Callable[..., Any], count: int) -> Callable[..., Any]:
    """The same function of (part, trainable, moved, frozen, batch, key), on `count` parts of the batch in turn.

    The values, metrics and gradients are means over the parts; statistics move part by part.
    """
    if count == 1:
        return gradient

    def in_turn(part: Named, trainable: Named, moved: Named, frozen: Frozen, batch: PyTree, key: jax.Array) -> Any:
        rows = jax.tree.map(lambda leaf: leaf.reshape(-1, count, *leaf.shape[1:]), batch)  # of each device some

        def add(i: jax.Array, carried: Any) -> Any:
            moved, total = carried
            own = jax.tree.map(lambda leaf: leaf[:, i], rows)
            (value, (moved, metrics)), new = gradient(part, trainable, moved, frozen, own, jax.random.fold_in(key, i))
            return moved, jax.tree.map(lambda old, x: old + x / count, total, ((value, metrics), new))

        own = jax.tree.map(lambda leaf: leaf[:, 0], rows)
        (value, (_, metrics)), shapes = jax.eval_shape(gradient, part, trainable, moved, frozen, own, key)
        zeros = jax.tree.map(lambda shape: jnp.zeros(shape.shape, shape.dtype), ((value, metrics), shapes))
        moved, ((value, metrics), total) = jax.lax.fori_loop(0, count, add, (moved, zeros))
        return (value, (moved, metrics)), total

    return in_turn


@functools.lru_cache(maxsize=128)
def compiled_validation(
    plan: Plan,
    objective: Objective,
    batch_size: int,
    sharding: jax.sharding.NamedSharding | None,
    placing: Any,
) -> Callable[..., State]:
    """The end of an epoch, as one compiled function that donates its state: checks the weights and keeps the best."""

    def validate(state: State, *, frozen: Frozen, validation: PyTree, epoch: jax.Array) -> State:
        # The loss before each step cannot tell that the last one diverged.
        leaves = [leaf for leaf in jax.tree.leaves((state.trainable, state.moved)) if partition.is_floating(leaf)]
        finite = jnp.stack([jnp.array(True), *(jnp.isfinite(leaf).all() for leaf in leaves)])
        failed = (state.failed_step < 0) & ~finite.all()
        variables = variables_of(plan, state.trainable, state.moved, frozen)
        score = objectives.mean_score(objective, variables, validation, batch_size=batch_size, sharding=sharding)
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
