"""When samples arrive, and which updates start anew from the first model."""

from collections.abc import Iterator, Sequence

import numpy as np

from updcomp import protocol
from updcomp.wire.errors import Error

RESTARTS = ("never", "always", "doubled", "until_sent")


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
