"""Training speed of an MLP 784-512-512-10, plain, recording and masked, as ratios to PyTorch in one run."""

import dataclasses
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.results import write_figures
from updcomp import contribution
from updcomp.methods import base
from updcomp.training import models
from updcomp.training.data import Dataset
from updcomp.training.loop import Plan, Task, fit
from updcomp.training.optimizers import masked

Step = Callable[[], None]


@dataclasses.dataclass(frozen=True)
class Config:
    """How much is trained per measurement; speed does not depend on the data, so they are random."""

    samples: int = 60_000
    epochs: int = 1
    batch_size: int = 128
    repeats: int = 7


def run(config: Config, workdir: Path) -> dict[str, Any]:
    """Measures all variants in turn, several times over, and writes `bench_train.json`.

    Args:
      config: how much is trained.
      workdir: where the figures go.

    Returns:
      The backend, and samples/s (median) by variant.
    """
    generator = np.random.default_rng(0)
    images = generator.integers(0, 256, (config.samples, 28, 28, 1), np.uint8)
    labels = generator.integers(0, 10, config.samples, np.int32)
    variants = {("updcomp", name): step for name, step in _ours(config, Dataset(images, labels)).items()}
    theirs = _theirs(config, images, labels)
    variants |= {("PyTorch", name): step for name, step in theirs.items()}
    if not theirs:
        print("torch is not installed: no ratio to PyTorch is measured (pip install torch)")
    seconds: dict[tuple[str, str], list[float]] = {name: [] for name in variants}
    for step in variants.values():
        step()  # compiles
    for _ in range(config.repeats):
        for name, step in variants.items():  # in turn, so that a slow moment of the machine meets all of them
            start = time.perf_counter()
            step()
            seconds[name].append(time.perf_counter() - start)
    trained = config.samples * config.epochs
    speeds = {name: trained / statistics.median(times) for name, times in seconds.items()}
    _print(speeds)
    figures = {
        "backend": jax.default_backend(),
        "samples_per_second": {" ".join(name): speed for name, speed in speeds.items()},
    }
    write_figures(workdir, "bench_train", figures)
    return figures


def _print(speeds: dict[tuple[str, str], float]) -> None:
    """The table: each variant beside plain PyTorch, PyTorch doing the same, and its own library's plain training."""

    def ratio(speed: float, reference: tuple[str, str]) -> str:
        return f"{speed / speeds[reference]:.2f}" if reference in speeds else "-"

    print(f"on {jax.default_backend()}, in one run")
    print(f"{'samples/s':>10} {'to plain PyTorch':>17} {'to PyTorch alike':>17} {'to own plain':>13}")
    for (library, name), speed in speeds.items():
        ratios = [("PyTorch", "plain"), ("PyTorch", name), (library, "plain")]
        columns = [ratio(speed, reference).rjust(width) for reference, width in zip(ratios, (17, 17, 13), strict=True)]
        print(f"{speed:10,.0f} {' '.join(columns)}  {library}, {name}")


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


def _theirs(config: Config, images: np.ndarray, labels: np.ndarray) -> dict[str, Step]:
    """The same training in PyTorch on in-memory batches, and what recording and masking cost it."""
    try:
        import torch
    except ImportError:
        return {}
    device = "cuda" if torch.cuda.is_available() else "cpu"
    pixels = torch.from_numpy(images.reshape(len(images), -1)).to(device)
    targets = torch.from_numpy(labels).long().to(device)

    def variant(*, record: bool = False, mask: bool = False) -> Step:
        layers = [torch.nn.Linear(784, 512), torch.nn.ReLU(), torch.nn.Linear(512, 512), torch.nn.ReLU()]
        model = torch.nn.Sequential(*layers, torch.nn.Linear(512, 10)).to(device)
        weights: list[Any] = list(model.parameters())
        optimizer = torch.optim.Adam(weights, lr=1e-3)
        loss = torch.nn.CrossEntropyLoss()
        local = [torch.zeros_like(weight) for weight in weights]
        sent = [torch.rand_like(weight) < 0.01 for weight in weights]

        def train(batch: Any) -> None:
            optimizer.zero_grad()
            loss(model(pixels[batch].float() / 255), targets[batch]).backward()
            before = [weight.detach().clone() for weight in weights] if record or mask else []
            optimizer.step()
            with torch.no_grad():
                for weight, old, contribution, kept in zip(weights, before, local, sent, strict=False):
                    if record:
                        contribution.sub_(weight.grad * (weight - old))
                    if mask:
                        weight.copy_(torch.where(kept, weight, old))

        def step() -> None:
            for _ in range(config.epochs):
                for batch in torch.randperm(len(pixels), device=device).split(config.batch_size):
                    train(batch)
            if device == "cuda":
                torch.cuda.synchronize()

        return step

    return {"plain": variant(), "recording": variant(record=True), "masked": variant(mask=True)}
