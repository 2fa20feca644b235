"""Bits and error of the ways to send a leaf's change, estimated on a sample of it, and the best of them at a slope."""

import math
from typing import NamedTuple

import numpy as np

from updcomp.lossy import low_rank, rounding, sampling, sizes
from updcomp.wire import dtypes, tokens
from updcomp.wire.increments import round_step

_FINEST = 2.0**-100  # spacing


class Choice(NamedTuple):
    """A way to send a leaf."""

    kind: str  # kept, rounded, factors or exact
    bits: float
    error: float  # squared, with sensitivities
    spacing: float = 0.0  # of what is rounded
    step: float = 0.0  # that it is multiplied by
    right: low_rank.Right | None = None  # of factors


def slope_of(spacing: float) -> float:
    """The squared error that a bit is worth where changes are rounded to multiples of this spacing.

    At high rates a weight has the error spacing^2 / 12, and log2(1 / spacing) + c bits.
    """
    return spacing**2 * math.log(2) / 6


def choices(leaf: sampling.Leaf, spacing: float) -> list[Choice]:
    """The ways to send a leaf, each as it is best where others are rounded to multiples of a spacing.

    Args:
      leaf: surveyed.
      spacing: of weights whose sensitivity is 1.

    Returns:
      At most one of every kind.
    """
    slope, weight = slope_of(spacing), leaf.weight
    found = [kept(leaf), Choice("exact", leaf.exact_bits, 0)]
    if weight > 0:
        found.append(_rounded(leaf, spacing / math.sqrt(weight)))
    if leaf.spectrum is not None and weight > 0:
        rank, step = low_rank.best(leaf.spectrum, slope / weight)
        if (right := low_rank.rounded_right(leaf.spectrum, rank, step)) is not None:
            found.append(_factors(leaf, right))
    return found


def kept(leaf: sampling.Leaf) -> Choice:
    """To send nothing of a leaf."""
    return Choice("kept", 0, leaf.weight * leaf.energy)


def best(leaf: sampling.Leaf, spacing: float, kinds: tuple[str, ...]) -> Choice:
    """The choice of least error + slope * bits among these kinds."""
    slope = slope_of(spacing)
    allowed = [choice for choice in choices(leaf, spacing) if choice.kind in kinds]
    return min(allowed or [kept(leaf)], key=lambda choice: choice.error + slope * choice.bits)


def _rounded(leaf: sampling.Leaf, spacing: float) -> Choice:
    if not _FINEST <= spacing <= 1 / _FINEST:
        return Choice("exact", leaf.exact_bits, 0)  # as a float32, the step is no normal number
    flat = rounding.quantised(leaf.change.reshape(-1), spacing, dithered=True)
    integers = flat.reshape(leaf.change.shape).astype(np.float64)
    if not np.abs(integers).max(initial=0) < 2**31:
        return Choice("exact", leaf.exact_bits, 0)
    if not integers.any():
        return kept(leaf)
    step = round_step(spacing)
    return Choice("rounded", _bits(leaf, integers, spacing), _error(leaf, integers * step), spacing, step)


def _factors(leaf: sampling.Leaf, right: low_rank.Right) -> Choice:
    left = low_rank.left(leaf.change, right)
    added = left.astype(np.float64) @ right.integers.T.astype(np.float64) * right.step
    bits = _column_bits(left, leaf.counts) + _column_bits(right.integers, np.ones(len(right.integers)))
    return Choice("factors", bits + sizes.HEADER_BITS, _error(leaf, added), right=right)


def _error(leaf: sampling.Leaf, added: np.ndarray) -> float:
    """The squared error of the leaf that a device has, each weight's times its sensitivity."""
    olds = dtypes.to_floats(leaf.old)
    result = dtypes.to_floats(dtypes.round_floats(olds + added.astype(olds.dtype), leaf.old.dtype))
    errors = dtypes.to_floats(leaf.new).astype(np.float64) - result
    return float((leaf.counts[:, None] * leaf.sensitivity * errors**2).sum())


def _bits(leaf: sampling.Leaf, integers: np.ndarray, spacing: float) -> float:
    """Bits of the integers: of those that are not 0 and their places, or of all in classes or not."""
    weights = np.broadcast_to(leaf.counts[:, None], integers.shape).reshape(-1)
    symbols, _ = tokens.split(tokens.fold(integers.reshape(-1).astype(np.int64)))
    extra = float(tokens.widths(symbols) @ weights[symbols >= tokens.DIRECT])
    total = float(weights.sum())
    sent = float(weights[symbols > 0].sum())
    together = _entropy(np.bincount(symbols, weights)[None])
    if sent < rounding.SPARSE_DENSITY * total:
        values = _entropy(np.bincount(symbols[symbols > 0], weights[symbols > 0], minlength=1)[None])
        return sizes.HEADER_BITS + extra + values + _entropy(np.array([[sent, total - sent]]))
    index = sampling.classes(leaf).reshape(-1).astype(np.int64) * tokens.COUNT + symbols
    counts = np.bincount(index, weights, minlength=tokens.COUNT << 6).reshape(-1, tokens.COUNT)
    return sizes.HEADER_BITS + extra + min(together, _entropy(counts) + _class_bits(leaf, spacing))


def _class_bits(leaf: sampling.Leaf, spacing: float) -> float:
    """Of the classes of rows and columns themselves, in which a line of zeros moves by half a unit in all."""
    parts = ((leaf.rows - np.log2(spacing), leaf.columns, 0), (leaf.columns, leaf.rows - np.log2(spacing), 1))
    found = 0.0
    for own, others, axis in parts:
        floor = 0.5 / len(others) / 2.0 ** float(np.median(others))
        classes = np.rint(2 * np.log2(2.0**own + floor)).astype(np.int64)
        weights = leaf.counts if axis == 0 else np.ones(len(own))
        found += _entropy(np.bincount(classes - classes.min(), weights)[None])
    return found


def _column_bits(integers: np.ndarray, counts: np.ndarray) -> float:
    """Of the integers of a factor, each column with its own frequencies."""
    found, scale = 0.0, float(counts.sum()) / max(len(counts), 1)
    for column in integers.T:
        symbols, _ = tokens.split(tokens.fold(column.astype(np.int64)))
        found += _entropy(np.bincount(symbols)[None] * scale) + scale * float(tokens.widths(symbols).sum())
    return found


def _entropy(counts: np.ndarray) -> float:
    """Bits of symbols with these counts in each row."""
    sums = counts.sum(axis=1, keepdims=True)
    return float((counts * np.log2(np.maximum(sums, 1e-300) / np.maximum(counts, 1e-300))).sum())
