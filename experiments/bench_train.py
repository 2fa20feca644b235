"""Training speed as ratios to PyTorch in one run: an MLP with recording and masking, convolutions, a transformer."""

import dataclasses
import importlib.util
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
from updcomp import contribution, quantize
from updcomp.methods import base, choosing, rounding
from updcomp.partition import KERNEL, STATE
from updcomp.training import Objective, Task, classification, models
from updcomp.training.data import Dataset
from updcomp.training.language_model import language_model
from updcomp.training.loop import fit
from updcomp.training.optimizers import masked
from updcomp.training.plans import Frozen, Plan, as_trained
from updcomp.training.transformer import transformer

Step = Callable[[], None]
Name = tuple[str, str, str]  # library, model, what is done beside plain training

TRANSFORMER: dict[str, Any] = {"vocabulary": 97, "width": 128, "depth": 2, "heads": 4, "length": 64}


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
      config: how much is trained; the convolutional networks train a fiftieth and the transformer a thirtieth of it.
      workdir: where the figures go.

    Returns:
      The backend, and samples/s (median) by variant.
    """
    cases = _cases(config)
    if not importlib.util.find_spec("torch"):
        print("torch is not installed: no ratio to PyTorch is measured (pip install torch)")
    speeds: dict[Name, float] = {}
    for model, (samples, variants) in cases.items():
        for (library, what), speed in _measure(variants, samples * config.epochs, config.repeats).items():
            speeds[library, model, what] = speed
    _print(speeds)
    figures = {
        "backend": jax.default_backend(),
        "samples_per_second": {" ".join(name): speed for name, speed in speeds.items()},
    }
    write_figures(workdir, "bench_train", figures)
    return figures


def _measure(variants: dict[tuple[str, str], Step], samples: int, repeats: int) -> dict[tuple[str, str], float]:
    """Samples/s of each variant, in turn, so that a slow moment of the machine meets all of them."""
    seconds: dict[tuple[str, str], list[float]] = {name: [] for name in variants}
    for step in variants.values():
        step()  # compiles
    for _ in range(repeats):
        for name, step in variants.items():
            start = time.perf_counter()
            step()
            seconds[name].append(time.perf_counter() - start)
    return {name: samples / statistics.median(times) for name, times in seconds.items()}


def _print(speeds: dict[Name, float]) -> None:
    """The table: each variant beside PyTorch doing the same, and plain training of either library."""

    def ratio(speed: float, reference: Name) -> str:
        return f"{speed / speeds[reference]:.2f}" if reference in speeds else "-"

    print(f"on {jax.default_backend()}, in one run")
    print(f"{'samples/s':>10} {'to plain PyTorch':>17} {'to PyTorch alike':>17} {'to own plain':>13}")
    for (library, model, what), speed in speeds.items():
        references = [("PyTorch", model, "plain"), ("PyTorch", model, what), (library, model, "plain")]
        ratios = zip(references, (17, 17, 13), strict=True)
        columns = [ratio(speed, reference).rjust(width) for reference, width in ratios]
        print(f"{speed:10,.0f} {' '.join(columns)}  {library}, {model}, {what}")


def _cases(config: Config) -> dict[str, tuple[int, dict[tuple[str, str], Step]]]:
    """Model -> (samples, variants)."""
    torch: Any = importlib.import_module("experiments.bench_torch") if importlib.util.find_spec("torch") else None
    generator = np.random.default_rng(0)
    few, lines = max(config.batch_size, config.samples // 50), max(config.batch_size, config.samples // 30)
    digits, colours = (
        Dataset(generator.integers(0, 256, shape, np.uint8), generator.integers(0, 10, shape[0], np.int32))
        for shape in ((config.samples, 28, 28, 1), (few, 32, 32, 3))
    )
    text = {
        "tokens": generator.integers(0, TRANSFORMER["vocabulary"], (lines, TRANSFORMER["length"] + 1), np.uint8),
        "mask": np.ones((lines, TRANSFORMER["length"]), bool),
    }
    cases: dict[str, tuple[int, dict[tuple[str, str], Step]]] = {}
    images = {"MLP": (models.mlp(), digits), "VGG": (models.by_name("cnn", num_classes=10), colours)}
    for name, (model, data) in (images | {"ResNet20": (models.resnet(), colours)}).items():
        variables = model.init(jax.random.key(0), data.images)
        ours = _ours(config, classification(model.apply), variables, data, all_variants=name == "MLP")
        theirs = torch.images(name, data, batch_size=config.batch_size, epochs=config.epochs) if torch else {}
        cases[name] = len(data.labels), _named(ours, theirs)
    network = transformer(**TRANSFORMER)
    ours = _ours(config, language_model(network.apply), network.init(jax.random.key(0)), text, all_variants=False)
    options = {"batch_size": config.batch_size, "epochs": config.epochs}
    theirs = torch.text(text["tokens"], TRANSFORMER, **options) if torch else {}
    cases["transformer"] = lines, _named(ours, theirs)
    return cases


def _named(ours: dict[str, Step], theirs: dict[str, Step]) -> dict[tuple[str, str], Step]:
    libraries = {"updcomp": ours, "PyTorch": theirs}
    return {(library, what): step for library, steps in libraries.items() for what, step in steps.items()}


def _ours(config: Config, objective: Objective, variables: Any, data: Any, *, all_variants: bool) -> dict[str, Step]:
    """Adam at 1e-3 on all weights, and what recording, masking and rounding cost."""
    placed = jax.device_put(data)
    task = Task(
        objective,
        train=placed,
        validation=jax.tree.map(lambda leaf: leaf[:8], placed),  # PyTorch validates nothing
        optimizer=optax.adam,
        learning_rate=1e-3,
        epochs=config.epochs,
        batch_size=config.batch_size,
    )
    model = choosing.model_of(variables, task)
    kernels = model.of_role(KERNEL)
    chosen = {name: jax.random.bernoulli(jax.random.key(1), 0.01, leaf.shape) for name, leaf in kernels.items()}
    masks = {name: chosen.get(name, jnp.array(True)) for name in model.trained()}
    roundings = {name: rounding.Rounding(quantize.grid(4), mask) for name, mask in chosen.items()}

    def step(name: str, fixed: Any = None, masks: Any = None, rebuild: Any = as_trained, **options: Any) -> Step:
        plan: Plan = base.plan_of(name, model.partition, dict.fromkeys(kernels, rebuild), **options)
        frozen = Frozen(variables, fixed or {})
        start, moved = model.trained(), model.of_role(STATE)
        return lambda: jax.block_until_ready(
            fit(jax.random.key(0), task, plan, start, frozen, moved=moved, masks=masks).last
        )

    plain = {"plain": step("plain")}
    if not all_variants:
        return plain
    return plain | {
        "recording": step("recording", wrap=contribution.record),
        "masked": step("masked", masks=masks, wrap=masked),
        "masked, 4 bits": step("rounded", roundings, masks, rounding.rounded, wrap=masked),
    }
