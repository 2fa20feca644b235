"""Ways to select the neurons that a device trains: budgets against accuracy, memory, operations, time and bytes.

Each is tried at several learning rates on seed 0; the other seeds have the one that is best on its validation data.

Quelennec et al.: Towards On-device Learning on the Edge: Ways to Select Neurons to Update under a Budget Constraint
(WACV Workshops 2024, arXiv 2312.05282).
"""

import dataclasses
import inspect
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import jax

from experiments import images, neurons_arms, neurons_report, runs, settings, specs
from experiments.config import anything, command, one_of, setting
from experiments.neurons_arms import CLASSIFIER, DIVERGED, EVERYTHING, FULL, UNFIT
from experiments.results import Identity, Results, Row
from experiments.runs import Run
from experiments.settings import Cell, Key
from experiments.specs import Scalar, Setting, describe, numbers
from updcomp.methods import METHODS
from updcomp.methods.chosen_neurons import Neurons
from updcomp.methods.neuron_budgets import Outcome
from updcomp.methods.selections import SELECTIONS
from updcomp.neurons import Cost
from updcomp.training.tasks import Task
from updcomp.trees import PyTree
from updcomp.wire.errors import BudgetError, Error, NonFiniteError
from updcomp.wire.packet import Packet

CURRENCIES = Cost._fields
SPENT = ("weights", "backward_flops", "peak_bytes", "step_seconds", "choosing_share", "compiled")
SHARES = ("weights_share", "flops_share", "memory_share")  # of training all neurons

Tries = list[Cell]
"""One way to train, at each of the rates."""

_LIMITED = [name for name, selection in SELECTIONS.items() if selection.limited]
_EXAMPLE = "--others=low_rank:rank=1,2:bits=8"


@dataclasses.dataclass(frozen=True)
class Config(images.ShiftConfig):
    """Training some neurons under a budget."""

    selections: tuple[str, ...] = setting(
        ("velocity", "random", "fixed", "gradient", "layers", "static", "depth"),
        f"ways to select neurons under a budget: some of {', '.join(_LIMITED)}; there are always all neurons, the "
        "classifier, and the full update of every leaf",
        later=anything,
    )
    budgets: tuple[str, ...] = setting(
        ("0.02", "0.05", "0.2"),
        "of each selection, in --currency: shares of what training all neurons takes, such as 0.05, or whole numbers",
        later=anything,
    )
    currency: str = setting("weights", f"of --budgets: {', '.join(CURRENCIES)}", check=one_of(CURRENCIES))
    depth_budgets: tuple[str, ...] = setting(
        ("0.5", "0.25"),
        "shares of both the memory and the FLOPs, for the selection depth, whatever --selections; empty for none",
        later=anything,
    )
    depth_microbatches: int = setting(
        1, "parts of a batch that those compute one after another, for less memory; FLOPs and steps stay the same"
    )
    rates: tuple[str, ...] = setting(
        ("1", "3", "10"),
        "multiples of the learning rate; everything is tried at each of them on seed 0, and the best one on its "
        "validation data is for the other seeds",
        later=anything,
    )
    others: tuple[str, ...] = setting(
        ("partial:ratio=0.01,0.03,0.1:bits=8:aux=8", "low_rank:rank=1,2,4,8:bits=8:aux=8"),
        "methods to compare the bytes with, written as for --settings without a rate; empty for none",
        later=anything,
    )
    seeds: int = setting(3, "how many seeds; each has its own deployed model, samples and order", later=anything)

    def __post_init__(self) -> None:
        """Checks what needs no data.

        Raises:
          Error: a value does not fit.
        """
        super().__post_init__()
        if self.batch_size % self.depth_microbatches:
            expected = f"expected a divisor of --batch_size={self.batch_size}"
            raise Error(f"--depth_microbatches: {expected}, found {self.depth_microbatches}")
        tries(self)


