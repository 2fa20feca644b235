"""The score that bytes buy: every way to spend them tuned with the same effort, then measured on other seeds.

Seed 0 tries every setting of every curve in short trainings. Of a curve, those count whose validation score no smaller
update reaches; the other seeds, on which nothing is chosen, train these in full.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from experiments import compare, front_figures, front_report, runs, settings, specs
from experiments.config import anything, at_least, command, setting
from experiments.front_curves import EXAMPLE, GRIDS, OWN, TUNING, Curve, check_names, curves, key_of
from experiments.results import Results, Row
from experiments.runs import Run
from experiments.settings import REFERENCE, Cell, Key
from experiments.trainings import TrainingConfig
from experiments.worlds import Score, Worlds


@dataclasses.dataclass(frozen=True)
class FrontConfig(TrainingConfig):
    """Fronts."""

    curves: tuple[str, ...] = setting(
        tuple(GRIDS), f"ways to spend bytes that are compared, of {', '.join(GRIDS)}", later=anything
    )
    grids: tuple[str, ...] = setting(
        (),
        f"further ones, each a method at all settings to try, such as {EXAMPLE.partition('=')[2]}; options that are "
        "not named are the method's usual ones; the curves that are there try 24 settings each",
        later=anything,
    )
    rate_scale: float = setting(1.0, "multiplies the learning rates that the curves try")
    tune_epochs: int = setting(
        0, "epochs of each training that settings are chosen by; 0: a quarter of --epochs", check=at_least(0)
    )
    points: int = setting(4, "settings of each curve that are trained in full", later=anything)
    update_bytes: tuple[str, ...] = setting(
        (), "numbers of bytes at which fit_budget is measured as well, such as 300,1000", later=anything
    )
    reach: tuple[str, ...] = setting(
        (), "scores that a table gives the bytes to; if not given, at 90, 95 and 98 % of the full gain", later=anything
    )
    seeds: int = setting(3, "how many seeds are measured, beside the one that tunes", later=anything)
    schedule: str = "cosine"
    keep: str = "last"
    compact: bool = True

    def __post_init__(self) -> None:
        """Checks what needs no data.

        Raises:
          Error: a value does not fit.
        """
        super().__post_init__()
        all_curves(self)
        reached(self)


def all_curves(config: FrontConfig) -> list[Curve]:
    """What is compared, fit_budget last.

    Raises:
      Error: a value does not fit; names the flag.
    """
    found = curves(config.curves, config.grids, config.rate_scale)
    asked = settings.budgets(config)
    cells = [Cell("fit_budget", one, settings.build("--update_bytes", "fit_budget", one)) for one in asked]
    found += [Curve("fit_budget", OWN, tuple(cells), tuned=False)] if cells else []
    check_names(found)
    return found


def reached(config: FrontConfig) -> list[float]:
    """The scores that --reach names.

    Raises:
      Error: one is no number.
    """
    return specs.numbers("reach", config.reach, "numbers such as 0.94,0.95", math.isfinite)


def run(config: Any, workdir: Path, *, experiment: str, worlds: Callable[[Any], Worlds]) -> list[Row]:
    """Tunes every curve, and measures what was chosen; what is in `results.jsonl` already is not done again.

    Several runs with the same flags share the work.

    Args:
      config: what is compared: a `FrontConfig` with all that `worlds` needs.
      workdir: where everything goes.
      experiment: its name, for the rows.
      worlds: config -> the worlds of the seeds.

    Returns:
      All rows, also those of earlier starts with other curves or seeds.

    Raises:
      Error: a flag or the folder does not fit; nothing has been trained or written by then.
    """
    found, epochs = all_curves(config), config.tune_epochs or max(1, config.epochs // 4)
    results = Results(workdir, experiment, config)
    world_of = worlds(config)
    world = world_of(TUNING)
    results.claim()
    full = Cell(*REFERENCE, settings.build("--curves", *REFERENCE))
    tried = [full, *(_guarded(cell, config) for curve in found if curve.tuned for cell in curve.cells)]
    with runs.progress_bar(len(tried), "trial") as progress, runs.quiet():
        task = runs.with_progress(world.task, progress)._replace(epochs=epochs)
        run = Run(results, world._replace(task=task), TUNING, config.compact)
        compare.measure(run, tried, progress, {"tuning": True})
    trials = [row for row in results.rows if row.identity.seed == TUNING]
    chosen = [curve._replace(cells=tuple(choose(curve, trials, world.score, config.points))) for curve in found]
    cells = [full, *(_guarded(cell, config) for curve in chosen for cell in curve.cells)]
    with runs.progress_bar(len(cells) * config.seeds, "update") as progress, runs.quiet():
        for seed in range(TUNING + 1, TUNING + 1 + config.seeds):
            world = world_of(seed)
            run = Run(results, world._replace(task=runs.with_progress(world.task, progress)), seed, config.compact)
            compare.measure(run, cells, progress, {"tuning": False})
    rows = results.rows
    shown = command(experiment, config, workdir)
    tuned = [len(curve.cells) for curve in found if curve.tuned]
    told = front_report.Told(chosen, tuned, rows, world.score, reached(config), config.seeds, epochs, config.epochs)
    runs.publish(workdir, lambda: front_report.write(workdir, told, command=shown, title=world.title))
    return rows


def choose(curve: Curve, trials: Sequence[Row], score: Score, points: int) -> list[Cell]:
    """The settings of a curve that are trained in full.

    Args:
      curve: its settings.
      trials: rows of the tuning seed.
      score: that they have.
      points: at most so many.

    Returns:
      Of the settings whose validation score no smaller update reaches, some from the smallest to the largest, evenly
      by the logarithm of their bytes; all settings of a curve that is not tuned.
    """
    if not curve.tuned:
        return list(curve.cells)
    found = [(cell, _metrics(trials, (cell.method, cell.setting))) for cell in curve.cells]
    sent = [(cell, metrics) for cell, metrics in found if metrics and metrics["sent"]]
    sizes = np.log([metrics["update_bytes"] for _, metrics in sent])
    scores = score.sign * np.array([metrics[f"validation_{score.name}"] for _, metrics in sent])
    kept = front_figures.front(sizes, scores)
    if len(kept) > points:
        wanted = np.linspace(sizes[kept[0]], sizes[kept[-1]], points)
        kept = [kept[i] for i in sorted({int(np.abs(sizes[kept] - place).argmin()) for place in wanted})]
    return [sent[i][0] for i in kept]


def _metrics(rows: Sequence[Row], key: Key) -> dict[str, Any] | None:
    return next((row.metrics for row in rows if key_of(row) == key), None)


def _guarded(cell: Cell, config: FrontConfig) -> Cell:
    return cell._replace(make=runs.Guarded(cell.make, config.compact))
