"""Every method at several settings on one change of the world: bytes against the score.

Each update is a file, applied by a device in a process of its own; the score is that of what this process wrote.
"""

import contextlib
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

from experiments import comparison_report, images, runs
from experiments.config import command
from experiments.results import Results, Row
from experiments.runs import Run
from experiments.settings import (
    DEFAULTS,
    REFERENCE,
    Cell,
    Chosen,
    ComparisonConfig,
    Factories,
    Table,
    choose,
    flags_of,
    read_file,
)
from experiments.specs import describe
from experiments.worlds import Worlds
from updcomp.methods import METHODS
from updcomp.wire.errors import Error


@dataclasses.dataclass(frozen=True)
class Config(images.ShiftConfig, ComparisonConfig):
    """What is compared."""


def run(
    config: Any,
    workdir: Path,
    *,
    experiment: str = "compare",
    worlds: Callable[[Any], Worlds] = images.shifted,
    defaults: Table = DEFAULTS,
    factories: Factories = METHODS,
) -> list[Row]:
    """Trains, sends, applies and measures every update; what is in `results.jsonl` already is not done again.

    Several runs with the same flags share the work.

    Args:
      config: what is compared: a `ComparisonConfig` with all that `worlds` needs.
      workdir: where everything goes.
      experiment: its name, for the rows.
      worlds: config -> the worlds of the seeds, of any task.
      defaults: method -> the settings to try where no flag says otherwise.
      factories: method -> its factory.

    Returns:
      All rows, the raw full update first.

    Raises:
      Error: a flag or the folder does not fit; nothing has been trained or written by then.
    """
    chosen = choose(config, defaults=defaults, factories=factories)
    results = Results(workdir, experiment, config)
    world_of = worlds(config)
    world = world_of(0)
    results.claim()
    with runs.progress_bar(config.seeds * len(chosen.cells), "update") as progress, runs.quiet():
        for seed in range(config.seeds):
            world = world_of(seed) if seed else world
            run = Run(results, world._replace(task=runs.with_progress(world.task, progress)), seed, config.compact)
            measure(run, chosen.cells, progress)
    rows = results.rows
    shown = command(experiment, _of_rows(config, results, rows, chosen, defaults), workdir)
    runs.publish(
        workdir,
        lambda: comparison_report.write(workdir, rows, world.score, command=shown, title=world.title),
    )
    return rows


def measure(run: Run, cells: Sequence[Cell], progress: Any, extra: Mapping[str, Any] = MappingProxyType({})) -> None:
    """Adds the rows of a seed that are not there yet; several runs share the work.

    Args:
      run: the seed's.
      cells: what is compared, the full update first: the other rows have its score as well.
      progress: a bar.
      extra: further metrics of every row.
    """
    held = run.deployed()
    before = run.scores(held.variables)

    def lock_of(cell: Cell) -> Path:
        return run.lock(run.identity(cell.method, cell.setting))

    def one(cell: Cell) -> None:
        progress.set_postfix_str("", refresh=False)  # the epoch of the one before
        progress.set_description(f"seed {run.seed} {cell.method} {describe(cell.setting)}")
        identity = run.identity(cell.method, cell.setting)
        run.measure(identity, cell.make, held, before, reference=run.identity(*REFERENCE), extra=lambda: extra)
        progress.update()

    with runs.alone(lock_of(cells[0]), wait=True):
        one(cells[0])
    for cell in runs.shared(cells[1:], lock_of):
        one(cell)


def _of_rows(config: Any, results: Results, rows: Sequence[Row], chosen: Chosen, defaults: Table) -> Any:
    """The settings that make all these rows: several starts may have added methods, settings and seeds."""
    path, from_file = results.settings["settings_file"], chosen.from_file
    if path and not config.settings_file:
        with contextlib.suppress(Error):  # an earlier start's, which need not be there any more
            from_file = read_file(path)[1]
    compared = list({runs.file_name(i._replace(seed=0)): (i.method, i.setting) for i, _ in rows}.values())
    return dataclasses.replace(
        config,
        seeds=1 + max(row.identity.seed for row in rows),
        settings_file=path,
        **flags_of(compared, from_file, defaults),
    )
