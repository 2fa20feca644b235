"""What the rounds compare: the methods of deep partial updating, and how the protocol runs each of them.

Qu, Liu, Thiele: Deep Partial Updating (ECCV 2022, arXiv 2007.03071).
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax

from experiments import runs, settings, specs
from experiments.config import above_zero, added, anything, at_least, one_of, setting
from experiments.results import Row
from experiments.rounds_stages import ArrivalConfig
from experiments.specs import Setting
from experiments.trainings import TrainingConfig
from updcomp import methods
from updcomp.methods import Method
from updcomp.training.optimizers import cosine
from updcomp.training.tasks import Task
from updcomp.trees import PyTree
from updcomp.wire.errors import Error
from updcomp.wire.packet import Packet

_EXAMPLE = "low_rank:rank=16:bits=2:aux=4"
_SEEN, _LEAST_EPOCHS = 300_000, 5  # samples that a small update is trained on, at most but for the epochs
_SUBSPACE_RATE = 4.0  # times the learning rate, which suits the training of all weights from scratch

Start = Callable[[jax.Array], PyTree]  # PRNG key -> the model that training starts from


@dataclasses.dataclass(frozen=True)
class VariantsConfig(ArrivalConfig, TrainingConfig):
    """What is compared, and the sizes of its updates."""

    methods: tuple[str, ...] = setting(
        ("fu", "dpu", "dpu_no_restart", "gcpu", "lcpu", "rpu", "pruning"),
        "which to compare; there are fu_last, fu_fresh, pruning_gradual, dpu_subspace, iterative and magnitude as well",
        later=anything,
    )
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
    )
    rank: int = setting(80, "of the updates that dpu_subspace makes between re-initialisations", later=added)
    others: tuple[str, ...] = setting(
        (), f"methods to compare as well, written as for --settings, such as {_EXAMPLE}", later=anything
    )


class Variant(NamedTuple):
    """One line of the paper's comparison: a method, and how the protocol runs it."""

    method: Callable[[VariantsConfig, Start, Start], Method]  # (config, the shared random init, a fresh one each round)
    restart: str = "never"  # see `growing`
    epochs: int = 1  # times --epochs in each training; the paper has 2 where a method trains once
    raw: bool = False  # sends every weight as it is, so that ratio and bits play no part
    from_zero: bool = False  # updates are relative to a model whose kernels are zero, which costs no bytes
    small: Callable[[VariantsConfig], Method] | None = None  # makes the updates that are no restart; default: as those


def _partial(
    scores: str = "combined", *, fixed_share: float | None = None, from_init: bool = False
) -> Callable[[VariantsConfig, Start, Start], Method]:
    return lambda config, same, fresh: _deep(
        config, scores=scores, fixed_share=fixed_share, start=same if from_init else None
    )


def _deep(config: VariantsConfig, *, factor: float = 1.0, **options: Any) -> Method:
    """Deep partial updating of a share that is so many times the usual one, by as much smaller steps."""
    wire = {**_wire(config), "ratio": min(1.0, config.ratio * factor)}
    rate = config.sparse_rate / factor
    return methods.partial(keep_moments=config.keep_moments, sparse_rate=rate, **wire, **options)


def _always(method: Method) -> Callable[[VariantsConfig, Start, Start], Method]:
    return lambda config, same, fresh: method


def _wire(config: VariantsConfig) -> dict[str, Any]:
    return {"ratio": config.ratio, "bits": config.bits, "aux": config.aux or None}


def _annealed(task: Task, **changes: Any) -> Task:
    """The task at a rate that falls to zero, whose update is that of the last epoch.

    The best epoch on the validation data is partly luck, and all later updates have to beat its score on the same data.
    """
    return task._replace(schedule=cosine, keep="last", **changes)


@dataclasses.dataclass(frozen=True)
class _NewStart:
    """Deep partial updating of more weights, by smaller steps, the more samples there are."""

    config: VariantsConfig

    def __call__(self, key: jax.Array, deployed: PyTree, task: Task) -> Packet:
        """The packet."""
        factor = (runs.samples_of(task) / self.config.initial_samples) ** self.config.growth
        return _deep(self.config, factor=factor)(key, deployed, _annealed(task))


@dataclasses.dataclass(frozen=True)
class _Small:
    """Small changes of a model that is good already, in its own subspace, trained on no more samples than decide."""

    rank: int
    bits: int

    def __call__(self, key: jax.Array, deployed: PyTree, task: Task) -> Packet:
        """The packet."""
        epochs = min(task.epochs, max(_LEAST_EPOCHS, _SEEN // runs.samples_of(task)))
        method = methods.subspace(rank=self.rank, bits=self.bits, rate=_SUBSPACE_RATE)
        return method(key, deployed, _annealed(task, epochs=epochs))


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
        lambda config, same, fresh: _NewStart(config),
        restart="until_sent",
        small=lambda config: _Small(config.rank, config.bits),
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


def entries(config: VariantsConfig) -> list[Entry]:
    """The variants and other methods that the settings name.

    Raises:
      Error: a name, an option or a value does not fit; names the flag.
    """
    if (unknown := sorted(set(config.methods) - set(VARIANTS))) or not config.methods:
        name = repr(unknown[0]) if unknown else "none"
        raise Error(f"--methods: expected some of {', '.join(VARIANTS)}, found {name}")
    found = [Entry(name, name, _setting(config, name), VARIANTS[name]) for name in config.methods]
    for method, options in settings.keys(config.others, flag="--others", example=_EXAMPLE):
        variant = Variant(_always(settings.build("--others", method, options)), epochs=2)
        found.append(Entry(specs.file_name(method, options), method, options, variant))
    return found


def as_before(entry: Entry, rows: Sequence[Row]) -> Entry:
    """The entry as its rows have it, whose files may be named by another order of the same options."""
    if entry.method in VARIANTS:
        return entry
    same = (row.identity.setting for row in rows if row.identity.method == entry.method)
    known = next((setting for setting in same if setting == entry.setting), entry.setting)
    return entry._replace(name=specs.file_name(entry.method, known), setting=known)


def _setting(config: VariantsConfig, name: str) -> Setting:
    variant = VARIANTS[name]
    names = [] if variant.raw else ["ratio", "bits", "aux", "sparse_rate", "keep_moments"]
    names += ["growth", "rank"] if variant.small else []
    return {option: getattr(config, option) for option in names}
