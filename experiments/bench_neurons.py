"""Training some neurons: the memory that the process really takes beside the compiler's report, and the time of a step.

Memory is that of processes on the CPU, one for each variant, so that none finds what another has left.
"""

import contextlib
import dataclasses
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import optax

from experiments import resident
from experiments.results import write_figures
from updcomp import methods
from updcomp.methods.neuron_budgets import Spent
from updcomp.training import Task, classification, models
from updcomp.training.data import Dataset
from updcomp.training.tasks import Epoch
from updcomp.wire.errors import BudgetError, Error

VARIANTS: dict[str, dict[str, Any]] = {
    "full": {"selection": "full"},
    "depth 0.5": {"selection": "depth", "memory": 0.5, "flops": 0.5, "microbatches": 2},
    "depth 0.25": {"selection": "depth", "memory": 0.25, "flops": 0.25, "microbatches": 4},
}
TIMED = VARIANTS | {"velocity": {"selection": "velocity", "weights": 0.2}}

_WARM = 2  # epochs in which everything is compiled
_MEASURED = 3  # epochs over which the peak is taken
_BATCHES = 8  # in each of these


@dataclasses.dataclass(frozen=True)
class Config:
    """How much is trained; neither memory nor speed depends on the data, so they are random."""

    samples: int = 5_000
    epochs: int = 2
    batch_size: int = 64
    repeats: int = 5
    image_size: int = 32
    widths: tuple[int, ...] = (16, 32, 64)  # two convolutions each


class Memory(NamedTuple):
    """Bytes of a process that trains, and what the compiler says of it."""

    before: int  # resident between two steps, once everything is compiled
    peak: int  # the most that was resident in the steps, and in choosing neurons, from then on
    peak_bytes: int  # `Spent.peak_bytes`: of it, the optimizer's state is there before as well


def run(config: Config, workdir: Path) -> dict[str, Any]:
    """Measures memory, then the time of a step of all variants in turn, and writes `bench_neurons.json`.

    Args:
      config: how much is trained.
      workdir: where the figures go.

    Returns:
      The backend; by variant `Memory`, or None where the system does not tell or no neuron fits the budget; of those
      that fit, medians of the seconds of a step, and of the seconds of choosing neurons for each of the steps.
    """
    memory = {name: _in_a_process(config, options) for name, options in VARIANTS.items()}
    times = _timed(config)
    _print(memory, times, config)
    figures = {
        "backend": jax.default_backend(),
        "memory": {name: None if found is None else found._asdict() for name, found in memory.items()},
        "step_seconds": {name: seconds for name, (seconds, _) in times.items()},
        "choosing_share": {name: share for name, (_, share) in times.items()},
    }
    write_figures(workdir, "bench_neurons", figures)
    return figures


def _print(memory: dict[str, Memory | None], times: dict[str, tuple[float, float]], config: Config) -> None:
    if not resident.tells():
        print("memory is not measured: this system does not tell it, as Linux does")
    for name in TIMED.keys() - times.keys():
        print(f"{name} does not fit: not even one neuron of this network")
    print(f"on {jax.default_backend()}; memory in processes on the CPU, MB; steps of {config.batch_size} images")
    print(f"{'resident':>9} {'peak':>7} {'rise':>7} {'to full':>8} {'compiler':>9} {'to full':>8}", end="")
    print(f" {'ms a step':>10} {'to full':>8} {'choosing':>9}")
    full = memory["full"]
    for name, (seconds, choosing) in times.items():
        shown = " " * 53
        if full and (own := memory.get(name)):
            rise, reference = own.peak - own.before, max(1, full.peak - full.before)
            shown = f"{own.before / 1e6:9.1f} {own.peak / 1e6:7.1f} {rise / 1e6:7.1f} {rise / reference:8.2f}"
            shown += f" {own.peak_bytes / 1e6:9.1f} {own.peak_bytes / full.peak_bytes:8.2f}"
        print(f"{shown} {1e3 * seconds:10.2f} {seconds / times['full'][0]:8.2f} {100 * choosing:7.1f} %  {name}")


def _timed(config: Config) -> dict[str, tuple[float, float]]:
    """Variant -> (seconds of a step, share of choosing), in turn, so that a slow moment of the machine meets all."""
    found: dict[str, list[Spent]] = {name: [] for name in TIMED}
    deployed, task = _world(config, config.samples)
    for repeat in range(config.repeats + 1):
        for name, options in TIMED.items():
            with contextlib.suppress(BudgetError):
                spent = _spent(deployed, task._replace(epochs=config.epochs), options)
                found[name] += [spent] if repeat else []  # the first time compiles
    return {
        name: (statistics.median(s.step_seconds for s in own), statistics.median(s.choosing_share for s in own))
        for name, own in found.items()
        if own
    }


def _spent(deployed: Any, task: Task, options: dict[str, Any]) -> Spent:
    return methods.neurons(**options).train(jax.random.key(0), deployed, task).spent


def _world(config: Config, samples: int) -> tuple[Any, Task]:
    """A convolutional network and images to train it on."""
    generator = np.random.default_rng(0)
    size = config.image_size
    images = generator.integers(0, 256, (samples, size, size, 3), np.uint8)
    data = jax.device_put(Dataset(images, generator.integers(0, 10, samples, np.int32)))
    model = models.vgg(stages=[(width, width) for width in config.widths], dense=(128,), batch_norm=False)
    few = jax.tree.map(lambda leaf: leaf[:8], data)  # validation is no part of what is measured
    task = Task(classification(model.apply), data, few, optax.adam, 1e-4, epochs=1, batch_size=config.batch_size)
    return model.init(jax.random.key(0), few.images), task


def _in_a_process(config: Config, options: dict[str, Any]) -> Memory | None:
    """The memory of a variant; None where the system does not tell, or the variant does not fit."""
    root = str(Path(__file__).parents[1])
    path = os.pathsep.join([root, *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = {**os.environ, **resident.ALLOCATOR, "JAX_PLATFORMS": "cpu", "PYTHONPATH": path}
    command = [sys.executable, "-m", "experiments.bench_neurons", json.dumps([dataclasses.asdict(config), options])]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise Error(f"bench_neurons: {options}: its process failed: {done.stderr.strip()[-1000:]}")
    found = json.loads(done.stdout.splitlines()[-1])
    return None if found is None else Memory(**found)


def _memory(config: Config, options: dict[str, Any]) -> Memory | None:
    """What this process takes."""
    found: list[int] = []

    def watch(epoch: Epoch) -> None:
        if epoch.number == _WARM:
            found.append(resident.restart())
        elif epoch.number == _WARM + _MEASURED:
            found.append(resident.peak())

    if not resident.tells():
        return None
    deployed, task = _world(config, _BATCHES * config.batch_size)
    task = task._replace(epochs=_WARM + _MEASURED, callback=watch)
    try:
        spent = _spent(deployed, task, {**options, "shapes": 1})
    except BudgetError:
        return None
    before, peak = found
    return Memory(before, peak, spent.peak_bytes)


if __name__ == "__main__":
    settings, options = json.loads(sys.argv[1])
    found = _memory(Config(**settings), options)
    print(json.dumps(None if found is None else found._asdict()))
