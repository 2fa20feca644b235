"""An update of at most so many bytes: the method and setting that spend them best on the validation data."""

import dataclasses
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from updcomp import api, trees
from updcomp.methods.base import Method
from updcomp.methods.deep_partial_updating import partial
from updcomp.methods.fixed_mask import magnitude_mask, random_mask
from updcomp.methods.full_updating import full
from updcomp.methods.low_rank_factors import low_rank
from updcomp.methods.shared_subspace import subspace
from updcomp.methods.short_vectors import pranc, uni_lora
from updcomp.training.tasks import Task
from updcomp.training.validation import score
from updcomp.trees import PyTree
from updcomp.wire import apply
from updcomp.wire.errors import BudgetError, Error
from updcomp.wire.packet import Packet

_RANKS = tuple(round(2 ** (i / 4)) for i in (0, 4, 6, 8, 10, *range(12, 33)))  # from 1 to 256
_RATIOS = tuple(float(f"{2 ** (i / 2) / 4096:.3g}") for i in range(21))  # from .00024 to .25
_SIZES = tuple(round(64 * 2 ** (i / 2)) for i in range(21))  # of vectors, from 64 to 65,536
_PROBE, _TRIAL = 16, 4  # so many times fewer epochs has a training that tells the bytes, and one that tells the score
_SMALLER = 4  # sizes that are trained in full, at most, where training makes them too large

_log = logging.getLogger(__name__)


class Family(NamedTuple):
    """One way of making updates, at several sizes."""

    make: Callable[[Any], Method]  # of a size
    sizes: Sequence[Any]  # ascending, of the updates as well


FAMILIES: dict[str, Family] = {
    "subspace": Family(lambda rank: subspace(rank=rank, bits=2), _RANKS),
    "subspace_widened": Family(lambda rank: subspace(rank=rank, bits=2, widen=True), _RANKS),
    "subspace_3_bits": Family(lambda rank: subspace(rank=rank, bits=3), _RANKS),
    "low_rank": Family(lambda rank: low_rank(rank=rank, bits=2, aux=4), _RANKS),
    "partial": Family(lambda ratio: partial(ratio=ratio, bits=2, aux=4), _RATIOS),
    "magnitude_mask": Family(lambda ratio: magnitude_mask(ratio=ratio, bits=2, aux=4), _RATIOS),
    "random_mask": Family(lambda ratio: random_mask(ratio=ratio, bits=2, aux=4), _RATIOS),
    "uni_lora": Family(lambda size: uni_lora(size=size, bits=2), _SIZES),
    "pranc": Family(lambda size: pranc(size=size, bits=2), _SIZES),
    "full": Family(lambda bits: full(bits=bits, aux=4), (2, 3, 4, 8)),
}
"""Name -> family: what is tried by default; one more line is one more family."""


class _Tried(NamedTuple):
    """A training at one size."""

    packet: Packet  # without blocks where it changes nothing
    bytes: float  # of the file
    score: float  # on the validation data, of what the wire makes


def fit_budget(
    *,
    max_bytes: int,
    families: Mapping[str, Family] | Sequence[str] | None = None,
    finalists: int = 3,
    compact: bool = False,
    budget: float = 1.0,
) -> Method:
    """Spends a number of bytes on whichever of several families of methods scores best on the validation data.

    Of every family, the largest size whose file has at most `max_bytes` is searched by bisection with very short
    trainings, of a sixteenth of the task's epochs, and trained for a quarter of them. The families whose updates score
    best then train in full; the update that scores best after that is the one.

    Args:
      max_bytes: the most bytes of the encoded update, everything counted.
      families: name -> family, or names among `FAMILIES`; default: all of these.
      finalists: how many families train in full, at least 1.
      compact: whether the packet is encoded so, as in `updcomp.encode`, which leaves more bytes.
      budget: how much applying it may take, as in `updcomp.encode`; the update is to be encoded with the same.

    Returns:
      A method.

    Raises:
      Error: an option is out of range, or a name unknown.

    The method raises BudgetError where not even the smallest size of any family fits; the message says its bytes.
    """
    for option, value in (("max_bytes", max_bytes), ("finalists", finalists)):
        if not isinstance(value, int) or value < 1:
            raise Error(f"{option}: expected a whole number of at least 1, found {value!r}")
    if isinstance(families, str) or (families is not None and not families):
        raise Error(f"families: expected several of {', '.join(FAMILIES)}, or None for all, found {families!r}")
    if not isinstance(families, Mapping):
        if unknown := [name for name in families or () if name not in FAMILIES]:
            raise Error(f"families: expected some of {', '.join(FAMILIES)}, found {unknown[0]!r}")
        families = {name: FAMILIES[name] for name in families or FAMILIES}
    return _Fitted(max_bytes, tuple(families.items()), finalists, compact, budget)


