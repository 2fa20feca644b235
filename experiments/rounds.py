"""Rounds on data that arrive over time: deep partial updating and all that its paper compares it with.

Qu, Liu, Thiele: Deep Partial Updating (ECCV 2022, arXiv 2007.03071).
"""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments import images, rounds_report, runs, settings, specs
from experiments.config import above_zero, added, anything, at_least, command, one_of, setting
from experiments.results import Results, Row
from experiments.rounds_report import REFERENCE
from experiments.runs import Run
from experiments.specs import Setting
from experiments.trainings import TrainingConfig, check_rows, task_of
from experiments.worlds import World, Worlds
from updcomp import methods, partition, protocol, trees
from updcomp.methods import Method
from updcomp.training import data, devices
from updcomp.training.optimizers import cosine
from updcomp.training.tasks import Task
from updcomp.trees import PyTree
from updcomp.wire.errors import Error
from updcomp.wire.packet import Packet

_EXAMPLE = "low_rank:rank=16:bits=2:aux=4"
_SEEN, _LEAST_EPOCHS = 300_000, 5  # samples that a small update is trained on, at most but for the epochs
_SUBSPACE_RATE = 4.0  # times the learning rate, which suits the training of all weights from scratch

RESTARTS = ("never", "always", "doubled", "until_sent")

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
    growth: float = setting(
        0.0,
        "of dpu_subspace: where training starts anew on n samples, (n / --initial_samples)^growth multiplies --ratio "
        "and divides --sparse_rate",
        check=at_least(0, most=1),
        later=lambda before, now: (before or 0) == now,  # folders that are older than it have none
    )
    rank: int = setting(80, "of the updates that dpu_subspace makes between re-initialisations", later=added)
    others: tuple[str, ...] = setting(
        (), f"methods to compare as well, written as for --settings, such as {_EXAMPLE}", later=anything
    )

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
        entries(self)


class Variant(NamedTuple):
    """One line of the paper's comparison: a method, and how the protocol runs it."""

    method: Callable[[Config, Start, Start], Method]  # (config, the shared random init, a fresh one each round)
    restart: str = "never"  # see `growing`
    epochs: int = 1  # times --epochs in each training; the paper has 2 where a method trains once
    raw: bool = False  # sends every weight as it is, so that ratio and bits play no part
    from_zero: bool = False  # updates are relative to a model whose kernels are zero, which costs no bytes
    small: Callable[[Config], Method] | None = None  # makes the updates that are no restart; default: as those


def _partial(
    scores: str = "combined", *, fixed_share: float | None = None, from_init: bool = False
) -> Callable[[Config, Start, Start], Method]:
    return lambda config, same, fresh: _deep(
        config, scores=scores, fixed_share=fixed_share, start=same if from_init else None
    )


def _deep(config: Config, *, factor: float = 1.0, **options: Any) -> Method:
    """Deep partial updating of a share that is so many times the usual one, by as much smaller steps."""
    wire = {**_wire(config), "ratio": min(1.0, config.ratio * factor)}
    rate = config.sparse_rate / factor
    return methods.partial(keep_moments=config.keep_moments, sparse_rate=rate, **wire, **options)


def _always(method: Method) -> Callable[[Config, Start, Start], Method]:
    return lambda config, same, fresh: method


def _wire(config: Config) -> dict[str, Any]:
    return {"ratio": config.ratio, "bits": config.bits, "aux": config.aux or None}


@dataclasses.dataclass(frozen=True)
class _Growing:
    """Deep partial updating of more weights, by smaller steps, the more samples there are.

    It is trained at a rate that falls to zero and is that of the last epoch: the best of many epochs on the validation
    data is lucky there, and what a device holds then stands in the way of all that comes after.
    """

    config: Config

    def __call__(self, key: jax.Array, deployed: PyTree, task: Task) -> Packet:
        """The packet."""
        factor = (runs.samples_of(task) / self.config.initial_samples) ** self.config.growth
        method = _deep(self.config, factor=factor)
        return method(key, deployed, task._replace(schedule=cosine, keep="last"))


