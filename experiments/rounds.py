"""Rounds on data that arrive over time: deep partial updating and all that its paper compares it with.

Qu, Liu, Thiele: Deep Partial Updating (ECCV 2022, arXiv 2007.03071).
"""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments import images, rounds_report, runs
from experiments.config import above_zero, anything, at_least, command, one_of, setting
from experiments.results import Results, Row
from experiments.rounds_report import REFERENCE
from experiments.runs import Run
from experiments.specs import Setting
from experiments.trainings import TrainingConfig, check_rows, task_of
from experiments.worlds import World, Worlds
from updcomp import methods, partition, protocol, trees
from updcomp.methods import Method
from updcomp.training import data, devices
from updcomp.trees import PyTree
from updcomp.wire.errors import Error

Start = Callable[[jax.Array], PyTree]  # PRNG key -> the model that training starts from


@dataclasses.dataclass(frozen=True)
class Config(images.ImageConfig, TrainingConfig):
    """Rounds on growing data; the usual values are the paper's for MNIST."""

    learning_rate: float = 5e-3
    epochs: int = 30
    methods: tuple[str, ...] = setting(
        ("fu", "dpu", "dpu_no_restart", "gcpu", "lcpu", "rpu", "pruning"),
        "which to compare; there are fu_last, fu_fresh, pruning_gradual, iterative and magnitude as well",
        later=anything,
    )
    rounds: int = setting(60, "how many rounds; the training set is cumulative", later=anything)
    initial_samples: int = setting(1_000, "samples of the first round")
    step_samples: int = setting(1_000, "samples that each later round adds")
    validation_samples: int = setting(3_000, "test images that choose the best epoch, and whether an update is sent")
    seeds: int = setting(1, "how many seeds; each has its own first model and order of samples", later=anything)
    ratio: float = setting(0.005, "the share of all kernels' weights that is sent", check=above_zero(most=1))
    bits: int = setting(16, "of each sent weight's delta, from 2 to 16", check=at_least(2, most=16))
    aux: int = setting(
        16,
        "bits of the deltas of biases, norms and statistics: 4, 8, 16, or 0 to send none",
        check=one_of((0, 4, 8, 16)),
    )
    sparse_rate: float = setting(1.0, "multiplies the learning rate of trainings that move the sent weights only")
    keep_moments: bool = setting(False, "the sparse training goes on with the full one's optimizer state")

    def __post_init__(self) -> None:
        """Checks what needs no data.

        Raises:
          Error: a value does not fit.
        """
        super().__post_init__()
        check_rows("initial_samples", self.initial_samples, self.batch_size)
        if (unknown := sorted(set(self.methods) - set(VARIANTS))) or not self.methods:
            found = repr(unknown[0]) if unknown else "none"
            raise Error(f"--methods: expected some of {', '.join(VARIANTS)}, found {found}")


class Variant(NamedTuple):
    """One line of the paper's comparison: a method, and how the protocol runs it."""

    method: Callable[[Config, Start, Start], Method]  # (config, the shared random init, a fresh one each round)
    restart: str = "never"  # see `growing`
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
    world_of = worlds(config)
    total = config.seeds * len(config.methods) * config.rounds
    world = world_of(0)
    results.claim()
    with runs.progress_bar(total, "round") as progress, runs.quiet():
        for seed in range(config.seeds):
            world = world_of(seed) if seed else world
            run = Run(results, world._replace(task=runs.with_progress(world.task, progress)), seed, config.compact)
            locks = {name: _file(run, name).with_suffix(".lock") for name in config.methods}
            for name in runs.shared(config.methods, locks.__getitem__):
                for number in _rounds(run, config, name):
                    progress.set_postfix_str("", refresh=False)  # its last epoch
                    progress.set_description(f"seed {seed} {name} round {number}")
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
    _stages(config, np.arange(len(train.labels)), "never")

    def world(seed: int) -> World:
        counts = (config.validation_samples, len(test.labels) - config.validation_samples)
        validation, rest = data.split(test, counts, seed=seed)
        task = task_of(config, loaded.objective, train, validation)
        title = f"{config.dataset}, {config.model}"
        return World(config.dataset, config.model, title, loaded.init, None, task, rest, loaded.score)

    return world


