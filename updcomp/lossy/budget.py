"""The lossy update of least error in a number of bytes: one slope of error to bytes for all leaves."""

import functools
import math
from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np

from updcomp.lossy import low_rank, rates, rounding, sampling, sizes
from updcomp.wire import dtypes
from updcomp.wire.errors import BudgetError, CostError, of_leaf
from updcomp.wire.kind import Block
from updcomp.wire.kinds.exact import Exact
from updcomp.wire.packet import LazyBlocks, Packet

_AIM = 0.995  # of the bytes that are allowed
_LEAST = 0.99
_ATTEMPTS = 12
_CLOSE = 0.002  # of the bits that are looked for
_STEPS = 16  # of that search
_OCTAVES = 40  # below the change's own size that a spacing can be
_ALL = ("kept", "rounded", "factors", "exact")
_MAYBE = 1.25  # by which the estimate of an exact update may be too large

Encode = Callable[[Packet], bytes]


class Found(NamedTuple):
    """An update within the bytes that are allowed."""

    packet: Packet
    update: bytes


class _Survey(NamedTuple):
    """What is known of the leaves that change."""

    leaves: dict[str, sampling.Leaf]
    exact: dict[str, float]  # name -> bits of each that has to be exact


class _Plan(NamedTuple):
    """A way to send every leaf."""

    choices: dict[str, rates.Choice]
    spacing: float  # its logarithm

    @property
    def error(self) -> float:
        return sum(choice.error for choice in self.choices.values())

    @property
    def bits(self) -> float:
        return sum(choice.bits for choice in self.choices.values())

    @property
    def kinds(self) -> dict[str, tuple[str, ...]]:
        return {name: (choice.kind,) for name, choice in self.choices.items()}


def meet(
    names: list[str],
    before: dtypes.Model,
    after: dtypes.Model,
    max_bytes: int,
    sensitivity: Callable[[str], np.ndarray],
    encode: Encode,
) -> Found:
    """The update of least error that is at most so long, and where it can be hardly shorter.

    Args:
      names: of the leaves that both models have.
      before: the model that the device holds.
      after: the one that it should hold.
      max_bytes: of the update.
      sensitivity: name -> what a squared error of each of its weights counts, of the leaf's shape or ().
      encode: packet -> update.

    Returns:
      A packet whose blocks are made when they are asked for, and its update.

    Raises:
      BudgetError: not even the smallest update is so short.
      CostError: applying even that would take more than is allowed.
    """
    found = _survey(names, before, after, sensitivity)
    make = functools.partial(_packet, before, after)
    exactly = {name: rates.Choice("exact", 0, 0) for name in found.exact}
    smallest = Found(packet := make(exactly), encode(packet))
    base = len(smallest.update)
    if base > max_bytes:
        raise BudgetError(f"max_bytes: expected at least {base} (the smallest possible update), found {max_bytes}")
    if sum(leaf.exact_bits for leaf in found.leaves.values()) < 8 * _MAYBE * (max_bytes - base):
        everything = make(exactly | {name: rates.Choice("exact", 0, 0) for name in found.leaves})
        if (update := _encoded(everything, encode)) is not None and len(update) <= max_bytes:
            return Found(everything, update)
    return _approach(found.leaves, max_bytes, smallest, lambda plan: make(exactly | plan.choices), encode)


def _approach(
    leaves: dict[str, sampling.Leaf],
    max_bytes: int,
    smallest: Found,
    make: Callable[[_Plan], Packet],
    encode: Encode,
) -> Found:
    """Encodes what should be as long as is allowed until it is, each time knowing how wrong the last estimate was."""
    best, base, ratio = smallest, len(smallest.update), 1.0
    aim = base + _AIM * (max_bytes - base)
    tried = set[float]()
    for _ in range(_ATTEMPTS):
        wanted = 8 * (aim - base) / ratio
        plan = _solve(leaves, wanted)
        if plan.bits in tried or not plan.bits:
            break
        tried.add(plan.bits)
        packet = make(plan)
        update = _encoded(packet, encode)
        if update is None:
            ratio *= 2
            continue
        if len(update) <= max_bytes:
            best = max(best, Found(packet, update), key=lambda found: len(found.update))
            if len(update) >= _LEAST * max_bytes or plan.bits < (1 - 2 * _CLOSE) * wanted:
                break
        ratio = max(8 * (len(update) - base), 1) / plan.bits
    return best


def _encoded(packet: Packet, encode: Encode) -> bytes | None:
    try:
        return encode(packet)
    except CostError:
        return None  # no device takes it


