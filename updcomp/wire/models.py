"""Probabilities of tokens that both sides compute alike: a parametric prior that the counts of earlier tokens correct.

No table is sent. A segment is coded in chunks that double; within a chunk the frequencies are fixed, and after it the
counts of its tokens are added. The prior is a two-sided (signed) or one-sided geometric distribution of a mean
magnitude 2^((scale - 20) / 2). All arithmetic here is on integers, so it is the same on every machine.
"""

import functools
import math
from collections.abc import Iterator

import numpy as np

from updcomp.wire import dtypes, rans, tokens

SCALE_BITS = 7
SCALES = 1 << SCALE_BITS  # half-octaves of the mean magnitude, from 2^-10
UNIT_SCALE = 20  # of a mean magnitude of 1
_FIRST_CHUNK = 64
_LONGEST_CHUNK = 1 << 20  # bounds the decoder's temporaries
_PRIOR_TOTAL = 1 << 16
_MOST_KEPT = 64  # contexts whose priors are kept for the next segment
COUNT_WEIGHT = 1 << 11  # the prior weighs as much as 2^16 / 2^11 = 32 tokens
_FRACTION = 12  # fractional bits of logarithms
_UNIT = 1 << 30

# Bits by which a weight falls per unit of magnitude, asinh(1 / mean) / log(2), times 2^16. Beyond the table they halve
# with every octave, as they nearly do at its end.
_DECAYS = (
    *(720896, 688128, 655360, 622592, 589824, 557057, 524289, 491523, 458758, 425996, 393239, 360494, 327772, 295096),
    *(262511, 230106, 198052, 166665, 136494, 108373, 83333, 62258, 45498, 32768, 23398, 16628, 11788, 8346),
)

# 2^-(1/2), 2^-(1/4), 2^-(1/8) ... in units of 2^-30, by repeated square roots.
_ROOTS = [math.isqrt(_UNIT * _UNIT // 2)]
for _ in range(_FRACTION - 1):
    _ROOTS.append(math.isqrt(_ROOTS[-1] * _UNIT))


@functools.lru_cache(maxsize=2)
def _stand_for(signed: bool) -> tuple[dtypes.Array, dtypes.Array, dtypes.Array]:
    """Of every token: the logarithm of how many u share it, and twice the magnitude in their middle as m 2^e."""
    large = np.arange(tokens.COUNT - tokens.DIRECT)
    small = np.arange(tokens.DIRECT)
    widths = np.concatenate([np.zeros_like(small), large // 2 + 3])
    middles = np.concatenate([(small + 1) // 2 * 2 if signed else 2 * small, 5 + 2 * (large % 2)])
    exponents = np.concatenate([np.zeros_like(small), large // 2 + (2 if signed else 3)])
    return widths, middles, exponents


def priors(scales: dtypes.Array, alphabet: int, *, signed: bool) -> dtypes.Array:
    """Weights of the tokens under geometric distributions of mean magnitudes 2^((scale - 20) / 2).

    weight(token) = (how many u it stands for) * 2^-(decay * magnitude of its middle), all in integers.

    Args:
      scales: integers (contexts,), from 0 to `SCALES` - 1.
      alphabet: number of tokens.
      signed: whether u is a folded signed number; its magnitude is then ceil(u / 2).

    Returns:
      int64 (contexts, alphabet), >= 0; the sum of a row is at most, and about, 2^16.
    """
    widths, middles, exponents = (part[:alphabet] for part in _stand_for(signed))
    octaves = np.maximum(0, (scales - len(_DECAYS) + 2) // 2)
    decays = np.array(_DECAYS)[scales - 2 * octaves]
    # 17 = 16 fractional bits of the decay, one of the doubling.
    shifts = exponents - (17 - _FRACTION + octaves[:, None])
    terms = decays[:, None] * middles
    # A term of 2^23 shifted further than 2^36 has a weight of 0 however far.
    terms = np.where(shifts > 0, terms << np.clip(shifts, 0, 36), terms >> np.clip(-shifts, 0, 63))
    logarithms = (widths << _FRACTION) - terms
    below = np.minimum(logarithms.max(axis=1, keepdims=True) - logarithms, 32 << _FRACTION)
    weights = np.full(below.shape, _UNIT)
    for place, root in enumerate(_ROOTS, 1):
        weights = np.where(below >> (_FRACTION - place) & 1, weights * root >> 30, weights)
    weights >>= np.minimum(below >> _FRACTION, 31)
    return weights * _PRIOR_TOTAL // weights.sum(axis=1, keepdims=True)


@functools.lru_cache(maxsize=256)
def _priors(scales: tuple[int, ...], alphabet: int, signed: bool) -> dtypes.Array:
    return priors(np.array(scales), alphabet, signed=signed)


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
    frequencies: dtypes.Array = 1 + weights * (rans.TOTAL - symbols) // weights.sum(axis=1, keepdims=True)
    rows = np.arange(len(weights))
    frequencies[rows, frequencies.argmax(axis=1)] += rans.TOTAL - frequencies.sum(axis=1)
    return frequencies


class Adaptive:
    """Frequencies of every context, from its prior and the tokens seen in it."""

    def __init__(self, scales: dtypes.Array, alphabet: int, *, signed: bool, count_weight: int = COUNT_WEIGHT) -> None:
        """Starts with the priors.

        Args:
          scales: integers (contexts,), the scale of each context's prior.
          alphabet: number of tokens.
          signed: as in `prior`.
          count_weight: what a token that was seen weighs, where the prior weighs 2^16.
        """
        self._count_weight = count_weight
        if len(scales) > _MOST_KEPT:
            self._weights = priors(scales, alphabet, signed=signed)
        else:
            self._weights = _priors(tuple(map(int, scales)), alphabet, signed).copy()

    def frequencies(self, which: dtypes.Array | slice = slice(None)) -> dtypes.Array:
        """int64 (contexts, alphabet), as `normalise` returns them, of all contexts or some."""
        return normalise(self._weights[which])

    def update(self, seen: dtypes.Array, contexts: dtypes.Array | None) -> None:
        """Counts tokens.

        Args:
          seen: uint8 (n,), tokens.
          contexts: integers (n,), their contexts; all 0 if not given.
        """
        alphabet = self._weights.shape[1]
        index = seen if contexts is None else contexts.astype(np.int64) * alphabet + seen
        counts = np.bincount(index, minlength=self._weights.size)
        self._weights += self._count_weight * counts.reshape(self._weights.shape)


def chunks(count: int) -> Iterator[slice]:
    """The parts of a segment: 64 tokens, then as many as all before, at most 2^20.

    >>> [(part.start, part.stop) for part in chunks(200)]
    [(0, 64), (64, 128), (128, 200)]
    """
    start = 0
    while start < count:
        stop = min(start + min(max(start, _FIRST_CHUNK), _LONGEST_CHUNK), count)
        yield slice(start, stop)
        start = stop


@functools.lru_cache(maxsize=64)
def _all_costs(alphabet: int, signed: bool) -> dtypes.Array:
    """float64 (SCALES, alphabet): bits of every token under every prior."""
    return rans.PRECISION - np.log2(normalise(priors(np.arange(SCALES), alphabet, signed=signed)))


def best_scale(histogram: dtypes.Array, *, signed: bool) -> int:
    """The scale of the prior under which tokens with this histogram are most likely.

    Args:
      histogram: integers (alphabet,).
      signed: as in `prior`.
    """
    return int(np.argmin(_all_costs(len(histogram), signed) @ histogram))
