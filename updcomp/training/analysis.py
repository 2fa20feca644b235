"""What the compiler says of a function: its operations, and the most memory that it holds at a time."""

from collections.abc import Callable
from typing import Any

import jax

from updcomp import convolution, processes
from updcomp.training import batches, loop, steps
from updcomp.training.batches import Stream
from updcomp.training.loop import Training

_known: dict[Any, float] = {}  # by what was asked, program and shapes, as compiled functions are


def step_memory(training: Training) -> int:
    """The most bytes that a step holds at a time beside arguments and results, as the compiler reports it.

    The steps are compiled by that, so that the next epoch need not.

    Args:
      training: between two epochs.
    """
    return int(_of_steps("memory", training, lambda call: temporary_bytes(call(loop.program_of(training)))))


def step_flops(training: Training) -> float:
    """The operations of a step on a batch, as the compiler counts them: forward, backward and optimizer.

    Args:
      training: between two epochs.
    """
    *rest, _, placing = loop.program_of(training)

    def count(call: Callable[[Any], Any]) -> float:
        with convolution.native():
            return flops(call((*rest, 1, placing)))  # loops, such as that over microbatches, count once

    return _of_steps("flops", training, count)


def _of_steps(what: str, training: Training, measure: Callable[[Callable[[Any], Any]], float]) -> float:
    task, program = training.task, loop.program_of(training)
    count = training.steps_per_epoch if isinstance(task.train, Stream) else batches.rows(task.train)
    example = batches.example(task.train, task.batch_size)
    leaves, structure = jax.tree.flatten((training.state, loop.arguments_of(training), example))
    key = what, program, count, structure, tuple((leaf.shape, leaf.dtype) for leaf in leaves)

    def lowered(program_: Any) -> Any:
        portions = batches.epoch(
            task.train, task.samples, task.batch_size, key=training.key, number=0, sharding=training.sharding
        )
        arguments = {"portion": next(portions), **loop.arguments_of(training)}
        # What is traced for another purpose must not be found in the cache of what runs.
        same = program_ == program and what == "memory"
        make: Any = steps.compiled_steps if same else steps.compiled_steps.__wrapped__
        return make(*program_).lower(training.state, **arguments)

    if key not in _known:
        _known[key] = measure(lowered)
    return _known[key]


def temporary_bytes(lowered: Any) -> int:
    """The most bytes that a lowered function holds at a time beside arguments and results, on the first process."""
    found = int(lowered.compile().memory_analysis().temp_size_in_bytes)
    return processes.from_first(lambda: found)  # what is chosen by it has to be the same everywhere


def flops(lowered: Any) -> float:
    """The operations of a lowered function, on the first process; its loops count once."""
    options = {"xla_backend_optimization_level": 0}  # the code never runs
    found = float((lowered.compile(compiler_options=options).cost_analysis() or {}).get("flops", 0.0))
    return processes.from_first(lambda: found)