@dataclasses.dataclass(frozen=True)
class _Annealed:
    """Small changes of a model that is good already, in its own subspace.

    They are trained on no more samples than decide, at a rate that falls to zero, and are those of the last epoch.
    """

    rank: int
    bits: int

    def __call__(self, key: jax.Array, deployed: PyTree, task: Task) -> Packet:
        """The packet."""
        epochs = min(task.epochs, max(_LEAST_EPOCHS, _SEEN // runs.samples_of(task)))
        method = methods.subspace(rank=self.rank, bits=self.bits, rate=_SUBSPACE_RATE)
        return method(key, deployed, task._replace(epochs=epochs, schedule=cosine, keep="last"))


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
    "dpu_subspace": Variant(
        lambda config, same, fresh: _Growing(config),
        restart="until_sent",
        small=lambda config: _Annealed(config.rank, config.bits),
    ),
    "iterative": Variant(_partial(fixed_share=0.2), restart="doubled"),
    "magnitude": Variant(
        lambda c, same, fresh: methods.magnitude_mask(rate=c.sparse_rate, **_wire(c)), restart="doubled", epochs=2
    ),
}


class Entry(NamedTuple):
    """What is compared."""

    name: str  # of its files
    method: str  # a variant's name, or a method's
    setting: Setting
    variant: Variant


def entries(config: Config) -> list[Entry]:
    """The variants and other methods that the settings name.

    Raises:
      Error: a name, an option or a value does not fit; names the flag.
    """
    found = [Entry(name, name, _setting(config, name), VARIANTS[name]) for name in config.methods]
    for method, options in settings.keys(config.others, flag="--others", example=_EXAMPLE):
        made = settings.build("--others", method, options)
        variant = Variant(_always(runs.Guarded(made, config.compact)), epochs=2)
        found.append(Entry(specs.file_name(method, options), method, options, variant))
    return found


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
    compared = [_as_before(entry, results.rows) for entry in entries(config)]
    total = config.seeds * len(compared) * config.rounds
    world = world_of(0)
    results.claim()
    with runs.progress_bar(total, "round") as progress, runs.quiet():
        for seed in range(config.seeds):
            world = world_of(seed) if seed else world
            run = Run(results, world._replace(task=runs.with_progress(world.task, progress)), seed, config.compact)
            for entry in runs.shared(compared, functools.partial(_lock, run)):
                for number in _rounds(run, config, entry):
                    progress.set_postfix_str("", refresh=False)  # its last epoch
                    progress.set_description(f"seed {seed} {entry.name} round {number}")
                    progress.update()
    rows = results.rows
    shown = command("rounds", _of_rows(config, rows), workdir)
    runs.publish(workdir, lambda: rounds_report.write(workdir, rows, command=shown))
    return rows


def _as_before(entry: Entry, rows: Sequence[Row]) -> Entry:
    """The entry as its rows have it, whose files may be named by another order of the same options."""
    if entry.method in VARIANTS:
        return entry
    same = (row.identity.setting for row in rows if row.identity.method == entry.method)
    known = next((setting for setting in same if setting == entry.setting), entry.setting)
    return entry._replace(name=specs.file_name(entry.method, known), setting=known)


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


def _rounds(run: Run, config: Config, entry: Entry) -> Iterator[int]:
    """Runs a method's rounds from where its rows end; yields the number of each round that is done."""
    variant, rows = entry.variant, _done(run, entry)
    yield from range(min(len(rows), config.rounds))
    if len(rows) >= config.rounds:
        return
    order = np.random.default_rng(run.seed).permutation(runs.samples_of(run.world.task))
    sent = [row.metrics["sent"] for row in rows]
    small = variant.small(config) if variant.small else None
    asked: list[protocol.Stage] = []

    def stages() -> Iterator[protocol.Stage]:
        for stage in _stages(config, order, variant.restart, sent):
            asked.append(stage if stage.restart else stage._replace(method=small))
            yield asked[-1]

    init_key, key = jax.random.split(jax.random.key(run.seed))
    init = devices.split(run.world.init(init_key), run.world.task.mesh)
    start, path = (_without_kernels(init) if variant.from_zero else init), _file(run, entry)
    # Another machine may make other weights of the seed; the update files start from these.
    first = protocol.load(path, start) if rows else protocol.save(start, path)
    checkpoints = run.results.workdir / "checkpoints" / path.stem
    task = run.world.task._replace(epochs=config.epochs * variant.epochs, checkpoints=checkpoints)
    method = variant.method(config, lambda key: init, run.world.init)
    folder = run.results.workdir / "updates" / path.stem
    results = protocol.run_rounds(
        key, method, first, task, stages(), folder=folder, done=len(rows), compact=run.compact
    )
    before = run.after(rows[-1]) if rows else run.scores(first.variables)
    for number, result in enumerate(results, len(rows)):
        row = run.record(
            run.identity(entry.method, entry.setting, number),
            result,
            before,
            reference=run.identity(REFERENCE, {}, number),
            samples=len(asked[-1].samples),
            restart=asked[-1].restart and result.sent,
        )
        sent.append(result.sent)
        runs.forget(checkpoints)
        before = run.after(row)
        yield number


def _done(run: Run, entry: Entry) -> list[Row]:
    """Its rows so far, one a round without a gap."""
    wanted = entry.method, entry.setting, run.seed
    rows = [row for row in run.results.rows if (row.identity.method, row.identity.setting, row.identity.seed) == wanted]
    if [row.identity.round for row in rows] != list(range(len(rows))):
        found = ", ".join(str(row.identity.round) for row in rows)
        expected = f"expected the rounds of {entry.name} with seed {run.seed} one after another"
        raise Error(f"{run.results.workdir}/results.jsonl: {expected}, found {found}; use another --workdir")
    return rows


def _lock(run: Run, entry: Entry) -> Path:
    return _file(run, entry).with_suffix(".lock")


def _file(run: Run, entry: Entry) -> Path:
    """The model that a device is deployed with."""
    return run.results.workdir / "device" / f"{entry.name}-seed{run.seed}.safetensors"


def _setting(config: Config, name: str) -> Setting:
    variant = VARIANTS[name]
    names = [] if variant.raw else ["ratio", "bits", "aux", "sparse_rate", "keep_moments"]
    names += ["rank"] if variant.small else []
    names += ["growth"] if variant.small and config.growth else []  # folders that are older than it have none
    return {option: getattr(config, option) for option in names}


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


def growing(
    order: np.ndarray,
    *,
    initial: int,
    step: int,
    rounds: int,
    restart: str = "never",
    sent: Sequence[bool] = (),
) -> Iterator[protocol.Stage]:
    """The stages of rounds whose training set is cumulative: `initial` samples, then `step` more each round.

    Args:
      order: int (n,): the order in which the training samples arrive.
      initial: samples of round 0.
      step: samples that each later round adds.
      rounds: how many rounds.
      restart: which updates are relative to the first model: "never"; "always"; "doubled", those of round 0 and of
        every round with more than twice the samples of the last such round; or "until_sent", of the last such round
        that was sent, so that one which gave nothing better is tried again with the next samples.
      sent: whether each round gave something, which its caller adds before it asks for the next stage; for
        "until_sent" alone.

    Returns:
      One `Stage` a round.

    Raises:
      Error: the rounds need more samples than there are, a count is below 1, or `restart` is none of these.

    Paper: Qu et al., Deep Partial Updating (ECCV 2022), section 4 (re-initialisation).

    >>> [stage.restart for stage in growing(np.arange(9), initial=1, step=1, rounds=9, restart="doubled")]
    [True, False, True, False, False, False, True, False, False]
    >>> sent = [True, True, False, True, True]
    >>> [stage.restart for stage in growing(np.arange(5), initial=1, step=1, rounds=5, restart="until_sent", sent=sent)]
    [True, False, True, True, False]
    """
    if min(initial, step, rounds) < 1:
        raise Error(f"initial, step and rounds: expected at least 1, found {initial}, {step} and {rounds}")
    if restart not in RESTARTS:
        raise Error(f"restart: expected one of {', '.join(RESTARTS)}, found {restart!r}")
    needed = initial + step * (rounds - 1)
    if needed > len(order):
        possible = max(0, (len(order) - initial) // step + 1)
        expected = f"expected at most {possible}: {initial} samples and {step} more each round of {len(order)} in all"
        raise Error(f"rounds: {expected}; found {rounds}, which need {needed}; use fewer rounds or smaller steps")

    def stages() -> Iterator[protocol.Stage]:
        last = 0
        for number, size in enumerate(range(initial, needed + 1, step)):
            restarts = restart == "always" or (restart in ("doubled", "until_sent") and size > 2 * last)
            yield protocol.Stage(order[:size], restarts)
            last = size if restarts and (restart != "until_sent" or sent[number]) else last

    return stages()


def _stages(config: Config, order: np.ndarray, restart: str, sent: Sequence[bool] = ()) -> Iterator[protocol.Stage]:
    initial, step = config.initial_samples, config.step_samples
    return growing(order, initial=initial, step=step, rounds=config.rounds, restart=restart, sent=sent)


def _without_kernels(variables: PyTree) -> PyTree:
    leaves = trees.named_leaves(variables)
    kernels = (leaf.name for leaf in partition.of(variables).leaves if leaf.role == partition.KERNEL)
    return trees.replace(variables, {name: jnp.zeros_like(leaves[name]) for name in kernels})