def tries(config: Config) -> list[Tries]:
    """All that is trained: the full update, all neurons, the classifier, the selections, the other methods.

    Args:
      config: what is compared.

    Returns:
      Each of them once, those without a budget first.

    Raises:
      Error: a name, an option or a value does not fit; names the flag.
    """
    if unknown := [name for name in config.selections if name not in _LIMITED]:
        raise Error(f"--selections: expected some of {', '.join(_LIMITED)}, found {unknown[0]!r}")
    rates = [
        float(rate) for rate in numbers("rates", config.rates, "numbers above 0", lambda rate: 0 < rate < math.inf)
    ]
    if not rates:
        raise Error("--rates: expected at least one multiple of the learning rate, found none; give --rates=1")
    wanted: list[tuple[str, Key]] = [("--rates", key) for key in (EVERYTHING, FULL, CLASSIFIER)]
    expected = "shares above 0 and up to 1.0, or whole numbers above 0"
    for budget in numbers("budgets", config.budgets, expected, lambda b: b > 0 and (isinstance(b, int) or b <= 1)):
        keys: list[Key] = [("neurons", {"selection": name, config.currency: budget}) for name in config.selections]
        wanted += [("--budgets", key) for key in keys]
    for share in numbers("depth_budgets", config.depth_budgets, "shares above 0 and up to 1", lambda b: 0 < b <= 1):
        both: Setting = {"memory": float(share), "flops": float(share), "microbatches": config.depth_microbatches}
        wanted.append(("--depth_budgets", ("neurons", {"selection": "depth", **both})))
    wanted += [("--others", key) for key in _others(config)]
    unique = {(name, describe(options)): (flag, name, options) for flag, (name, options) in wanted}
    return [[_cell(*one, rate) for rate in rates] for one in unique.values()]


def _others(config: Config) -> list[Key]:
    found = settings.keys(config.others, flag="--others", example=_EXAMPLE)
    for name, options in found:
        if name in METHODS and (rate := _rate_of(name)) in options:
            given = specs.text_of(name, [options])
            raise Error(f"--others: {name}: expected no {rate}, since --rates are tried, found one in {given!r}")
    return found


def _cell(flag: str, name: str, options: Setting, rate: float) -> Cell:
    tried = {**options, _rate_of(name): rate} if name in METHODS else options
    return Cell(name, tried, settings.build(flag, name, tried))


def _rate_of(name: str) -> str:
    """The option of a method that multiplies the learning rate of what it sends."""
    return "sparse_rate" if "sparse_rate" in inspect.signature(METHODS[name]).parameters else "rate"


def run(config: Config, workdir: Path) -> list[Row]:
    """Trains, sends, applies and measures every update; what is in `results.jsonl` already is not done again.

    Several runs with the same flags share the work.

    Args:
      config: what is compared.
      workdir: where everything goes.

    Returns:
      All rows, with the metrics of `results.Row` and `failed`: why nothing was trained, or null. Those by neurons have
      what training took, the others null: `SPENT`, as in `updcomp.methods.neuron_budgets.Spent`, and `SHARES`, of what
      training all neurons takes.

    Raises:
      Error: a flag or the folder does not fit; nothing has been trained or written by then.
    """
    wanted = tries(config)
    results = Results(workdir, "neurons", config)
    world_of = images.shifted(config)
    world = world_of(0)
    results.claim()
    total = sum(map(len, wanted)) + (config.seeds - 1) * len(wanted)
    with runs.progress_bar(total, "update") as progress, runs.quiet():
        for seed in range(config.seeds):
            world = world_of(seed) if seed else world
            run = Run(results, world._replace(task=runs.with_progress(world.task, progress)), seed, config.compact)
            _compare(run, wanted, progress)
    rows = results.rows
    shown = command("neurons", _of_rows(config, rows), workdir)
    runs.publish(workdir, lambda: neurons_report.write(workdir, rows, command=shown, title=world.title))
    return rows


