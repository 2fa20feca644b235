"""The packet between two models whose leaves are read when they are asked for, exact or lossy."""

import functools
from collections.abc import Iterable, Mapping

import numpy as np

from updcomp.lossy import rounding, sensitivities
from updcomp.lossy.budget import Found, meet
from updcomp.wire import container, dtypes, structure
from updcomp.wire.errors import Error, LeafError
from updcomp.wire.increments import round_step
from updcomp.wire.kind import Block
from updcomp.wire.kinds.exact import Exact
from updcomp.wire.packet import LazyBlocks, Packet

_MOST_TOLD = 20  # names of leaves in a message


def start(
    before: dtypes.Model, after: dtypes.Model, *, allow_new: bool, common_only: bool
) -> tuple[dtypes.Model, structure.Structure | None]:
    """What an update is relative to, and how the leaves of both models differ: by nothing that is not allowed.

    Args:
      before: the model that the device holds.
      after: the one that it should hold.
      allow_new: whether leaves may come and go.
      common_only: as in `names`; it excludes `allow_new`.

    Returns:
      The first model, as `structure.start` gives it where leaves come or go, and how they do.
    """
    if allow_new and common_only:
        raise Error("allow_new, common_only: expected at most one of them, found both; leave one out")
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
    max_error: float | None = None,
    max_bytes: int | None = None,
    sensitivity: Mapping[str, np.ndarray | float] | None = None,
    budget: float = 1.0,
    compact: bool = False,
    common_only: bool = False,
    allow_new: bool = False,
) -> Packet:
    """The packet that turns one model into another; its blocks are made when they are asked for, and not kept.

    Args:
      before: the model that the device holds: leaf name -> array, such as an open file's.
      after: the one that it should hold.
      step: quantisation step; None for an exact update.
      max_error: how far a weight may be from the new one, in place of a step.
      max_bytes: the largest size of the encoded update, in place of a step.
      sensitivity: with `max_bytes`, as in `within_bytes`.
      budget: with `max_bytes`, how much applying may take.
      compact: whether the packet is encoded so.
      common_only: whether leaves that one of them lacks are left out: the device keeps its own, and gets no others.
      allow_new: whether leaves may come and go.

    Returns:
      A packet for `container.encode(packet, before)`; both models must stay open as long as it is used.

    Raises:
      LeafError: as `names`.
      BudgetError: not even the smallest update fits in `max_bytes`.
      CostError: applying even that would take more than the budget.
      Error: more than one of `step`, `max_error` and `max_bytes` is given, or one of them is not positive.

    >>> before, after = {"w": np.zeros(2, np.float32)}, {"w": np.ones(2, np.float32)}
    >>> between(before, after).blocks["w"].new.tolist()
    [1.0, 1.0]
    """
    check_one(step, max_error, max_bytes, sensitivity)
    if max_bytes is not None:
        return within_bytes(
            before,
            after,
            max_bytes,
            sensitivity=sensitivity,
            budget=budget,
            compact=compact,
            common_only=common_only,
            allow_new=allow_new,
        ).packet
    base, changed = start(before, after, allow_new=allow_new, common_only=common_only)
    both = names(base, after, common_only=common_only)
    make = functools.partial(_block, step=step and round_step(step), max_error=max_error)
    blocks = LazyBlocks({name: functools.partial(make, name, base, after) for name in both})
    return Packet(blocks, structure=changed, compact=compact)


def check_one(
    step: float | None, max_error: float | None, max_bytes: int | None, sensitivity: object | None = None
) -> None:
    """Checks that at most one of them is given, and is positive.

    Raises:
      Error: it is not so; the message names them.
    """
    given = {
        name: value
        for name, value in (("step", step), ("max_error", max_error), ("max_bytes", max_bytes))
        if value is not None
    }
    if len(given) > 1:
        raise Error(f"{', '.join(given)}: expected at most one of them, found {len(given)}; leave out the others")
    if sensitivity is not None and max_bytes is None:
        raise Error("sensitivity: expected with max_bytes alone, which it shares out among the leaves")
    for name, value in given.items():
        rounding.check_positive(name, value)


def within_bytes(
    before: dtypes.Model,
    after: dtypes.Model,
    max_bytes: int,
    *,
    sensitivity: Mapping[str, np.ndarray | float] | None = None,
    metadata: tuple[container.Texts, container.Texts] | None = None,
    budget: float = 1.0,
    compact: bool = False,
    common_only: bool = False,
    allow_new: bool = False,
) -> Found:
    """The update of least error that is at most so long.

    Args:
      before: the model that the device holds: leaf name -> array, such as an open file's.
      after: the one that it should hold.
      max_bytes: the largest size of the encoded update.
      sensitivity: leaf name -> what a squared error counts, of the leaf's shape or one number; all count 1 without it.
      metadata: as in `container.encode`.
      budget: how much applying may take.
      compact: as in `container.encode`.
      common_only: as in `between`.
      allow_new: as in `between`.

    Returns:
      The packet, and the update itself.

    Raises:
      LeafError, BudgetError, CostError: as `between`.
    """
    base, changed = start(before, after, allow_new=allow_new, common_only=common_only)
    both = names(base, after, common_only=common_only)
    weights = sensitivities.of(sensitivity, dtypes.specs(base), both)

    def encode(packet: Packet) -> bytes:
        sent = packet._replace(structure=changed)
        return container.encode(sent, before, metadata=metadata, budget=budget, compact=compact)

    found = meet(both, base, after, max_bytes, weights, encode)
    return found._replace(packet=found.packet._replace(structure=changed, compact=compact))


def _block(
    name: str, before: dtypes.Model, after: dtypes.Model, *, step: float | None, max_error: float | None
) -> Block:
    new = after[name]
    if (step is None and max_error is None) or not dtypes.takes_increments(new.dtype):
        return Exact(new)
    old, new = dtypes.hold(before[name]), dtypes.hold(new)
    if max_error is not None:
        return rounding.within(old, new, max_error)
    assert step is not None, "one of them is given"
    return rounding.rounded(old, new, step)
