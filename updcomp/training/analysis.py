"""What the compiler says of a function: its operations, and the most memory that it holds at a time."""

from typing import Any, NamedTuple

import jax

from updcomp import convolution
from updcomp.training import batches, loop, steps
from updcomp.training.loop import Training


class Analysis(NamedTuple):
    """What the compiler says of a function."""

    flops: float  # operations; of a training, those of a batch: forward, backward and optimizer
    temporary_bytes: int  # the most that is held at a time beside arguments and results


_known: dict[Any, Analysis] = {}  # by program and shapes, as compiled functions are


def of_steps(training: Training) -> Analysis:
    """Analyses the steps of a training, and compiles them by that, so that its next epoch need not.

    Args:
      training: between two epochs.

    Returns:
      The analysis of one batch.
    """
    task, program = training.task, loop.program_of(training)
    portions = batches.epoch(task.train, task.samples, task.batch_size, key=training.key, number=0, mesh=training.mesh)
    arguments = {"portion": next(portions), **loop.arguments_of(training)}
    leaves, structure = jax.tree.flatten((training.state, arguments))
    key = program, structure, tuple((leaf.shape, leaf.dtype) for leaf in leaves)
    if key not in _known:
        *rest, _, placing = program
        whole = steps.compiled_steps.__wrapped__(*rest, 1, placing)  # loops over microbatches count once
        memory = _compiled(steps.compiled_steps(*program), training.state, **arguments)
        with convolution.native():
            operations = _compiled(whole, training.state, **arguments)
        _known[key] = Analysis(operations.flops, memory.temporary_bytes)
    return _known[key]


def of_function(function: Any, *args: Any) -> Analysis:
    """Analyses a function that is compiled by `jax.jit`; its loops count once.

    Args:
      function: takes and returns pytrees of arrays.
      *args: its arguments, or their shapes.

    Returns:
      The analysis.
    """
    memory = _compiled(jax.jit(lambda *args: function(*args)), *args)
    with convolution.native():
        operations = _compiled(jax.jit(lambda *args: function(*args)), *args)
    return Analysis(operations.flops, memory.temporary_bytes)


def _compiled(function: Any, *args: Any, **arguments: Any) -> Analysis:
    compiled = function.lower(*args, **arguments).compile()
    cost = compiled.cost_analysis() or {}
    return Analysis(float(cost.get("flops", 0.0)), int(compiled.memory_analysis().temp_size_in_bytes))