def _compare(run: Run, wanted: Sequence[Tries], progress: Any) -> None:
    """All rows of a seed."""
    held = run.deployed()
    before = run.scores(held.variables)
    reference = _reference(run) if run.seed else None

    def identity_of(cell: Cell) -> Identity:
        return run.identity(cell.method, cell.setting)

    for group in (wanted[:2], wanted[2:]):  # the full trainings first: the other rows have the score of the better one
        for cell in runs.shared(_cells(run, group), lambda cell: run.lock(identity_of(cell))):
            progress.set_postfix_str("", refresh=False)  # the epoch of the one before
            progress.set_description(f"seed {run.seed} {cell.method} {describe(cell.setting)}")
            make = _Kept(cell)
            run.measure(identity_of(cell), make, held, before, reference=reference, extra=make.spent)
            progress.update()
        reference = _reference(run)


def _reference(run: Run) -> Identity:
    full = neurons_arms.reference(neurons_arms.arms(run.results.rows))
    return run.identity(full.method, full.tried)


def _cells(run: Run, wanted: Sequence[Tries]) -> list[Cell]:
    """What a seed trains: seed 0 all that is tried, the others what was best there."""
    if run.seed == 0:
        return [cell for cells in wanted for cell in cells]
    best = [(arm.method, arm.tried) for arm in neurons_arms.arms(run.results.rows)]
    return [cell for cells in wanted for cell in cells if (cell.method, cell.setting) in best]


class _Kept:
    """A method that keeps what its training took, or why it failed."""

    def __init__(self, cell: Cell) -> None:
        self._cell = cell
        self._outcome: Outcome | None = None
        self._failed: str | None = None

    def __call__(self, key: jax.Array, deployed: PyTree, task: Task) -> Packet:
        """The method's packet; an empty one where training diverges or no neuron fits the budget."""
        try:
            if not isinstance(self._cell.make, Neurons):
                return self._cell.make(key, deployed, task)
            self._outcome = self._cell.make.train(key, deployed, task)
        except (NonFiniteError, BudgetError) as error:
            self._failed = f"{DIVERGED if isinstance(error, NonFiniteError) else UNFIT}: {error}"
            return Packet({})
        return self._outcome.packet

    def spent(self) -> dict[str, Any]:
        """Metrics of the row."""
        if self._outcome is None:
            return {**dict.fromkeys((*SPENT, *SHARES)), "failed": self._failed}
        spent, full = self._outcome.spent, self._outcome.full
        shares = (spent.weights / full.weights, spent.backward_flops / full.flops, spent.peak_bytes / full.memory)
        metrics = {**{name: getattr(spent, name) for name in SPENT}, **dict(zip(SHARES, shares, strict=True))}
        known = {name: None if math.isnan(value) else value for name, value in metrics.items()}  # JSON has no NaN
        return {**known, "failed": None}


def _of_rows(config: Config, rows: Sequence[Row]) -> Config:
    """The settings that make all these rows: several starts may have added selections, budgets, rates and seeds."""
    keys = [(arm.method, arm.setting) for arm in neurons_arms.arms(rows)]
    by_neurons = [options for name, options in keys if name == "neurons"]
    budgeted = [options for options in by_neurons if options.keys() == {"selection", config.currency}]
    both = [options for options in by_neurons if options.keys() == {"selection", "memory", "flops", "microbatches"}]
    usual = [EVERYTHING, FULL, CLASSIFIER, *(("neurons", options) for options in (*budgeted, *both))]
    rest = [key for key in keys if key not in usual]
    names = dict.fromkeys(name for name, _ in rest)
    return dataclasses.replace(
        config,
        selections=_unique(options["selection"] for options in budgeted),
        budgets=_unique(options[config.currency] for options in budgeted),
        depth_budgets=_unique(options["memory"] for options in both),
        rates=_unique(f"{neurons_arms.rate_of(row):g}" for row in rows if not row.identity.seed),
        others=tuple(specs.text_of(name, [options for other, options in rest if other == name]) for name in names),
        seeds=1 + max(row.identity.seed for row in rows),
    )


def _unique(values: Iterable[Scalar]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(map(str, values)))
