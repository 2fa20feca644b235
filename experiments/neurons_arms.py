"""What the rows of `neurons` are about: ways to train, each at the rate that is best on seed 0's validation data."""

import math
from collections import defaultdict
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from experiments.results import Row
from experiments.settings import Key
from experiments.specs import Scalar, Setting, describe

EVERYTHING: Key = ("full", {"bits": None})  # every leaf, raw
FULL: Key = ("neurons", {"selection": "full"})
CLASSIFIER: Key = ("neurons", {"selection": "classifier"})
DIVERGED, UNFIT = "diverged", "does not fit"  # how what failed begins


class Arm(NamedTuple):
    """One way to train, at the rate that is best on seed 0's validation data."""

    method: str
    setting: Setting  # without the rate
    tried: Setting  # with it
    rows: list[Row]  # one a seed

    @property
    def key(self) -> Key:
        """Its method and setting."""
        return self.method, self.setting

    @property
    def name(self) -> str:
        """What trains."""
        if self.key == EVERYTHING:
            return "everything"
        return str(self.setting["selection"]) if self.method == "neurons" else self.method

    @property
    def budget(self) -> str:
        """Under what limits, or for methods that are not by neurons at which setting."""
        if self.method != "neurons":
            return "-" if self.key == EVERYTHING else describe(self.setting)
        options = [(name, value) for name, value in self.setting.items() if name != "selection"]
        limits = [f"{name} {_limit(value)}" for name, value in options if (name, value) != ("microbatches", 1)]
        return ", ".join(limits) or "-"

    @property
    def failed(self) -> str:
        """Why some of its seeds did not train; else empty."""
        return ", ".join(sorted({row.metrics["failed"].split(":")[0] for row in self.rows if row.metrics["failed"]}))

    def all_of(self, metric: str) -> np.ndarray:
        """Float64 (seeds,): NaN where a row lacks it."""
        return np.array([row.metrics.get(metric) for row in self.rows], float)

    def mean(self, metric: str) -> float:
        """Over the seeds that have it; else NaN."""
        known = [value for value in self.all_of(metric) if not math.isnan(value)]
        return float(np.mean(known)) if known else math.nan

    def by_seed(self, metric: str) -> dict[int, float]:
        """Seed -> value."""
        return {row.identity.seed: row.metrics[metric] for row in self.rows}


def _limit(value: Scalar) -> str:
    return f"{100 * value:g} %" if isinstance(value, float) else str(value)


def arms(rows: Sequence[Row]) -> list[Arm]:
    """What was trained, each at its best rate.

    Args:
      rows: of any rates; those of a way that seed 0 has not trained do not count.

    Returns:
      One for each, in the order in which they first come; of equally good rates, the smallest.
    """
    groups: dict[tuple[str, str], list[Row]] = defaultdict(list)
    for row in rows:
        groups[row.identity.method, describe(without_rate(row))].append(row)
    found = []
    for group in groups.values():
        tried = [row for row in group if row.identity.seed == 0]
        if tried:
            best = max(
                tried, key=lambda row: (row.metrics["validation_accuracy"], not row.metrics["failed"], -rate_of(row))
            )
            same = [row for row in group if row.identity.setting == best.identity.setting]
            same.sort(key=lambda row: row.identity.seed)
            found.append(Arm(best.identity.method, without_rate(best), best.identity.setting, same))
    return found


def rate_of(row: Row) -> float:
    """What a row's training multiplied the learning rate by."""
    return float(row.identity.setting[_rate_name(row)] or 0)


def _rate_name(row: Row) -> str:
    return "sparse_rate" if "sparse_rate" in row.identity.setting else "rate"


def without_rate(row: Row) -> Setting:
    """The setting of a row's way to train."""
    return {name: value for name, value in row.identity.setting.items() if name != _rate_name(row)}


def reference(found: Sequence[Arm]) -> Arm:
    """The full training that is better on seed 0's validation data, of every leaf or of all neurons."""
    full = [arm for arm in found if arm.key in (EVERYTHING, FULL)]
    return max(full, key=lambda arm: arm.by_seed("validation_accuracy")[0])


def kept(arm: Arm, full: Arm, *, validation: bool = False) -> float:
    """The share of the full training's gain over the deployed model, of the seeds that have both.

    Args:
      arm: what trained.
      full: the reference.
      validation: whether on the validation data rather than the test data.

    Returns:
      The share; NaN where the reference gains nothing.
    """
    part = "validation_" if validation else ""
    own, whole, before = (
        by.by_seed(name)
        for by, name in ((arm, f"{part}accuracy"), (full, f"{part}accuracy"), (full, f"deployed_{part}accuracy"))
    )
    seeds = own.keys() & whole.keys()
    gain = sum(whole[seed] - before[seed] for seed in seeds)
    return sum(own[seed] - before[seed] for seed in seeds) / gain if gain > 0 else math.nan
