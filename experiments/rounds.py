"""Rounds on data that arrive over time: deep partial updating and all that its paper compares it with.

Qu, Liu, Thiele: Deep Partial Updating (ECCV 2022, arXiv 2007.03071).
"""

import contextlib
import dataclasses
import fcntl
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from experiments import rounds_report, trainings
from experiments.results import Results, Row, command, row_of
from experiments.rounds_report import REFERENCE
from updcomp import methods, protocol, selection, trees
from updcomp.methods.base import Method, Start, check_options
from updcomp.training import data, devices, models
from updcomp.training.evaluation import make_accuracy
from updcomp.trees import PyTree
from updcomp.wire.errors import Error


@dataclasses.dataclass(frozen=True)
class Config(trainings.TrainingConfig):
    """What is compared; the defaults are the paper's for MNIST."""

    learning_rate: float = 5e-3
    epochs: int = 30
    rounds: int = 60
    initial_samples: int = 1_000
    step_samples: int = 1_000
    validation_samples: int = 3_000
    methods: tuple[str, ...] = ("fu", "dpu", "dpu_no_restart", "gcpu", "lcpu", "rpu", "pruning")
    seeds: int = 1
    ratio: float = 0.005
    bits: int = 16
    aux: int = dataclasses.field(default=16, metadata={"least": 0})
    sparse_rate: float = 1.0
    keep_moments: bool = False


class Variant(NamedTuple):
    """One line of the paper's comparison: a method, and how the protocol runs it."""

    method: Callable[[Config, Start, Start], Method]  # (config, the shared random init, a fresh one each round)
    restart: str = "never"  # see `protocol.growing`
    epochs: int = 1  # times --epochs in each training; the paper has 2 where a method trains once
    raw: bool = False  # sends every weight as it is, so that ratio and bits play no part
    from_zero: bool = False  # updates are relative to a model whose kernels are zero, which costs no bytes


def _partial(
    scores: str = "combined", *, fixed_share: float | None = None, from_init: bool = False
) -> Callable[[Config, Start, Start], Method]:
    return lambda config, same, fresh: methods.partial(
        scores=scores,
        fixed_share=fixed_share,
        start=same if from_init else None,
        keep_moments=config.keep_moments,
        sparse_rate=config.sparse_rate,
        **_wire(config),
    )


def _wire(config: Config) -> dict[str, Any]:
    return {"ratio": config.ratio, "bits": config.bits, "aux": config.aux or None}


VARIANTS = {
    "fu": Variant(lambda config, same, fresh: methods.full(start=same), epochs=2, raw=True),
    "fu_last": Variant(lambda config, same, fresh: methods.full(), epochs=2, raw=True),
    "fu_fresh": Variant(lambda config, same, fresh: methods.full(start=fresh), epochs=2, raw=True),
    "dpu": Variant(_partial(), restart="doubled"),
    "dpu_no_restart": Variant(_partial()),
    "gcpu": Variant(_partial("global")),
    "lcpu": Variant(_partial("local")),
    "rpu": Variant(lambda c, same, fresh: methods.random_mask(rate=c.sparse_rate, **_wire(c)), epochs=2),
    "pruning": Variant(_partial("global", from_init=True), restart="always", from_zero=True),
    "pruning_gradual": Variant(_partial("global", from_init=True, fixed_share=0.8), restart="always", from_zero=True),
    "iterative": Variant(_partial(fixed_share=0.2), restart="doubled"),
    "magnitude": Variant(
        lambda c, same, fresh: methods.magnitude_mask(rate=c.sparse_rate, **_wire(c)), restart="doubled", epochs=2
    ),
}


def run(config: Config, workdir: Path) -> list[Row]:
    """Runs every method over all rounds; what is in `results.jsonl` already is not done again.

    Args:
      config: what is compared.
      workdir: where everything goes: `updates/METHOD-seedN/round-000.upd` and so on are what travelled.

    Returns:
      All rows.

    Raises:
      Error: a flag or the folder does not fit.
    """
    if (unknown := sorted(set(config.methods) - set(VARIANTS))) or not config.methods:
        raise Error(f"--methods: expected some of {', '.join(VARIANTS)}, found {unknown[0] if unknown else 'none'!r}")
    source = data.load(config.dataset, data_dir=config.data_dir)
    series = _Series(config, workdir, source)
    with tqdm(total=config.seeds * len(config.methods) * config.rounds, unit="round", dynamic_ncols=True) as progress:
        for seed in range(config.seeds):
            series.start(seed)
            for name in config.methods:
                for number in series.rounds(name):
                    progress.set_description(f"seed {seed} {name} round {number}")
                    progress.update()
    rows = series.results.rows
    shown = rounds_report.write(workdir, rows, command=command("rounds", _of_rows(config, rows)))
    print(shown)
    print(f"\nReport, plot, rows and update files: {workdir}")
    return rows


