"""A leaf's change as integers of one step, and what a device makes of them."""

import functools
import math

import numpy as np

from updcomp.lossy import sizes
from updcomp.wire import dtypes, versions
from updcomp.wire.errors import Error
from updcomp.wire.increments import round_step
from updcomp.wire.kind import Block
from updcomp.wire.kinds.dense import Dense
from updcomp.wire.kinds.exact import Exact
from updcomp.wire.kinds.sparse import Sparse

SPARSE_DENSITY = 1 / 64  # below it, coding the positions of what changed beats coding every weight
_SLICE = 1 << 18  # weights at a time: temporaries stay small beside the leaf
_DITHER = 0.04  # of a spacing
_CLOSE = 1.0  # bits of a weight by which a rough guess of its size may be wrong


def change(old: np.ndarray, new: np.ndarray) -> np.ndarray:
    """New - old in the dtype that increments are added in: zero where the bits are equal.

    Args:
      old: held float leaf.
      new: the same shape and dtype.

    Returns:
      float32, or float64 for a float64 leaf; not finite where a weight that changed is not.

    >>> change(np.float32([1, np.inf]), np.float32([1.5, np.inf])).tolist()
    [0.5, 0.0]
    """
    found = np.empty(old.shape, dtypes.compute_dtype(old))
    flat, olds, news = found.reshape(-1), old.reshape(-1), new.reshape(-1)
    for start in range(0, len(flat), _SLICE):
        part = slice(start, start + _SLICE)
        with np.errstate(invalid="ignore", over="ignore"):
            np.subtract(dtypes.to_floats(news[part]), dtypes.to_floats(olds[part]), out=flat[part])
        if not np.isfinite(flat[part]).all():
            flat[part][dtypes.flat_bits(olds[part]) == dtypes.flat_bits(news[part])] = 0
    return found


def rounded(old: np.ndarray, new: np.ndarray, spacing: float, step: float | None = None) -> Block:
    """The block of q = round((new - old) / spacing), which a device multiplies by the step.

    Args:
      old: held float leaf.
      new: the same shape and dtype.
      spacing: of the changes that share an integer, positive.
      step: as `round_step` gives it, where it need not be the spacing, and rounding is dithered; default: the
        spacing, rounded.

    Returns:
      `Dense`, `Sparse` where few weights change, or `Exact` where a change is not finite or no int32.

    >>> rounded(np.zeros(2, np.float32), np.float32([0.5, 1]), 0.25).values.tolist()
    [2, 4]
    """
    integers = np.empty(old.shape, np.int32)
    flat, olds, news = integers.reshape(-1), old.reshape(-1), new.reshape(-1)
    for start in range(0, len(flat), _SLICE):
        part = slice(start, start + _SLICE)
        values = quantised(change(olds[part], news[part]), spacing, dithered=step is not None)
        if not (np.abs(values) < 2**31).all():  # also where a weight is not finite
            return Exact(new)
        flat[part] = values
    step = round_step(spacing) if step is None else step
    if (count := np.count_nonzero(flat)) < SPARSE_DENSITY * flat.size:
        places = np.flatnonzero(flat)
        assert len(places) == count
        return Sparse(places, flat[places], step)
    return Dense(integers, step)


def quantised(changes: np.ndarray, spacing: float, *, dithered: bool = False) -> np.ndarray:
    """The integers of changes, as floats: the nearest multiples of the spacing; halves round to even.

    Rounding towards the cheaper integer, as rate-distortion theory has it, shrinks the update: it makes the squared
    error smaller at the same bytes, and the accuracy worse (`docs/lossy.md` has the numbers).

    Args:
      changes: flat; at most `SLICE` of them, or all.
      spacing: positive.
      dithered: whether every place rounds at a threshold of its own, within 2 % of a spacing. Changes of a narrow dtype
        are multiples of its last place: many of them would go up or down together, and bytes jump with the spacing.
    """
    with np.errstate(over="ignore", invalid="ignore"):
        scaled = changes / changes.dtype.type(spacing)
        if dithered:
            scaled += np.resize(_thresholds(), len(scaled)).astype(scaled.dtype, copy=False)
        return np.rint(scaled, out=scaled)


