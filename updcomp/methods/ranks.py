"""Ranks for each kernel from the singular values of what it wants to change: by energy, or within so many bytes."""

import dataclasses
import heapq
from typing import NamedTuple

import jax
import numpy as np
import optax

from updcomp import arrays, trees
from updcomp.methods import base, choosing
from updcomp.partition import KERNEL, STATE
from updcomp.training import loop
from updcomp.training.plans import Frozen, as_trained
from updcomp.training.tasks import Task
from updcomp.trees import PyTree
from updcomp.wire import container, views
from updcomp.wire.errors import BudgetError, Error
from updcomp.wire.packet import Packet

SOURCES = ("gradient", "training")
_TRIES = 4  # trainings within a budget
_FULL_ENOUGH = 0.95  # of a budget
_FEW_BITS = 32  # of each entry of a factor that is not rounded
_SMALL_STEP = 1e-3  # of the learning rate, so that the change is that of one gradient


class Wanted(NamedTuple):
    """What ranks are chosen by; one of the first two is given."""

    energy: float | None  # share of the squared singular values
    max_bytes: int | None  # of the file
    source: str  # one of `SOURCES`


class Kernel(NamedTuple):
    """A kernel that may get a rank."""

    energies: np.ndarray  # float64, descending: squared singular values, added up over the stack
    entries: int  # of both factors, for each column


def check(energy: float | None, max_bytes: int | None, source: str) -> Wanted:
    """Checks what ranks are chosen by.

    Raises:
      Error: an option is out of range.
    """
    if energy is not None and not 0 < energy <= 1:
        raise Error(f"energy: expected above 0 and at most 1, found {energy!r}")
    if max_bytes is not None and (not isinstance(max_bytes, int) or max_bytes < 1):
        raise Error(f"max_bytes: expected at least 1, found {max_bytes!r}")
    if source not in SOURCES:
        raise Error(f"source: expected {' or '.join(SOURCES)}, found {source!r}")
    return Wanted(energy, max_bytes, source)


@dataclasses.dataclass(frozen=True)
class Allocated:
    """The method whose kernels have ranks of their own."""

    method: base.Trained  # of rank 1
    wanted: Wanted

    def __call__(self, key: jax.Array, deployed: PyTree, task: Task) -> Packet:
        """Trains an update of the kernels that have a rank, and of all aux leaves."""
        model = choosing.model_of(deployed, task)
        kernels = _kernels(key, task, model, self.wanted.source)
        if self.wanted.energy is not None:
            found = {name: rank_of_energy(kernel.energies, self.wanted.energy) for name, kernel in kernels.items()}
            return self._train(key, task, model, found)
        return self._within(key, deployed, task, model, kernels)

    def _train(self, key: jax.Array, task: Task, model: choosing.Model, found: dict[str, int]) -> Packet:
        form = self.method.form
        methods = {
            leaf.name: dataclasses.replace(self.method, form=dataclasses.replace(form, rank=found.get(leaf.name, 1)))
            for leaf in model.partition.leaves
            if leaf.role != KERNEL or found.get(leaf.name)
        }
        return base.train_forms(key, task, model, methods, name=self.method.name)

    def _within(
        self, key: jax.Array, deployed: PyTree, task: Task, model: choosing.Model, kernels: dict[str, Kernel]
    ) -> Packet:
        """The largest update within the budget that a few trainings find; each one tells what an entry takes."""
        most, held = self.wanted.max_bytes or 0, trees.to_model(deployed)
        per_entry, beside, best = (self.method.form.bits or _FEW_BITS) / 8, 64.0, None
        tried = set()
        for _ in range(_TRIES):
            found = ranks_within((most - beside) / per_entry, kernels) or _least(kernels)
            if (key_of := tuple(found.items())) in tried:
                break
            tried.add(key_of)
            packet = self._train(key, task, model, found)
            size, entries = len(container.encode(packet, held)), _entries(found, kernels)
            if size <= most and (best is None or size > best[0]):
                best = (size, packet)
            if size <= most and size >= _FULL_ENOUGH * most:
                break
            beside = min(beside, size / 2)
            per_entry = max((size - beside) / entries, 1e-3)
        if best is None:
            packet = self._train(key, task, model, _least(kernels))
            size = len(container.encode(packet, held))
            if size > most:
                raise BudgetError(f"max_bytes: expected at least {size} for this model with these bits, found {most}")
            return packet
        return best[1]


def rank_of_energy(energies: np.ndarray, share: float) -> int:
    """The least rank that holds this share of all; 0 where there is nothing.

    >>> rank_of_energy(np.array([8.0, 1.0, 1.0]), 0.85), rank_of_energy(np.zeros(3), 0.85)
    (2, 0)
    """
    total = float(energies.sum())
    if not total:
        return 0
    return min(int(np.searchsorted(np.cumsum(energies), share * total * (1 - 1e-12))) + 1, len(energies))


def ranks_within(entries: float, kernels: dict[str, Kernel]) -> dict[str, int]:
    """Ranks whose factors have at most so many entries together: the columns of most energy per entry first.

    >>> one, other = Kernel(np.array([9.0, 1.0]), 10), Kernel(np.array([8.0, 4.0]), 5)
    >>> ranks_within(20, {"a": one, "b": other})
    {'b': 2, 'a': 1}
    """
    found: dict[str, int] = {}
    ready = [(-kernel.energies[0] / kernel.entries, name) for name, kernel in kernels.items() if kernel.energies.any()]
    heapq.heapify(ready)
    while ready:
        _, name = heapq.heappop(ready)
        kernel = kernels[name]
        if kernel.entries > entries:
            continue
        entries -= kernel.entries
        rank = found[name] = found.get(name, 0) + 1
        if rank < len(kernel.energies):
            heapq.heappush(ready, (-kernel.energies[rank] / kernel.entries, name))
    return found


def _least(kernels: dict[str, Kernel]) -> dict[str, int]:
    """One column of the kernel where that has fewest entries."""
    return {min(kernels, key=lambda name: kernels[name].entries): 1}


def _entries(found: dict[str, int], kernels: dict[str, Kernel]) -> int:
    return sum(rank * kernels[name].entries for name, rank in found.items())


def _kernels(key: jax.Array, task: Task, model: choosing.Model, source: str) -> dict[str, Kernel]:
    """The spectrum of what training in full changes first, or in the end."""
    chosen = choosing.choose(model, dict.fromkeys(leaf.name for leaf in model.partition.leaves))
    old = chosen.of_role(KERNEL)
    if source == "gradient":
        rate = _SMALL_STEP * task.learning_rate
        task = task._replace(optimizer=optax.sgd, learning_rate=rate, epochs=1, checkpoints=None, callback=None)
    plan = base.plan_of("ranks", chosen.partition, dict.fromkeys(old, as_trained))
    with choosing.blaming(chosen):
        fitted = loop.fit(key, task, plan, old, Frozen(model.variables, {}), moved=chosen.of_role(STATE))
    found = {}
    for leaf in chosen.partition.of_role(KERNEL):
        change = views.split(fitted.last[leaf.name] - old[leaf.name], leaf.view)
        singular = np.linalg.svd(arrays.to_host(change).astype(np.float64), compute_uv=False)
        stack, fan_in, fan_out = change.shape
        found[leaf.name] = Kernel(np.sum(singular**2, axis=0), stack * (fan_in + fan_out))
    return found
