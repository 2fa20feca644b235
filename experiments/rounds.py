"""Rounds on data that arrive over time: deep partial updating and all that its paper compares it with."""

import dataclasses
import functools
import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from experiments import images, rounds_report, runs, specs
from experiments.config import anything, command, setting
from experiments.results import Results, Row
from experiments.rounds_report import REFERENCE
from experiments.rounds_variants import VARIANTS, Entry, Variant, VariantsConfig, as_before, entries
from experiments.runs import Run
from experiments.trainings import check_rows, task_of
from experiments.worlds import World, Worlds
from updcomp import partition, protocol, trees
from updcomp.training import data, devices
from updcomp.trees import PyTree
from updcomp.wire.errors import Error


@dataclasses.dataclass(frozen=True)
class Config(images.ImageConfig, VariantsConfig):
    """Rounds on growing data; the usual values are the paper's for MNIST."""

    learning_rate: float = 5e-3
    epochs: int = 30
    validation_samples: int = setting(3_000, "test images that choose the best epoch, and whether an update is sent")
    seeds: int = setting(1, "how many seeds; each has its own first model and order of samples", later=anything)

    def __post_init__(self) -> None:
        """Checks what needs no data.

        Raises:
          Error: a value does not fit.
        """
        super().__post_init__()
        check_rows("initial_samples", self.initial_samples, self.batch_size)
        entries(self)


def run(config: Config, workdir: Path) -> list[Row]:
    """Runs every method over all rounds; what is in `results.jsonl` already is not done again.

    Several runs with the same flags share the work, a method and seed each.

    Args:
      config: what is compared.
      workdir: where everything goes: `updates/METHOD-seedN/round-000.upd` and so on are what travelled.

    Returns:
      All rows.

    Raises:
      Error: a flag or the folder does not fit; nothing has been trained or written by then.
    """
    results = Results(workdir, "rounds", config)
    world_of = functools.lru_cache(maxsize=1)(worlds(config))  # so that one seed's data are on the devices
    compared = [as_before(entry, results.rows) for entry in entries(config)]
    total = config.seeds * len(compared) * config.rounds
    world_of(0)  # where the data do not fit, nothing is written
    results.claim()
    with runs.progress_bar(total, "round") as progress, runs.quiet():
        work = list(itertools.product(range(config.seeds), compared))
        for seed, entry in runs.shared(work, lambda one: _file(workdir, *one).with_suffix(".lock")):
            world = world_of(seed)
            run = Run(results, world._replace(task=runs.with_progress(world.task, progress)), seed, config.compact)
            for number in _rounds(run, config, entry):
                progress.set_postfix_str("", refresh=False)  # its last epoch
                progress.set_description(f"seed {seed} {entry.name} round {number}")
                progress.update()
    rows = results.rows
    shown = command("rounds", _of_rows(config, rows), workdir)
    runs.publish(workdir, lambda: rounds_report.write(workdir, rows, command=shown))
    return rows


def worlds(config: Config) -> Worlds:
    """Worlds that stay as they are: all training samples, of which each round knows some more, and a part of the test.

    Args:
      config: the experiment's settings.

    Returns:
      seed -> `World`.

    Raises:
      Error: the dataset is not there, or too small for the settings.
    """
    loaded = images.load(config)
    train, test = loaded.source.train, loaded.source.test
    if config.validation_samples >= len(test.labels):
        expected = f"expected less than the {len(test.labels)} test images"
        raise Error(f"--validation_samples: {expected}, found {config.validation_samples}; use fewer")
    config.plan(np.arange(len(train.labels)))  # says here where there are too few

    def world(seed: int) -> World:
        counts = (config.validation_samples, len(test.labels) - config.validation_samples)
        validation, rest = data.split(test, counts, seed=seed)
        task = task_of(config, loaded.objective, train, validation)
        title = f"{config.dataset}, {config.model}"
        return World(config.dataset, config.model, title, loaded.init, None, task, rest, loaded.score)

    return world


