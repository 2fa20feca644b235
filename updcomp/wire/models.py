"""Probabilities of tokens that both sides compute alike: a parametric prior that the counts of earlier tokens correct.

No table is sent. A segment is coded in chunks that double; within a chunk the frequencies are fixed, and after it the
counts of its tokens are added. The prior is a two-sided (signed) or one-sided geometric distribution whose half-life
is 2^((scale - 8) / 2): one symbol chooses it. All arithmetic here is on integers, so it is the same on every machine.
"""

import functools
import math
from collections.abc import Iterator

import numpy as np

from updcomp.wire import dtypes, rans, tokens

SCALES = 128  # half-octaves: half-lives from 2^-4 to 2^59.5
_FIRST_CHUNK = 64
_PRIOR_TOTAL = 1 << 16
_COUNT_WEIGHT = 1 << 11  # the prior weighs as much as 2^16 / 2^11 = 32 tokens
_FRACTION = 12  # fractional bits of logarithms
_UNIT = 1 << 30

# 2^-(1/2), 2^-(1/4), 2^-(1/8) ... in units of 2^-30, by repeated square roots.
_ROOTS = [math.isqrt(_UNIT * _UNIT // 2)]
for _ in range(_FRACTION - 1):
    _ROOTS.append(math.isqrt(_ROOTS[-1] * _UNIT))


def _exp2(negative: int) -> int:
    """2^-x in units of 2^-30, for x = negative / 2^12 >= 0."""
    result = _UNIT
    for bit, root in enumerate(reversed(_ROOTS)):
        if negative >> bit & 1:
            result = result * root >> 30
    return result >> min(negative >> _FRACTION, 31)


@functools.lru_cache(maxsize=4096)
def prior(scale: int, alphabet: int, signed: bool) -> tuple[int, ...]:
    """Weights of the tokens under a geometric distribution.

    weight(token) = (how many u it stands for) * 2^-(magnitude of its middle / half-life), half-life 2^((scale - 8) / 2).

    Args:
      scale: from 0 to `SCALES` - 1.
      alphabet: number of tokens.
      signed: whether u is a folded signed number; its magnitude is then ceil(u / 2).

    Returns:
      `alphabet` integers >= 0 whose sum is at most, and about, 2^16.
    """
    root = 46341 if scale % 2 else 65536  # 2^16 / sqrt(2) where the scale is odd
    logarithms = []
    for token in range(alphabet):
        if token < tokens.DIRECT:
            width, doubled = 0, (token + 1) // 2 * 2 if signed else 2 * token
        else:
            exponent, second = (token - tokens.DIRECT) // 2 + 4, token % 2
            width = exponent - 1
            doubled = (2 * (2 + second) + 1 << width - 1) * (1 if signed else 2)
        # doubled / 2 / half-life in units of 2^-12; the root carries 2^16, the half-life 2^(scale // 2 - 4).
        decay = (doubled * root << 16) >> (scale // 2 + 17)
        logarithms.append((width << _FRACTION) - decay)
    top = max(logarithms)
    weights = [_exp2(min(top - logarithm, 32 << _FRACTION)) for logarithm in logarithms]
    total = sum(weights)
    return tuple(weight * _PRIOR_TOTAL // total for weight in weights)


def normalise(weights: dtypes.Array) -> dtypes.Array:
    """Frequencies proportional to the weights: each at least 1, each row's sum exactly 2^14.

    frequency = 1 + floor(weight (2^14 - symbols) / sum of weights); the first largest one takes what is left.

    Args:
      weights: int64 (contexts, symbols), >= 0, each row's sum from 1 to 2^48.

    Returns:
      int64 (contexts, symbols).

    >>> normalise(np.array([[3, 1, 0]])).tolist()
    [[12287, 4096, 1]]
    """
    symbols = weights.shape[1]
    frequencies = 1 + weights * (rans.TOTAL - symbols) // weights.sum(axis=1, keepdims=True)
    rows = np.arange(len(weights))
    frequencies[rows, frequencies.argmax(axis=1)] += rans.TOTAL - frequencies.sum(axis=1)
    return frequencies


class Adaptive:
    """Frequencies of every context, from its prior and the tokens seen in it."""

    def __init__(self, priors: dtypes.Array) -> None:
        """Starts with the priors.

        Args:
          priors: int64 (contexts, alphabet), rows as `prior` returns them.
        """
        self._weights = priors.copy()

    def frequencies(self) -> dtypes.Array:
        """int64 (contexts, alphabet), as `normalise` returns them."""
        return normalise(self._weights)

    def update(self, seen: dtypes.Array, contexts: dtypes.Array | None) -> None:
        """Counts tokens.

        Args:
          seen: uint8 (n,), tokens.
          contexts: integers (n,), their contexts; all 0 if not given.
        """
        alphabet = self._weights.shape[1]
        index = seen if contexts is None else contexts.astype(np.int64) * alphabet + seen
        counts = np.bincount(index, minlength=self._weights.size)
        self._weights += _COUNT_WEIGHT * counts.reshape(self._weights.shape)


def chunks(count: int) -> Iterator[slice]:
    """The parts of a segment: 64 tokens, then as many as all before.

    >>> [(part.start, part.stop) for part in chunks(200)]
    [(0, 64), (64, 128), (128, 200)]
    """
    start, stop = 0, _FIRST_CHUNK
    while start < count:
        yield slice(start, min(stop, count))
        start, stop = stop, 2 * stop
