"""A trainer sends every step to a worker through files, exactly; the worker verifies each: an example to start from.

The trainer takes steps of Adam on float32 weights; what travels is the bfloat16 model that workers run. At the end all
updates become one, for a worker that joins late.
"""

import dataclasses
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from experiments import sync_worker
from experiments.config import Settings, setting
from experiments.results import write_figures
from updcomp import api, trees
from updcomp.edge import files
from updcomp.wire import fingerprint
from updcomp.wire.errors import Error

PyTree = Any

_ROOT = Path(__file__).resolve().parents[1]
_BATCH = 256
_PAUSE = 0.002  # seconds between looks for an answer


@dataclasses.dataclass(frozen=True)
class Config(Settings):
    """Weights from a trainer to a worker."""

    steps: int = setting(20, "of the trainer, each of which is sent to the worker")
    hidden: int = setting(1024, "width of the four layers that weight_sync trains")
    adam_rate: float = setting(1e-5, "learning rate of the trainer's Adam")


class Sent(NamedTuple):
    """One step."""

    bytes: int  # of its update
    diff_seconds: float  # from two models to the update's bytes
    apply_seconds: float  # in the worker, both fingerprints included


def run(config: Config, workdir: Path) -> dict[str, float]:
    """Trains, sends and verifies every step; prints a line for each, and writes `weight_sync.json`.

    Args:
      config: how many steps of what.
      workdir: where the figures go; the updates are in a folder of their own within while it runs.

    Returns:
      Figure name -> value.

    Raises:
      Error: the worker ends, or has another model than the trainer.
    """
    workdir.mkdir(parents=True, exist_ok=True)
    models = _training(config)
    start = deployed = next(models)
    whole = sum(leaf.nbytes for leaf in jax.tree.leaves(start))
    updates, rows = [], []
    with tempfile.TemporaryDirectory(dir=workdir) as name:
        folder = Path(name)
        files.write_model(folder / sync_worker.START, trees.HostModel(start))
        with _worker(folder, config.steps) as worker:
            for step, new in enumerate(models, 1):
                update, sent = _send(step, deployed, new, folder, worker)
                updates.append(update)
                rows.append(sent)
                print(
                    f"step {step:4d}: {sent.bytes:11,} of {whole:,} bytes, diff {sent.diff_seconds:.3f} s, "
                    f"applied and verified {sent.apply_seconds:.3f} s",
                    flush=True,
                )
                deployed = new
    squashed = api.squash(updates, start)
    if _fingerprint(api.apply(squashed, start)) != _fingerprint(deployed):
        raise Error("squashed update: expected the trainer's last model, found another")
    print(f"all {len(updates)} steps as one: {len(squashed):,} bytes, verified")
    columns = {field: sum(getattr(row, field) for row in rows) / len(rows) for field in Sent._fields}
    figures = {
        "bytes of the model": float(whole),
        **{f"{name.replace('_', ' ')} of a step, mean": value for name, value in columns.items()},
        "bytes of all steps as one": float(len(squashed)),
    }
    write_figures(workdir, "weight_sync", figures)
    return figures


def _training(config: Config) -> Iterator[PyTree]:
    """The model at its start and after every step, as workers run it."""
    keys = jax.random.split(jax.random.key(0), 3)
    teacher, weights = (_init(key, config.hidden) for key in keys[:2])
    optimizer = optax.adam(config.adam_rate)

    def loss(weights: PyTree, inputs: jax.Array) -> jax.Array:
        return jnp.mean((_apply(weights, inputs) - _apply(teacher, inputs)) ** 2)

    @jax.jit
    def step(weights: PyTree, state: PyTree, key: jax.Array) -> tuple[PyTree, PyTree]:
        gradients = jax.grad(loss)(weights, jax.random.normal(key, (_BATCH, config.hidden)))
        with jax.numpy_dtype_promotion("standard"):  # Adam's bias correction mixes dtypes
            changes, state = optimizer.update(gradients, state, weights)
        return optax.apply_updates(weights, changes), state

    state = optimizer.init(weights)
    yield _rounded(weights)
    for number in range(config.steps):
        weights, state = step(weights, state, jax.random.fold_in(keys[2], number))
        yield _rounded(weights)


def _init(key: jax.Array, width: int) -> PyTree:
    return {
        f"layer{i}": {"kernel": jax.random.normal(part, (width, width)) / width**0.5, "bias": jnp.zeros(width)}
        for i, part in enumerate(jax.random.split(key, 4))
    }


def _apply(weights: PyTree, inputs: jax.Array) -> jax.Array:
    for layer in weights.values():
        inputs = jnp.tanh(inputs @ layer["kernel"] + layer["bias"][None])
    return inputs


def _rounded(weights: PyTree) -> PyTree:
    return jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), weights)


def _send(step: int, deployed: PyTree, new: PyTree, folder: Path, worker: subprocess.Popen[str]) -> tuple[bytes, Sent]:
    """Sends a step and waits until the worker has it."""
    jax.block_until_ready(new)
    began = time.perf_counter()
    update = api.encode(api.diff(deployed, new), deployed)
    seconds = time.perf_counter() - began
    files.write_bytes(sync_worker.update_path(folder, step), update)
    path = sync_worker.answer_path(folder, step)
    while not path.exists():
        if worker.poll() is not None and not path.exists():
            said = worker.communicate()[1].strip()
            raise Error(said or f"worker: ended with status {worker.returncode} before step {step}")
        time.sleep(_PAUSE)
    answer = json.loads(path.read_text())
    if answer["fingerprint"] != (expected := _fingerprint(new)):
        raise Error(f"worker: step {step}: expected the model {expected}, found {answer['fingerprint']}")
    return update, Sent(len(update), seconds, answer["seconds"])


def _fingerprint(model: PyTree) -> str:
    return fingerprint.of(trees.HostModel(model)).hex()


@contextmanager
def _worker(folder: Path, steps: int) -> Iterator[subprocess.Popen[str]]:
    """The worker's process; it ends with the last step, or is ended."""
    search = [str(_ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(search)}
    command = [sys.executable, "-P", "-m", "experiments.sync_worker", str(folder), str(steps)]
    with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True) as process:
        try:
            yield process
            process.wait(timeout=60)
        finally:
            process.kill()
