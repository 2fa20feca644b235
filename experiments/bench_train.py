"""Training speed of an MLP 784-512-512-10, plain, recording and masked, as ratios to PyTorch in one run."""

import dataclasses
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from updcomp import contribution
from updcomp.edge import files
from updcomp.methods import base
from updcomp.training import models
from updcomp.training.data import Dataset
from updcomp.training.loop import Plan, Task, fit
from updcomp.training.optimizers import masked

Step = Callable[[], None]


@dataclasses.dataclass(frozen=True)
class Config:
    """How much is trained per measurement; speed does not depend on the data, so they are random."""

    samples: int = 20_000
    epochs: int = 2
    batch_size: int = 128
    repeats: int = 7


def run(config: Config, workdir: Path) -> dict[str, Any]:
    """Measures all variants in turn, several times over, and writes `bench_train.json`.

    Args:
      config: how much is trained.
      workdir: where the figures go.

    Returns:
      The figures: samples/s (median), and each variant's ratio to PyTorch and to plain training.
    """
    generator = np.random.default_rng(0)
    images = generator.integers(0, 256, (config.samples, 28, 28, 1), np.uint8)
    labels = generator.integers(0, 10, config.samples, np.int32)
    variants = {f"updcomp, {name}": step for name, step in _ours(config, Dataset(images, labels)).items()}
    torch_step = _torch(config, images, labels)
    if torch_step:
        variants["PyTorch, in-memory batches"] = torch_step
    else:
        print("torch is not installed: no ratio to PyTorch is measured (pip install torch)")
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    for step in variants.values():
        step()  # compiles
    for _ in range(config.repeats):
        for name, step in variants.items():  # in turn, so that a slow moment of the machine meets all of them
            start = time.perf_counter()
            step()
            seconds[name].append(time.perf_counter() - start)
    trained = config.samples * config.epochs
    speeds = {name: trained / statistics.median(times) for name, times in seconds.items()}
    reference = speeds.get("PyTorch, in-memory batches")
    plain = speeds["updcomp, plain"]
    print(f"{'samples/s':>12} {'to PyTorch':>11} {'to plain':>9}  variant ({jax.default_backend()})")
    for name, speed in speeds.items():
        ratio = f"{speed / reference:11.2f}" if reference else f"{'-':>11}"
        print(f"{speed:12,.0f} {ratio} {speed / plain:9.2f}  {name}")
    figures = {"backend": jax.default_backend(), "samples_per_second": speeds}
    workdir.mkdir(parents=True, exist_ok=True)
    files.write_bytes(workdir / "bench_train.json", json.dumps(figures, indent=2).encode())
    return figures


def _ours(config: Config, dataset: Dataset) -> dict[str, Step]:
    model = models.mlp()
    placed = jax.device_put(dataset)
    task = Task(
        model.apply,
        train=placed,
        validation=Dataset(*(part[:256] for part in placed)),
        optimizer=optax.adam,
        learning_rate=1e-3,
        epochs=config.epochs,
        batch_size=config.batch_size,
    )
    variables = model.init(jax.random.key(0), dataset.images)
    parts = base.split(variables, aux=16)
    start = {"kernels": parts.kernels, "aux": parts.aux}
    mask = {
        "kernels": jax.tree.map(lambda leaf: jax.random.bernoulli(jax.random.key(1), 0.01, leaf.shape), parts.kernels),
        "aux": jax.tree.map(lambda _: jnp.array(True), parts.aux),
    }

    def step(plan: Plan, frozen: dict[str, Any]) -> Step:
        return lambda: jax.block_until_ready(fit(jax.random.key(0), task, plan, start, frozen).last)

    dense = base.quantised_delta(None)
    frozen = {"deployed": variables}
    return {
        "plain": step(base.plan("plain", dense, 16), frozen),
        "recording": step(base.plan("recording", dense, 16, wrap=contribution.record), frozen),
        "masked": step(base.plan("masked", dense, 16, wrap=masked), {**frozen, "mask": mask}),
        "masked, 4 bits": step(
            base.plan("rounded", base.quantised_delta(4), 16, wrap=masked), {**frozen, "mask": mask}
        ),
    }


def _torch(config: Config, images: np.ndarray, labels: np.ndarray) -> Step | None:
    try:
        import torch
    except ImportError:
        return None
    device = "cuda" if torch.cuda.is_available() else "cpu"
    pixels = torch.from_numpy(images.reshape(len(images), -1)).to(device)
    targets = torch.from_numpy(labels).long().to(device)
    layers = [torch.nn.Linear(784, 512), torch.nn.ReLU(), torch.nn.Linear(512, 512), torch.nn.ReLU()]
    model = torch.nn.Sequential(*layers, torch.nn.Linear(512, 10)).to(device)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    loss = torch.nn.CrossEntropyLoss()

    def step() -> None:
        for _ in range(config.epochs):
            order = torch.randperm(len(pixels), device=device)
            for batch in order.split(config.batch_size):
                optimizer.zero_grad()
                loss(model(pixels[batch].float() / 255), targets[batch]).backward()
                optimizer.step()
        if device == "cuda":
            torch.cuda.synchronize()

    return step
