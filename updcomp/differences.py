"""The packet between two models whose leaves are read when they are asked for, exact or lossy."""

import functools
import sys
from collections.abc import Iterable

import numpy as np

from updcomp.wire import container, dtypes, structure
from updcomp.wire.errors import BudgetError, CostError, Error, LeafError
from updcomp.wire.increments import round_step
from updcomp.wire.kind import Block
from updcomp.wire.kinds.dense import Dense
from updcomp.wire.kinds.exact import Exact
from updcomp.wire.kinds.sparse import Sparse
from updcomp.wire.packet import LazyBlocks, Packet

_LOSSY = ("float16", "bfloat16", "float32", "float64")
_SPARSE_DENSITY = 1 / 64  # below it, coding the positions of what changed beats coding every weight
_BISECTIONS = 20
_MOST_TOLD = 20  # names of leaves in a message


def start(
    before: dtypes.Model, after: dtypes.Model, *, allow_new: bool
) -> tuple[dtypes.Model, structure.Structure | None]:
    """What an update is relative to, and how the leaves of both models differ: by nothing that is not allowed.

    Args:
      before: the model that the device holds.
      after: the one that it should hold.
      allow_new: whether leaves may come and go.

    Returns:
      The first model, as `structure.start` gives it where leaves come or go, and how they do.
    """
    changed = structure.between(dtypes.specs(before), dtypes.specs(after)) if allow_new else None
    return structure.start(before, changed), changed


def names(before: dtypes.Model, after: dtypes.Model, *, common_only: bool = False) -> list[str]:
    """The leaves that both models have, checked to be alike.

    Args:
      before: the model that the device holds.
      after: the one that it should hold.
      common_only: whether either may have leaves that the other lacks.

    Returns:
      Names in sorted order.

    Raises:
      LeafError: a leaf is missing in one of them, or has another shape or dtype; the message lists all such leaves.
    """
    olds, news = dtypes.specs(before), dtypes.specs(after)
    both = [name for name in olds if name in news]
    told = [
        f"{name!r} is {_said(olds[name])} in the old one and {_said(news[name])} in the new one"
        for name in both
        if olds[name] != news[name]
    ]
    alone = {
        "old": [name for name in olds if name not in news],
        "new": [name for name in news if name not in olds],
    }
    if not common_only:
        told += [f"{listed(leaves)} in the {where} one only" for where, leaves in alone.items() if leaves]
    if not told:
        return both
    wanted = "expected the same in both models"
    is_resized = len(told) > sum(map(bool, alone.values()))
    advice = (
        "; allow_new=True (--allow-new) sends them whole"
        if common_only or is_resized
        else "; common_only=True (--common-only) leaves these out, allow_new=True (--allow-new) sends them"
    )
    raise LeafError(f"leaves: {wanted}, found {'; '.join(told)}{advice}")


def listed(found: Iterable[str]) -> str:
    """Names of leaves in a message: the first ones, and how many more there are.

    >>> listed(["a", "b"])
    "'a', 'b'"
    """
    first = list(found)
    more = f" and {len(first) - _MOST_TOLD} more" if len(first) > _MOST_TOLD else ""
    return ", ".join(map(repr, first[:_MOST_TOLD])) + more


def _said(spec: dtypes.Spec) -> str:
    return f"{dtypes.name(spec.dtype)} {spec.shape}"


def between(
    before: dtypes.Model,
    after: dtypes.Model,
    *,
    step: float | None = None,
    max_bytes: int | None = None,
    budget: float = 1.0,
    common_only: bool = False,
) -> Packet:
    """The packet that turns one model into another; its blocks are made when they are asked for, and not kept.

    Args:
      before: the model that the device holds: leaf name -> array, such as an open file's.
      after: the one that it should hold.
      step: quantisation step; None for an exact update.
      max_bytes: the largest size of the encoded update, in place of a step.
      budget: with `max_bytes`, how much applying may take.
      common_only: whether leaves that one of them lacks are left out: the device keeps its own, and gets no others.

    Returns:
      A packet for `container.encode(packet, before)`; both models must stay open as long as it is used.

    Raises:
      LeafError: as `names`.
      BudgetError: not even the smallest update fits in `max_bytes`.
      CostError: applying even that would take more than the budget.
      Error: both a step and `max_bytes` are given.

    >>> before, after = {"w": np.zeros(2, np.float32)}, {"w": np.ones(2, np.float32)}
    >>> between(before, after).blocks["w"].new.tolist()
    [1.0, 1.0]
    """
    if step is not None and max_bytes is not None:
        raise Error("step and max_bytes: expected at most one of them, found both; leave one out")
    both = names(before, after, common_only=common_only)
    if max_bytes is None:
        return _packet(both, before, after, None if step is None else round_step(step))
    return _within_bytes(both, before, after, max_bytes, budget)


def _packet(both: list[str], before: dtypes.Model, after: dtypes.Model, step: float | None) -> Packet:
    return Packet(LazyBlocks({name: functools.partial(_block, name, before, after, step) for name in both}))


def _block(name: str, before: dtypes.Model, after: dtypes.Model, step: float | None) -> Block:
    new = after[name]
    if step is None or dtypes.name(new.dtype) not in _LOSSY:
        return Exact(new)
    values = np.rint(_delta(before[name], new) / step)
    if not np.all(np.abs(values) < 2**31):  # also where a weight is not finite
        return Exact(new)
    integers = values.astype(np.int32)
    positions = np.flatnonzero(integers)
    if len(positions) < _SPARSE_DENSITY * integers.size:
        return Sparse(positions, integers.ravel()[positions], step)
    return Dense(integers, step)


def _delta(old: np.ndarray, new: np.ndarray) -> np.ndarray:
    """New - old in float64: zero where the bits are equal, not finite where a changed weight is not."""
    with np.errstate(invalid="ignore", over="ignore"):
        delta = np.asarray(dtypes.to_floats(new).astype(np.float64) - dtypes.to_floats(old))  # of 0-d leaves too
    delta[(dtypes.flat_bits(old) == dtypes.flat_bits(new)).reshape(delta.shape)] = 0
    return delta


def _within_bytes(both: list[str], before: dtypes.Model, after: dtypes.Model, max_bytes: int, budget: float) -> Packet:
    """Bisects the logarithm of the step between one that sends no lossy change and float32's resolution of it."""
    lossy = [name for name in both if dtypes.name(dtypes.specs(before)[name].dtype) in _LOSSY]
    deltas = (np.abs(_delta(before[name], after[name])) for name in lossy)
    largest = max((float(np.max(delta, initial=0, where=np.isfinite(delta))) for delta in deltas), default=0.0)
    coarse = round_step(min(4 * largest, 1e38)) if largest > 0 else 1.0
    best = _packet(both, before, after, coarse)
    size = len(container.encode(best, before, budget=budget))
    if size > max_bytes:
        raise BudgetError(f"max_bytes: expected at least {size} (the smallest possible update), found {max_bytes}")
    exact, exact_size = _sized(_packet(both, before, after, None), before, budget)
    if exact_size <= max_bytes:
        return exact
    low, high = np.log2(coarse) - 40, np.log2(coarse)
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        packet, size = _sized(_packet(both, before, after, round_step(2.0**middle)), before, budget)
        if size <= max_bytes:
            best, high = packet, middle
        else:
            low = middle
    return best


def _sized(packet: Packet, before: dtypes.Model, budget: float) -> tuple[Packet, int]:
    try:
        return packet, len(container.encode(packet, before, budget=budget))
    except CostError:
        return packet, sys.maxsize  # no device takes it