class _Series:
    """The data, the first model and the results of the seed at hand."""

    def __init__(self, config: Config, workdir: Path, source: data.Source) -> None:
        self.config, self.workdir, self.source = config, workdir, source
        self.model = models.by_name(config.model, num_classes=source.num_classes)
        _check(config, source, self._fresh)
        self.results = Results(workdir, config)
        self.results.keep_settings()
        self.accuracy = make_accuracy(self.model.apply)
        (workdir / "device").mkdir(exist_ok=True)

    def start(self, seed: int) -> None:
        """The seed's order of samples, validation set and first model."""
        self.seed = seed
        self.order = np.random.default_rng(seed).permutation(len(self.source.train.labels))
        count = len(self.source.test.labels) - self.config.validation_samples
        validation, self.test = data.split(self.source.test, (self.config.validation_samples, count), seed=seed)
        self.task = trainings.task_of(self.config, self.model, self.source.train, validation)
        init_key, self.key = jax.random.split(jax.random.key(seed))
        self.init = devices.replicate(self._fresh(init_key), self.task.mesh)

    def rounds(self, name: str) -> Iterator[int]:
        """Runs a method's rounds from where its rows end; yields the number of each round that is done."""
        variant, cell = VARIANTS[name], f"{name}-seed{self.seed}"
        stages = _stages(self.config, self.order, variant.restart)
        with _alone(self.workdir / "device" / f"{cell}.lock"):
            rows = self._done(name)
            yield from range(min(len(rows), len(stages)))
            if len(rows) >= len(stages):
                return
            first = self._first(variant, cell, resumed=bool(rows))
            task = self.task._replace(
                epochs=self.config.epochs * variant.epochs, checkpoints=self.workdir / "checkpoints" / cell
            )
            method = variant.method(self.config, lambda key: self.init, self._fresh)
            folder = self.workdir / "updates" / cell
            results = protocol.run_rounds(self.key, method, first, task, stages, folder=folder, done=len(rows))
            before = (rows[-1].accuracy, rows[-1].validation_accuracy) if rows else self._accuracies(first.variables)
            for number, result in enumerate(results, len(rows)):
                row = self._row(name, number, stages[number], result, before)
                self.results.append(row)
                shutil.rmtree(self.workdir / "checkpoints" / cell, ignore_errors=True)
                before = (row.accuracy, row.validation_accuracy)
                yield number

    def _done(self, name: str) -> list[Row]:
        """A method's rows so far, one a round without a gap."""
        rows = [row for row in self.results.rows if (row.method, row.seed) == (name, self.seed)]
        if [row.round for row in rows] != list(range(len(rows))):
            found = ", ".join(str(row.round) for row in rows)
            expected = f"expected the rounds of {name} with seed {self.seed} one after another"
            raise Error(f"{self.workdir}/results.jsonl: {expected}, found {found}; use another --workdir")
        return rows

    def _first(self, variant: Variant, cell: str, *, resumed: bool) -> protocol.Copy:
        """The model that a device is deployed with."""
        first = _without_kernels(self.init) if variant.from_zero else self.init
        path = self.workdir / "device" / f"{cell}.safetensors"
        # Another machine may make other weights of the seed; the update files start from these.
        return protocol.load(path, first) if resumed else protocol.save(first, path)

    def _setting(self, name: str) -> str:
        config = self.config
        if VARIANTS[name].raw:
            return "raw"
        setting = f"ratio={config.ratio} bits={config.bits} aux={config.aux} sparse_rate={config.sparse_rate}"
        return setting + (" keep_moments" if config.keep_moments else "")

    def _row(
        self, name: str, number: int, stage: protocol.Stage, result: protocol.Round, before: tuple[float, float]
    ) -> Row:
        accuracy, validation_accuracy = self._accuracies(result.variables)
        reference = self.results.find(REFERENCE, self._setting(REFERENCE), self.seed, number)
        return row_of(
            result,
            experiment="rounds",
            dataset=self.config.dataset,
            model=self.config.model,
            method=name,
            setting=self._setting(name),
            seed=self.seed,
            round=number,
            accuracy=accuracy,
            full_update_accuracy=accuracy if name == REFERENCE else reference.accuracy if reference else None,
            deployed_accuracy=before[0],
            validation_accuracy=validation_accuracy,
            deployed_validation_accuracy=before[1],
            samples=len(stage.samples),
            restart=stage.restart and result.sent,
            trained_accuracy=accuracy if result.sent else self.accuracy(result.trained, self.test),
        )

    def _accuracies(self, variables: PyTree) -> tuple[float, float]:
        """On the test and the validation set."""
        return self.accuracy(variables, self.test), self.accuracy(variables, self.task.validation)

    def _fresh(self, key: jax.Array) -> PyTree:
        return self.model.init(key, self.source.train.images)


def _check(config: Config, source: data.Source, init: Start) -> None:
    """Finds what does not fit before anything is trained or written."""
    if config.initial_samples < config.batch_size:
        expected = f"expected at least --batch_size={config.batch_size}"
        raise Error(f"--initial_samples: {expected}, found {config.initial_samples}; use a smaller batch")
    if config.validation_samples >= (images := len(source.test.labels)):
        expected = f"expected less than the {images} test images"
        raise Error(f"--validation_samples: {expected}, found {config.validation_samples}")
    if not config.sparse_rate > 0:
        raise Error(f"--sparse_rate: expected above 0, found {config.sparse_rate}")
    selection.budget(config.ratio, 1)
    check_options(bits=config.bits, aux=config.aux or None)
    _stages(config, np.arange(len(source.train.labels)), "never")
    for name in config.methods:
        VARIANTS[name].method(config, init, init)


@contextlib.contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Holds a lock file, so that no other process runs the same rounds."""
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            expected = "expected to run it alone, found another process that does"
            raise Error(f"--workdir: {path.stem}: {expected}; wait for it, or use another folder") from None
        yield


def _of_rows(config: Config, rows: Sequence[Row]) -> Config:
    """The settings that make all these rows: several starts may have added methods, seeds and rounds."""
    return dataclasses.replace(
        config,
        methods=tuple(dict.fromkeys(row.method for row in rows)),
        seeds=1 + max(row.seed for row in rows),
        rounds=1 + max(row.round for row in rows),
    )


def _stages(config: Config, order: np.ndarray, restart: str) -> list[protocol.Stage]:
    return protocol.growing(
        order, initial=config.initial_samples, step=config.step_samples, rounds=config.rounds, restart=restart
    )


def _without_kernels(variables: PyTree) -> PyTree:
    return trees.replace(variables, {name: jnp.zeros_like(leaf) for name, leaf in trees.kernels(variables).items()})