@functools.cache
def _thresholds() -> np.ndarray:
    """float32: the fractional parts of multiples of the golden ratio, which fill an interval evenly, within +-2 %."""
    return (_DITHER * (np.arange(_SLICE) * (math.sqrt(5) - 1) / 2 % 1 - 0.5)).astype(np.float32)


def within(old: np.ndarray, new: np.ndarray, most: float) -> Block:
    """The smallest block found whose result is nowhere further than `most` from the new leaf.

    |new - result| <= most for every weight, as real numbers, where the result is what the device has in the leaf's own
    dtype. A step of 2 most nearly does; less is needed where a last place of the dtype is about as large as `most`: at
    twice the power of two below it, rounding to that place brings back what rounding to the step took.

    Args:
      old: held float leaf.
      new: the same shape and dtype.
      most: positive.

    Returns:
      A block, checked against what the device makes of it; `Exact` where nothing else does, or nothing is smaller.
    """
    most = float(most)
    power = 2.0 ** np.floor(np.log2(most))
    for step in (_below(2 * most), _below(1.98 * most), _below(2 * power), _below(1.98 * power)):
        block = rounded(old, new, step)
        if not isinstance(block, Dense | Sparse):
            return block
        result = versions.kind_of(block).apply(block, old, 0, 0)
        if distance(result, new) <= most:
            return _smaller(block, old, new)
    return Exact(new)


def distance(found: np.ndarray, wanted: np.ndarray) -> float:
    """The largest distance of two held leaves' weights; 0 where their bits are equal, infinite where one is not finite.

    >>> distance(np.float32([1, 2]), np.float32([1, 2.5]))
    0.5
    """
    largest, founds, wanteds = 0.0, found.reshape(-1), wanted.reshape(-1)
    for start in range(0, len(founds), _SLICE):
        part = slice(start, start + _SLICE)
        some, others = founds[part], wanteds[part]
        with np.errstate(invalid="ignore", over="ignore"):
            gaps = np.abs(dtypes.to_floats(some).astype(np.float64) - dtypes.to_floats(others))
        gaps[dtypes.flat_bits(some) == dtypes.flat_bits(others)] = 0
        largest = max(largest, float(np.max(np.where(np.isnan(gaps), np.inf, gaps), initial=0)))
    return largest


def check_positive(name: str, value: float) -> None:
    """Checks a step or an error.

    Raises:
      Error: it is not positive and finite.
    """
    if not (isinstance(value, int | float | np.number) and value > 0 and np.isfinite(np.float32(value))):
        raise Error(f"{name}: expected a positive finite number, found {value}")


def _below(step: float) -> float:
    """The largest step that the wire carries and that is no larger."""
    found = round_step(step)
    return found if found <= step else round_step(found * (1 - 1 / 128))


def _smaller(block: Dense | Sparse, old: np.ndarray, new: np.ndarray) -> Block:
    """The block, or the exact one where that is smaller: measured, unless a rough guess leaves no doubt."""
    bits = dtypes.flat_bits(new)
    moves = (bits - dtypes.flat_bits(old)).view(f"<i{bits.itemsize}")
    if _magnitude(moves, old.size) > _magnitude(block.values, old.size) + _CLOSE:
        return block
    return min(block, Exact(new), key=lambda candidate: sizes.bits(candidate, old))


def _magnitude(values: np.ndarray, size: int) -> float:
    """The bits of the integers' magnitudes, a mean over all weights of the leaf."""
    flat = values.reshape(-1)
    parts = (flat[start : start + _SLICE] for start in range(0, len(flat), _SLICE))
    return sum(float(np.log2(1 + np.abs(part.astype(np.float64))).sum()) for part in parts) / max(size, 1)