def _survey(
    names: list[str], before: dtypes.Model, after: dtypes.Model, sensitivity: Callable[[str], np.ndarray]
) -> _Survey:
    found = _Survey({}, {})
    for name in names:
        old, new = dtypes.hold(before[name]), dtypes.hold(after[name])
        if dtypes.same_bits(old, new):
            continue
        leaf = None
        if dtypes.takes_increments(new.dtype):
            with of_leaf(name):
                leaf = sampling.survey(old, new, sensitivity(name))
        if leaf is None:
            found.exact[name] = sizes.bits(Exact(new), old)
        else:
            found.leaves[name] = leaf
    return found


def _solve(leaves: dict[str, sampling.Leaf], wanted: float) -> _Plan:
    """The plan of least error that takes at most so many bits.

    Bits fall as the spacing grows, with a jump where a large leaf is better sent in another way. A number of bits
    within a jump is met by finer spacings in the ways of one side, or by coarser ones in those of the other.
    """
    everything = dict.fromkeys(leaves, _ALL)
    fits, above = _search(leaves, everything, wanted, _start(leaves))
    if above is None or fits.bits >= (1 - 2 * _CLOSE) * wanted:
        return fits
    spent = (_search(leaves, plan.kinds, wanted, plan.spacing)[0] for plan in (fits, above))
    return min(fits, *spent, key=lambda plan: (plan.error, plan.bits))


def _start(leaves: dict[str, sampling.Leaf]) -> float:
    """log2 of the typical change of a weight, as its sensitivity counts."""
    energy = sum(leaf.energy * leaf.weight for leaf in leaves.values())
    size = sum(math.prod(leaf.shape) for leaf in leaves.values())
    return math.log2(max(math.sqrt(energy / max(size, 1)), 1e-37))


def _search(
    leaves: dict[str, sampling.Leaf], kinds: Mapping[str, tuple[str, ...]], wanted: float, start: float
) -> tuple[_Plan, _Plan | None]:
    """The plan at the smallest spacing found that takes no more bits, and at the largest that takes more, if any does.

    Every leaf is sent in one of its kinds. If all spacings take more bits, the first plan is that of the largest.
    """

    def at(spacing: float) -> _Plan:
        chosen = {name: rates.best(leaf, 2.0**spacing, kinds[name]) for name, leaf in leaves.items()}
        return _Plan(chosen, spacing)

    fits = above = None
    width, where = 1.0, start
    while (fits is None or above is None) and abs(where - start) < _OCTAVES:
        plan = at(where)
        fits, above = (plan, above) if plan.bits <= wanted else (fits, plan)
        where += -width if above is None else width
        width *= 1 if fits is None and above is None else 2
    if fits is None or above is None:
        return fits or _Plan({name: rates.kept(leaf) for name, leaf in leaves.items()}, where), above
    return _narrowed(at, wanted, fits, above)


def _narrowed(at: Callable[[float], _Plan], wanted: float, fits: _Plan, above: _Plan) -> tuple[_Plan, _Plan]:
    """The same nearer to each other, by secants of log(bits) and by halves."""
    for step in range(_STEPS):
        low, high = above.spacing, fits.spacing
        if fits.bits >= (1 - _CLOSE) * wanted or high - low < 1e-3:
            break
        share = 0.5
        if step % 3 < 2 and fits.bits > 0:
            goal = (1 - _CLOSE / 2) * wanted
            share = math.log(above.bits / goal) / math.log(above.bits / fits.bits)
        plan = at(low + (high - low) * min(max(share, 0.02), 0.98))
        fits, above = (plan, above) if plan.bits <= wanted else (fits, plan)
    return fits, above


def _packet(before: dtypes.Model, after: dtypes.Model, choices: dict[str, rates.Choice]) -> Packet:
    sent = {name: choice for name, choice in choices.items() if choice.kind != "kept"}
    return Packet(
        LazyBlocks({name: functools.partial(_block, name, before, after, choice) for name, choice in sent.items()})
    )


def _block(name: str, before: dtypes.Model, after: dtypes.Model, choice: rates.Choice) -> Block:
    new = dtypes.hold(after[name])
    if choice.kind == "exact":
        return Exact(new)
    old = dtypes.hold(before[name])
    if choice.right is None:
        return rounding.rounded(old, new, choice.spacing, choice.step)
    matrix = sampling.matrix_of(rounding.change(old, new))
    return low_rank.block(matrix, choice.right) or rounding.rounded(old, old, 1.0)
