"""The four functions on any pytree: diff, encode, apply, inspect."""

import functools
import sys
from collections.abc import Mapping
from typing import Any

import numpy as np

from updcomp import arrays
from updcomp.trees import HostModel, PyTree, subtrees_at, with_leaves
from updcomp.wire import container, dtypes, inspection, versions
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


def diff(
    old: PyTree, new: PyTree, *, step: float | None = None, max_bytes: int | None = None, budget: float = 1.0
) -> Packet:
    """The update between two models that exist: exact by default, or lossy.

    Lossy updates send q = round((new - old) / step) for every floating leaf, so no weight is further than half a step
    from the new one (and the roundings of the step and of its dtype); integer, float8 and non-finite leaves stay exact.

    Args:
      old: the model that the device holds, any pytree of arrays.
      new: the model that it should hold, with the same leaf paths, shapes and dtypes.
      step: quantisation step, in units of the weights; it is rounded to 8 significant bits.
      max_bytes: the step is found by bisection so that the encoded update is at most this long. Excludes `step`.
      budget: with `max_bytes`, how much applying may take, as in `encode`.

    Returns:
      A packet for `encode(packet, old)`.

    Raises:
      LeafError: a leaf is missing, or has another shape or dtype.
      BudgetError: not even the smallest update fits in `max_bytes`; the message says its size.
      CostError: applying even that would take more than the budget.

    >>> old, new = {"w": np.zeros(3, np.float32)}, {"w": np.float32([0, 0.25, 0])}
    >>> packet = diff(old, new)
    >>> apply(encode(packet, old), old)["w"].tolist()
    [0.0, 0.25, 0.0]
    """
    if step is not None and max_bytes is not None:
        raise Error("step and max_bytes: expected at most one of them, found both; leave one out")
    before, after = HostModel(old), HostModel(new)
    _check_same_leaves(before.specs, after.specs)
    is_split = arrays.spans_devices((old, new))
    # What one device has is brought to the host once.
    held_before, held_after = (model if is_split else dict(model) for model in (before, after))
    if max_bytes is None:
        packet = _packet(held_before, held_after, None if step is None else round_step(step))
    else:
        packet = _within_bytes(held_before, held_after, max_bytes, budget)
    return packet if is_split else packet._replace(blocks=dict(packet.blocks))


def pack(blocks: PyTree, deployed: PyTree, *, seed: int = 0) -> Packet:
    """A packet of blocks that stand where the leaves of a model do: a tree in, a packet out.

    Args:
      blocks: a tree like `deployed` with a block of `updcomp.wire.kinds` in place of each leaf that travels, such as
        `delta.to_block`, `factorize.to_block` and `subspace.to_block` make them; None in place of all others.
      deployed: the model that the update starts from.
      seed: of `Seeded` blocks and of bases.

    Returns:
      A packet for `encode(packet, deployed)`.

    Raises:
      LeafError: something else than a block or None stands in the place of a leaf.

    >>> from updcomp import delta
    >>> deployed, new = {"w": np.zeros(3, np.float32), "b": np.zeros(2)}, np.float32([0, 0.25, -0.5])
    >>> update = encode(pack({"w": delta.to_block(deployed["w"], new, bits=8), "b": None}, deployed), deployed)
    >>> [round(float(weight), 2) for weight in apply(update, deployed)["w"]]
    [0.0, 0.25, -0.5]
    """
    try:
        found = subtrees_at(deployed, blocks)
    except ValueError as error:
        raise LeafError(f"blocks: expected a tree like the deployed model; {error}") from None
    for name, block in found.items():
        if block is not None and not versions.is_block(block):
            raise LeafError(f"leaf {name!r}: expected a block or None in its place, found {type(block).__name__}")
    return Packet({name: block for name, block in found.items() if block is not None}, seed)


def encode(packet: Packet, deployed: PyTree, *, budget: float = 1.0) -> bytes:
    """The bytes of an update: what travels, with everything it needs counted in.

    Args:
      packet: from `diff` or a method.
      deployed: the model that it starts from.
      budget: how much work and memory applying it may take, in proportion to the model: 1 is what devices allow by
        default, some 2 s of one core for each 100 MB; `updcomp.wire.costs` has the numbers.

    Returns:
      An update file's content.

    Raises:
      LeafError: a block does not fit its leaf.
      CostError: applying it takes more than the budget; the message says which one would do.
      Error: the first argument is not a packet.
    """
    if not isinstance(packet, Packet):
        raise Error(
            f"packet: expected a Packet from updcomp.diff or a method, found {type(packet).__name__}; "
            "did you mean updcomp.encode(updcomp.diff(old, new), old)?"
        )
    return container.encode(packet, HostModel(deployed), budget=budget)


