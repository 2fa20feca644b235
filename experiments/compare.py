"""Every method at several settings on one change of the world: bytes against accuracy.

Each update is a file, applied by a device in a process of its own; accuracy is measured on what that process wrote.
"""

import dataclasses
import shutil
from pathlib import Path
from typing import Any

from tqdm import tqdm

from experiments import report, worlds
from experiments.results import Results, Row, command, row_of
from updcomp import protocol
from updcomp.methods import METHODS, Method
from updcomp.training import data, models
from updcomp.training.evaluation import make_accuracy
from updcomp.trees import PyTree
from updcomp.wire.errors import Error

Setting = dict[str, Any]

SETTINGS: dict[str, list[Setting]] = {
    "full": [{"bits": None}, {"bits": 8}, {"bits": 4}, {"bits": 3}, {"bits": 2}],
    "partial": [{"ratio": ratio, "bits": 2, "aux": 4} for ratio in (0.003, 0.01, 0.03)],
    "low_rank": [{"rank": rank, "bits": 2, "aux": 4} for rank in (1, 2, 4, 8)],
    "subspace": [{"rank": rank, "bits": 2} for rank in (8, 16, 24, 32, 48)],
    "random_mask": [{"ratio": ratio, "bits": 2, "aux": 4} for ratio in (0.003, 0.01, 0.03)],
    "magnitude_mask": [{"ratio": ratio, "bits": 2, "aux": 4} for ratio in (0.003, 0.01, 0.03)],
}
REFERENCE: tuple[str, Setting] = ("full", {"bits": None})  # every other update is measured against it


@dataclasses.dataclass(frozen=True)
class Config(worlds.WorldConfig):
    """What is compared."""

    methods: tuple[str, ...] = ("full", "partial", "low_rank", "subspace", "random_mask")
    seeds: int = 3


def describe(setting: Setting) -> str:
    """A setting as it stands in tables and rows.

    >>> describe({"rank": 4, "bits": 8})
    'rank=4 bits=8'
    """
    return " ".join(f"{name}={value}" for name, value in setting.items())


def run(
    config: Config, workdir: Path, *, experiment: str = "compare", settings: dict[str, list[Setting]] = SETTINGS
) -> list[Row]:
    """Trains, sends, applies and measures every update; what is in `results.jsonl` already is not done again.

    Args:
      config: what is compared.
      workdir: where everything goes.
      experiment: its name, for the rows.
      settings: method -> the settings to try.

    Returns:
      All rows, the raw full update first.

    Raises:
      Error: a flag or the folder does not fit.
    """
    if unknown := sorted(set(config.methods) - set(settings)):
        raise Error(f"--methods: expected some of {', '.join(settings)}, found {unknown[0]!r}")
    source = data.load(config.dataset, data_dir=config.data_dir)
    bench = _Bench(config, workdir, experiment, source)
    chosen = [(name, setting) for name in config.methods for setting in settings[name]]
    cells = [REFERENCE, *(cell for cell in chosen if cell != REFERENCE)]
    with tqdm(total=config.seeds * len(cells), unit="update", dynamic_ncols=True) as progress:
        built = [(name, describe(setting), METHODS[name](**setting)) for name, setting in cells]
        for seed in range(config.seeds):
            bench.start(seed)
            for name, setting, method in built:
                progress.set_description(f"seed {seed} {name} {setting}")
                bench.measure(name, setting, method)
                progress.update()
    title = f"{config.dataset}, {config.model}, {config.shift}: accuracy against update size"
    print(report.write(workdir, bench.results.rows, command=command(experiment, config), title=title))
    print(f"\nReport, plot, rows and update files: {workdir}")
    return bench.results.rows


class _Bench:
    """The world, the deployed model and the results of the seed at hand."""

    def __init__(self, config: Config, workdir: Path, experiment: str, source: data.Source) -> None:
        self.config, self.workdir, self.experiment, self.source = config, workdir, experiment, source
        self.model = models.by_name(config.model, num_classes=source.num_classes)
        self.results = Results(workdir, config)
        self.accuracy = make_accuracy(self.model.apply)

    def start(self, seed: int) -> None:
        """Makes the seed's world and deploys its model."""
        self.seed = seed
        self.world = worlds.make(self.config, self.source, self.model, seed)
        self.results.keep_settings()
        checkpoint = self.workdir / "checkpoints" / f"deployed-{seed}"
        self.deployed: PyTree = worlds.deployed_model(self.config, self.world, self.model, seed, checkpoint.absolute())
        self.deployed_accuracy = self.accuracy(self.deployed, self.world.test)
        self.deployed_validation_accuracy = self.accuracy(self.deployed, self.world.task.validation)
        (self.workdir / "device").mkdir(exist_ok=True)
        (self.workdir / "updates").mkdir(exist_ok=True)
        self.held = protocol.save(self.deployed, self.workdir / "device" / f"deployed-{seed}.safetensors")

    def measure(self, name: str, setting: str, method: Method) -> None:
        """One row: trains, sends, applies and evaluates, unless it is there already."""
        cell = f"{name}-{setting.replace(' ', '-')}-seed{self.seed}"
        trainings = self.workdir / "checkpoints" / cell
        if self.results.find(name, setting, self.seed):
            shutil.rmtree(trainings, ignore_errors=True)
            return
        update = self.workdir / "updates" / f"{cell}.upd"
        task = self.world.task._replace(checkpoints=trainings)
        new = self.held.file.with_stem("updated")
        done = protocol.run_round(worlds.keys_of(self.seed).update, method, self.held, task, update=update, new=new)
        accuracy = self.accuracy(done.variables, self.world.test)
        reference = self.results.find(REFERENCE[0], describe(REFERENCE[1]), self.seed)
        config = self.config
        row = row_of(
            done,
            experiment=self.experiment,
            dataset=config.dataset,
            model=config.model,
            method=name,
            setting=setting,
            seed=self.seed,
            round=0,
            accuracy=accuracy,
            full_update_accuracy=reference.accuracy if reference else accuracy,
            deployed_accuracy=self.deployed_accuracy,
            validation_accuracy=self.accuracy(done.variables, task.validation),
            deployed_validation_accuracy=self.deployed_validation_accuracy,
            samples=len(task.train.labels),
            restart=False,
            trained_accuracy=accuracy if done.sent else self.accuracy(done.trained, self.world.test),
        )
        self.results.append(row)
        shutil.rmtree(trainings, ignore_errors=True)
