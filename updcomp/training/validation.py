"""How well a model does on a task's validation data, by a function that is compiled once."""

import functools
from collections.abc import Callable

import jax

from updcomp.training import devices
from updcomp.training.objectives import Objective, mean_score
from updcomp.training.tasks import Task
from updcomp.trees import PyTree


@functools.lru_cache(maxsize=16)
def _compiled(
    objective: Objective, batch_size: int, sharding: jax.sharding.NamedSharding | None
) -> Callable[[PyTree, PyTree], jax.Array]:
    return jax.jit(functools.partial(mean_score, objective, batch_size=batch_size, sharding=sharding))


def score(variables: PyTree, task: Task) -> float:
    """The score of a model on a task's validation data.

    Args:
      variables: the model, as the wire makes it, so that rounding after training counts.
      task: has the validation data and the objective.

    Returns:
      Higher is better.
    """
    mesh = devices.mesh_for(task.mesh, variables)
    placed = devices.place(variables, mesh), devices.replicate(task.validation, mesh)
    sharding = devices.batch_sharding(mesh, task.batch_axes)
    return float(_compiled(task.objective, task.eval_batch_size, sharding)(*placed))