def apply(update: bytes, deployed: PyTree, *, budget: float = 1.0) -> PyTree:
    """The model that an update makes of a deployed one, bit for bit what a device gets.

    Args:
      update: from `encode`.
      deployed: the model that the update starts from.
      budget: how much work and memory it may take, as in `encode`; infinity allows everything.

    Returns:
      A tree with the structure, dtypes, shapes, array types and shardings of `deployed`; leaves that the update keeps
      are the same arrays.

    Raises:
      WrongBaseError: `deployed` is not the model that the update starts from.
      CorruptUpdateError: the bytes are damaged.
      CostError: the update takes more than the budget.
      Error: the first argument is not bytes.
    """
    _check_bytes(update, "updcomp.apply(updcomp.encode(packet, deployed), deployed)")
    return with_leaves(deployed, container.changed_leaves(update, HostModel(deployed), budget=budget))


def inspect(update: bytes, deployed: PyTree | None = None) -> dict[str, Any]:
    """What an update's bytes say by themselves: version, kinds, counts, bytes per part, fingerprints.

    Args:
      update: from `encode`.
      deployed: the model that the update starts from, to have the name, shape and dtype of each block's leaf too.

    Returns:
      A dict that JSON can hold.

    Raises:
      CorruptUpdateError: the bytes are damaged.
      WrongBaseError: `deployed` is not the model that the update starts from.
      Error: the first argument is not bytes.
    """
    _check_bytes(update, "updcomp.inspect(updcomp.encode(packet, deployed))")
    return inspection.inspect(update, None if deployed is None else HostModel(deployed))


def _check_bytes(update: object, call: str) -> None:
    if not isinstance(update, bytes | bytearray | memoryview):
        raise Error(
            f"update: expected bytes from updcomp.encode or an update file, found {type(update).__name__}; "
            f"did you mean {call}?"
        )


def _check_same_leaves(before: Mapping[str, dtypes.Spec], after: Mapping[str, dtypes.Spec]) -> None:
    if missing := sorted(before.keys() ^ after.keys()):
        where = "old" if missing[0] in before else "new"
        raise LeafError(f"leaf {missing[0]!r}: expected in both models, found in the {where} one only")
    for name, leaf in before.items():
        if (found := after[name]) != leaf:
            expected = f"{dtypes.name(leaf.dtype)} {leaf.shape}"
            raise LeafError(f"leaf {name!r}: expected {expected}, found {dtypes.name(found.dtype)} {found.shape}")


def _packet(before: dtypes.Model, after: dtypes.Model, step: float | None) -> Packet:
    def block(name: str) -> Block:
        return _block(before[name], after[name], step)

    return Packet(LazyBlocks({name: functools.partial(block, name) for name in before}))


def _block(old: np.ndarray, new: np.ndarray, step: float | None) -> Block:
    if step is None or dtypes.name(old.dtype) not in _LOSSY:
        return Exact(new)
    values = np.rint(_delta(old, new) / step)
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
        delta = dtypes.to_floats(new).astype(np.float64) - dtypes.to_floats(old)
    delta[(dtypes.flat_bits(old) == dtypes.flat_bits(new)).reshape(delta.shape)] = 0
    return delta


def _within_bytes(before: dtypes.Model, after: dtypes.Model, max_bytes: int, budget: float) -> Packet:
    """Bisects the logarithm of the step between one that sends no lossy change and float32's resolution of it."""
    lossy = [name for name, leaf in dtypes.specs(before).items() if dtypes.name(leaf.dtype) in _LOSSY]
    deltas = (np.abs(_delta(before[name], after[name])) for name in lossy)
    largest = max((float(np.max(delta, initial=0, where=np.isfinite(delta))) for delta in deltas), default=0.0)
    coarse = round_step(min(4 * largest, 1e38)) if largest > 0 else 1.0
    best = _packet(before, after, coarse)
    size = len(container.encode(best, before, budget=budget))
    if size > max_bytes:
        raise BudgetError(f"max_bytes: expected at least {size} (the smallest possible update), found {max_bytes}")
    exact, exact_size = _sized(before, after, None, budget)
    if exact_size <= max_bytes:
        return exact
    low, high = np.log2(coarse) - 40, np.log2(coarse)
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        packet, size = _sized(before, after, round_step(2.0**middle), budget)
        if size <= max_bytes:
            best, high = packet, middle
        else:
            low = middle
    return best


def _sized(before: dtypes.Model, after: dtypes.Model, step: float | None, budget: float) -> tuple[Packet, int]:
    packet = _packet(before, after, step)
    try:
        return packet, len(container.encode(packet, before, budget=budget))
    except CostError:
        return packet, sys.maxsize  # no device takes it