def _rounds(run: Run, config: Config, name: str) -> Iterator[int]:
    """Runs a method's rounds from where its rows end; yields the number of each round that is done."""
    variant, rows = VARIANTS[name], _done(run, name)
    order = np.random.default_rng(run.seed).permutation(runs.samples_of(run.world.task))
    stages = _stages(config, order, variant.restart)
    yield from range(min(len(rows), len(stages)))
    if len(rows) >= len(stages):
        return
    init_key, key = jax.random.split(jax.random.key(run.seed))
    init = devices.split(run.world.init(init_key), run.world.task.mesh)
    start, path = (_without_kernels(init) if variant.from_zero else init), _file(run, name)
    # Another machine may make other weights of the seed; the update files start from these.
    first = protocol.load(path, start) if rows else protocol.save(start, path)
    checkpoints = run.results.workdir / "checkpoints" / path.stem
    task = run.world.task._replace(epochs=config.epochs * variant.epochs, checkpoints=checkpoints)
    method = variant.method(config, lambda key: init, run.world.init)
    folder = run.results.workdir / "updates" / path.stem
    results = protocol.run_rounds(key, method, first, task, stages, folder=folder, done=len(rows), compact=run.compact)
    before = run.after(rows[-1]) if rows else run.scores(first.variables)
    for number, result in enumerate(results, len(rows)):
        row = run.record(
            run.identity(name, _setting(config, name), number),
            result,
            before,
            reference=run.identity(REFERENCE, {}, number),
            samples=len(stages[number].samples),
            restart=stages[number].restart and result.sent,
        )
        runs.forget(checkpoints)
        before = run.after(row)
        yield number


def _done(run: Run, name: str) -> list[Row]:
    """A method's rows so far, one a round without a gap."""
    rows = [row for row in run.results.rows if (row.identity.method, row.identity.seed) == (name, run.seed)]
    if [row.identity.round for row in rows] != list(range(len(rows))):
        found = ", ".join(str(row.identity.round) for row in rows)
        expected = f"expected the rounds of {name} with seed {run.seed} one after another"
        raise Error(f"{run.results.workdir}/results.jsonl: {expected}, found {found}; use another --workdir")
    return rows


def _file(run: Run, name: str) -> Path:
    """The model that a device is deployed with."""
    return run.results.workdir / "device" / f"{name}-seed{run.seed}.safetensors"


def _setting(config: Config, name: str) -> Setting:
    names = () if VARIANTS[name].raw else ("ratio", "bits", "aux", "sparse_rate", "keep_moments")
    return {option: getattr(config, option) for option in names}


def _of_rows(config: Config, rows: Sequence[Row]) -> Config:
    """The settings that make all these rows: several starts may have added methods, seeds and rounds."""
    return dataclasses.replace(
        config,
        methods=tuple(dict.fromkeys(row.identity.method for row in rows)),
        seeds=1 + max(row.identity.seed for row in rows),
        rounds=1 + max(row.identity.round for row in rows),
    )


def growing(order: np.ndarray, *, initial: int, step: int, rounds: int, restart: str = "never") -> list[protocol.Stage]:
    """The stages of rounds whose training set is cumulative: `initial` samples, then `step` more each round.

    Args:
      order: int (n,): the order in which the training samples arrive.
      initial: samples of round 0.
      step: samples that each later round adds.
      rounds: how many rounds.
      restart: which updates are relative to the first model: "never"; "always"; or "doubled", those of round 0 and of
        every round with more than twice the samples of the last such round.

    Returns:
      One `Stage` a round.

    Raises:
      Error: the rounds need more samples than there are, a count is below 1, or `restart` is none of these.

    Paper: Qu et al., Deep Partial Updating (ECCV 2022), section 4 (re-initialisation).

    >>> [stage.restart for stage in growing(np.arange(9), initial=1, step=1, rounds=9, restart="doubled")]
    [True, False, True, False, False, False, True, False, False]
    """
    if min(initial, step, rounds) < 1:
        raise Error(f"initial, step and rounds: expected at least 1, found {initial}, {step} and {rounds}")
    if restart not in ("never", "doubled", "always"):
        raise Error(f"restart: expected never, doubled or always, found {restart!r}")
    needed = initial + step * (rounds - 1)
    if needed > len(order):
        possible = max(0, (len(order) - initial) // step + 1)
        expected = f"expected at most {possible}: {initial} samples and {step} more each round of {len(order)} in all"
        raise Error(f"rounds: {expected}; found {rounds}, which need {needed}; use fewer rounds or smaller steps")
    stages, last = [], 0
    for size in range(initial, needed + 1, step):
        restarts = restart == "always" or (restart == "doubled" and size > 2 * last)
        last = size if restarts else last
        stages.append(protocol.Stage(order[:size], restarts))
    return stages


def _stages(config: Config, order: np.ndarray, restart: str) -> list[protocol.Stage]:
    return growing(
        order, initial=config.initial_samples, step=config.step_samples, rounds=config.rounds, restart=restart
    )


def _without_kernels(variables: PyTree) -> PyTree:
    leaves = trees.named_leaves(variables)
    kernels = (leaf.name for leaf in partition.of(variables).leaves if leaf.role == partition.KERNEL)
    return trees.replace(variables, {name: jnp.zeros_like(leaves[name]) for name in kernels})