@dataclasses.dataclass(frozen=True)
class _Fitted:
    """The method."""

    max_bytes: int
    families: tuple[tuple[str, Family], ...]
    finalists: int
    compact: bool
    budget: float

    def __call__(self, key: jax.Array, deployed: PyTree, task: Task) -> Packet:
        """Trains the update."""
        encoding = {"compact": self.compact, "budget": self.budget}
        searches = [_Search(name, family, key, deployed, task, encoding) for name, family in self.families]
        fitting = {search: size for search in searches if (size := search.largest(self.max_bytes)) >= 0}
        if not fitting:
            smallest, name = min((search.smallest(), search.name) for search in searches)
            if smallest == math.inf:
                failed = "; ".join(f"{search.name}: {search.failed}" for search in searches)
                raise BudgetError(f"families: expected one that makes an update of this model; {failed}")
            expected = f"expected at least {smallest} (the smallest update that was found, by {name})"
            raise BudgetError(f"max_bytes: {expected}, found {self.max_bytes}")
        best = sorted(fitting, key=lambda search: -_order(search.trained(fitting[search], _TRIAL)))[: self.finalists]
        found = [search.in_full(fitting[search], self.max_bytes) for search in best]
        return max(found, key=_order).packet._replace(compact=self.compact)


def _order(tried: _Tried) -> float:
    return -math.inf if math.isnan(tried.score) else tried.score


@dataclasses.dataclass(eq=False)
class _Search:
    """The sizes of a family on one task."""

    name: str
    family: Family
    key: jax.Array
    deployed: PyTree
    task: Task
    encoding: Mapping[str, Any]
    known: dict[tuple[int, int], _Tried] = dataclasses.field(default_factory=dict)
    failed: str = "no epoch is better than the deployed model"  # why there is no update

    def largest(self, max_bytes: int) -> int:
        """The largest size whose update fits after a short training, as its place; -1 if none does."""
        fits, beyond = -1, len(self.family.sizes)
        while beyond - fits > 1:
            middle = (fits + beyond) // 2
            probe = self.trained(middle, _PROBE)
            if not probe.packet.blocks and probe.bytes < math.inf:  # too short to gain anything, and so to tell bytes
                probe = self.trained(middle, _TRIAL)
            if probe.packet.blocks and probe.bytes <= max_bytes:
                fits = middle
            else:
                beyond = middle
        while fits >= 0 and self.trained(fits, _TRIAL).bytes > max_bytes:  # more training may take more bytes
            fits -= 1
        return fits

    def smallest(self) -> float:
        """The bytes of the smallest size that made an update, the most that it was found to take; infinite if none."""
        most: dict[int, float] = {}
        for (place, _), tried in self.known.items():
            if tried.packet.blocks:
                most[place] = max(tried.bytes, most.get(place, 0.0))
        return min(most.values(), default=math.inf)

    def trained(self, place: int, shorter: int) -> _Tried:
        """The size at a place, after a training with so many times fewer epochs."""
        epochs = max(1, self.task.epochs // shorter)
        if (place, epochs) not in self.known:
            self.known[place, epochs] = self._train(place, self.task._replace(epochs=epochs))
        return self.known[place, epochs]

    def in_full(self, place: int, max_bytes: int) -> _Tried:
        """The same after a full training; of a smaller size, if that made it too large, or at worst the short one."""
        for smaller in range(place, max(-1, place - _SMALLER), -1):
            if (found := self.trained(smaller, 1)).bytes <= max_bytes:
                return max(found, self.trained(place, _TRIAL), key=_order)
        return self.trained(place, _TRIAL)

    def _train(self, place: int, task: Task) -> _Tried:
        if task.checkpoints is not None:
            task = task._replace(checkpoints=Path(task.checkpoints) / f"{self.name}-{place}-{task.epochs}")
        try:
            packet = self.family.make(self.family.sizes[place])(self.key, self.deployed, task)
            packet = packet._replace(compact=self.encoding["compact"])
            size: float = len(api.encode(packet, self.deployed, **self.encoding))
        except Error as error:  # no device or leaf takes it, there is nothing to train, or training diverges
            self.failed = str(error)
            _log.info("%s at %s, %d epochs: %s", self.name, self.family.sizes[place], task.epochs, error)
            return _Tried(Packet({}), math.inf, -math.inf)
        held = trees.HostModel(self.deployed)
        leaves = dict(apply.changed_leaves(packet, held))
        if all(np.array_equal(leaf, held[name]) for name, leaf in leaves.items()):
            packet = Packet({})
        tried = _Tried(packet, size, score(trees.with_leaves(self.deployed, leaves.items()), task))
        where = self.name, self.family.sizes[place], task.epochs
        _log.info("%s at %s, %d epochs: %s bytes, score %.6g", *where, size, tried.score)
        return tried
