"""When samples arrive, and which updates start anew from the first model."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from experiments.config import Settings, anything, setting
from updcomp import protocol
from updcomp.wire.errors import Error

RESTARTS = ("never", "always", "doubled", "until_sent")


@dataclasses.dataclass(frozen=True)
class ArrivalConfig(Settings):
    """Data that arrive over time."""

    rounds: int = setting(60, "how many rounds; the training set is cumulative", later=anything)
    initial_samples: int = setting(1_000, "samples of the first round")
    step_samples: int = setting(1_000, "samples that each later round adds")

    def plan(self, order: np.ndarray, restart: str = "never") -> protocol.Plan:
        """The rounds of these settings, as from `growing`."""
        counts = {"initial": self.initial_samples, "step": self.step_samples, "rounds": self.rounds}
        return growing(order, restart=restart, **counts)


def growing(order: np.ndarray, *, initial: int, step: int, rounds: int, restart: str = "never") -> protocol.Plan:
    """The stages of rounds whose training set is cumulative: `initial` samples, then `step` more each round.

    Args:
      order: int (n,): the order in which the training samples arrive.
      initial: samples of round 0.
      step: samples that each later round adds.
      rounds: how many rounds.
      restart: which updates are relative to the first model: "never"; "always"; "doubled", those of round 0 and of
        every round with more than twice the samples of the last such round; or "until_sent", of the last such round
        that sent something, so that one which gave nothing better is tried again in the next round but one.

    Returns:
      Whether each round so far sent something -> the next `Stage`, as `protocol.run_rounds` takes it.

    Raises:
      Error: the rounds need more samples than there are, a count is below 1, or `restart` is none of these.

    Paper: Qu et al., Deep Partial Updating (ECCV 2022), section 4 (re-initialisation).

    >>> plan = growing(np.arange(9), initial=1, step=1, rounds=9, restart="until_sent")
    >>> sent = [True, True, False, False, True]
    >>> [plan(sent[:number]).restart for number in range(5)]
    [True, False, True, False, True]
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

    def plan(sent: Sequence[bool]) -> protocol.Stage | None:
        size, last, has_failed = initial, 0, False  # of the round before
        for number in range(len(sent) + 1):
            is_start = restart == "always" or (restart != "never" and size > 2 * last and not has_failed)
            if number == len(sent):
                break
            has_failed = restart == "until_sent" and is_start and not sent[number]
            last = size if is_start and not has_failed else last
            size += step
        return protocol.Stage(order[:size], is_start) if len(sent) < rounds else None

    return plan
