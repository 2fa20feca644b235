"""What is read off curves of a score against bytes: their front, the bytes that reach a score, mean savings."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

_GRID = 201  # scores at which two curves are compared


def front(sizes: ArrayLike, scores: ArrayLike) -> list[int]:
    """The updates whose score no smaller one reaches, smallest first.

    Args:
      sizes: float (n,), bytes or their logarithms.
      scores: float (n,), higher is better; NaN is never on it.

    Returns:
      Their indices.

    >>> front([3, 1, 2, 4], [0.9, 0.5, 0.4, 0.9])
    [1, 0]
    """
    sizes, scores = np.asarray(sizes, float), np.asarray(scores, float)
    kept: list[int] = []
    for i in np.lexsort((-scores, sizes)):
        if not np.isnan(scores[i]) and (not kept or scores[i] > scores[kept[-1]]):
            kept.append(int(i))
    return kept


class Line(NamedTuple):
    """A curve as it was measured: one point a setting, from the smallest update to the largest.

    Attributes:
      sizes: float64 (points,), bytes.
      scores: float64 (points,), higher is better.
    """

    sizes: np.ndarray
    scores: np.ndarray

    def bytes_to_reach(self, score: float) -> float:
        """The bytes with which the line first has a score, interpolated in their logarithm.

        A point below an earlier one counts for nothing: what is drawn to is the next that passes both.

        Returns:
          The bytes; those of the smallest update where that passes the score already, NaN where none reaches it.

        >>> round(Line(np.array([100.0, 400.0]), np.array([0.5, 0.7])).bytes_to_reach(0.6), 6)
        200.0
        """
        return float(np.exp(_reached(self, np.array([score]))[0]))

    def starts_above(self, score: float) -> bool:
        """Whether the smallest update passes a score, so that fewer bytes might do as well."""
        kept = front(self.sizes, self.scores)
        return bool(kept) and bool(np.asarray(self.scores)[kept[0]] > score)


def _reached(line: Line, scores: np.ndarray) -> np.ndarray:
    """Logarithms of bytes for ascending scores."""
    kept = front(line.sizes, line.scores)  # where it falls, an earlier point has reached the score
    if not kept:
        return np.full(len(scores), np.nan)
    places, levels = np.log(np.asarray(line.sizes)[kept]), np.asarray(line.scores)[kept]
    return np.interp(scores, levels, places, right=np.nan)


def mean_saving(line: Line, other: Line, *, least: float = 0.0) -> float:
    r"""How many bytes a line saves against another, on average over all scores that both reach.

    1 - exp(\int_a^b (ln s(q) - ln o(q)) dq / (b - a)): s and o are the bytes with which either first has the score q,
    piecewise linear in their logarithm, and [a, b] is where both are known.

    Args:
      line: of one way to spend bytes.
      other: of the way that it is compared with.
      least: how many scores, from the lowest to the highest, both must reach.

    Returns:
      A share: .5 is half of the bytes, negative where it takes more; NaN where they have no scores in common, or fewer.

    Paper: Bjontegaard, Calculation of average PSNR differences between RD-curves (VCEG-M33, 2001), with straight
    lines in place of his polynomials, which cross where points are few.

    >>> twice = Line(np.array([200.0, 800.0]), np.array([0.5, 0.7]))
    >>> round(mean_saving(Line(np.array([100.0, 400.0]), np.array([0.5, 0.7])), twice), 3)
    0.5
    """
    ends = [np.asarray(one.scores)[front(one.sizes, one.scores)] for one in (line, other)]
    if not all(map(len, ends)):
        return float("nan")
    low, high = max(end[0] for end in ends), min(end[-1] for end in ends)
    if high - low <= least:
        return float("nan")
    scores = np.linspace(low, high, _GRID)
    return float(1 - np.exp(np.trapezoid(_reached(line, scores) - _reached(other, scores), scores) / (high - low)))


def over_seeds(values: Sequence[float]) -> tuple[float, float]:
    """(mean, standard deviation) of what each seed gives; NaN where one gives none, and no spread of one seed."""
    array = np.array(values, float)
    return float(array.mean()), float(array.std(ddof=1)) if len(array) > 1 else float("nan")


def mean_saving_over_seeds(lines: Sequence[Line], others: Sequence[Line], *, least: float = 0.0) -> float:
    """The mean saving over seeds, whose ratios of bytes are multiplied.

    >>> one, other = Line(np.array([1.0, 2.0]), np.array([0.5, 0.7])), Line(np.array([4.0, 8.0]), np.array([0.5, 0.7]))
    >>> abs(round(mean_saving_over_seeds([one, other], [other, one]), 6))
    0.0
    """
    savings = np.array([mean_saving(line, other, least=least) for line, other in zip(lines, others, strict=True)])
    return float(1 - np.exp(np.log1p(-savings).mean()))