def _rounds(run: Run, config: Config, entry: Entry) -> Iterator[int]:
    """Runs a method's rounds from where its rows end; yields the number of each round that is done."""
    variant, rows = entry.variant, _done(run, entry)
    yield from range(min(len(rows), config.rounds))
    if len(rows) >= config.rounds:
        return
    order = np.random.default_rng(run.seed).permutation(runs.samples_of(run.world.task))
    plan, sent = _plan(config, order, variant), [row.metrics["sent"] for row in rows]
    init_key, key = jax.random.split(jax.random.key(run.seed))
    init = devices.split(run.world.init(init_key), run.world.task.mesh)
    start, path = (_without_kernels(init) if variant.from_zero else init), _file(run.results.workdir, run.seed, entry)
    # Another machine may make other weights of the seed; the update files start from these.
    first = protocol.load(path, start) if rows else protocol.save(start, path)
    checkpoints = run.results.workdir / "checkpoints" / path.stem
    task = run.world.task._replace(epochs=config.epochs * variant.epochs, checkpoints=checkpoints)
    method = runs.Guarded(variant.method(config, lambda key: init, run.world.init), run.compact)
    folder = run.results.workdir / "updates" / path.stem
    results = protocol.run_rounds(key, method, first, task, plan, folder=folder, done=len(rows), compact=run.compact)
    before = run.after(rows[-1]) if rows else run.scores(first.variables)
    for number, result in enumerate(results, len(rows)):
        stage = plan(sent)
        assert stage is not None  # as there was a round
        sent.append(result.sent)
        row = run.record(
            run.identity(entry.method, entry.setting, number),
            result,
            before,
            reference=run.identity(REFERENCE, {}, number),
            samples=len(stage.samples),
            restart=stage.restart and result.sent,
        )
        runs.forget(checkpoints)
        before = run.after(row)
        yield number


def _done(run: Run, entry: Entry) -> list[Row]:
    """Its rows so far, one a round without a gap."""
    wanted = entry.method, entry.setting, run.seed
    rows = [row for row in run.results.rows if (row.identity.method, row.identity.setting, row.identity.seed) == wanted]
    where = f"{run.results.workdir}/results.jsonl"
    if [row.identity.round for row in rows] != list(range(len(rows))):
        found = ", ".join(str(row.identity.round) for row in rows)
        expected = f"expected the rounds of {entry.name} with seed {run.seed} one after another"
        raise Error(f"{where}: {expected}, found {found}; use another --workdir")
    for number, row in enumerate(rows):
        if not isinstance(sent := row.metrics.get("sent"), bool):
            expected = f"expected whether round {number} of {entry.name} with seed {run.seed} was sent"
            raise Error(f"{where}: {expected}, found {sent}; use another --workdir")
    return rows


def _file(workdir: Path, seed: int, entry: Entry) -> Path:
    """The model that a device is deployed with."""
    return workdir / "device" / f"{entry.name}-seed{seed}.safetensors"


def _of_rows(config: Config, rows: Sequence[Row]) -> Config:
    """The settings that make all these rows: several starts may have added methods, seeds and rounds."""
    variants = dict.fromkeys(row.identity.method for row in rows if row.identity.method in VARIANTS)
    others = {(i.method, specs.describe(i.setting)): i for i, _ in rows if i.method not in VARIANTS}
    return dataclasses.replace(
        config,
        methods=tuple(variants),
        others=tuple(specs.text_of(one.method, [one.setting]) for one in others.values()),
        seeds=1 + max(row.identity.seed for row in rows),
        rounds=1 + max(row.identity.round for row in rows),
    )


def _plan(config: Config, order: np.ndarray, variant: Variant) -> protocol.Plan:
    """When a variant's training starts anew, and what makes the updates between."""
    plan = config.plan(order, variant.restart)
    if variant.small is None:
        return plan
    small = runs.Guarded(variant.small(config), config.compact)

    def with_small(sent: Sequence[bool]) -> protocol.Stage | None:
        stage = plan(sent)
        return stage if stage is None or stage.restart else stage._replace(method=small)

    return with_small


def _without_kernels(variables: PyTree) -> PyTree:
    leaves = trees.named_leaves(variables)
    kernels = (leaf.name for leaf in partition.of(variables).leaves if leaf.role == partition.KERNEL)
    return trees.replace(variables, {name: jnp.zeros_like(leaves[name]) for name in kernels})
