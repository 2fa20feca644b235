"""The functions on any pytree: diff, encode, apply, inspect, pack, squash."""

from collections.abc import Mapping, Sequence
from typing import Any

from updcomp import arrays, changes, differences
from updcomp.trees import HostModel, PyTree, numbers_at, rebuilt, subtrees_at, with_leaves
from updcomp.wire import container, dtypes, inspection, recent, squashing, versions
from updcomp.wire.errors import Error, LeafError
from updcomp.wire.packet import Packet


def diff(
    old: PyTree,
    new: PyTree,
    *,
    step: float | None = None,
    max_error: float | None = None,
    max_bytes: int | None = None,
    sensitivity: PyTree | None = None,
    budget: float = 1.0,
    compact: bool = False,
    common_only: bool = False,
    allow_new: bool = False,
) -> Packet:
    """The update between two models that exist: exact by default, or lossy, by one of a step, an error and a size.

    An exact one copies no model: leaves that are the same object or equal have no block, arrays on accelerators are
    compared there, and of a leaf in which few weights changed these alone come to the host.

    With a step, q = round((new - old) / step) is sent of every floating leaf, so no weight is further than half a step
    from the new one (and the roundings of the step and of its dtype). With `max_error` no weight of the result, as the
    device holds it in the leaf's dtype, is further than that from the new one. With `max_bytes` each leaf is sent as it
    errs least for its bytes: rounded, as a product of thin matrices (a merged adapter is found again), exactly, or not
    at all. Integer, float8 and non-finite leaves stay exact.

    Args:
      old: the model that the device holds, any pytree of arrays.
      new: the model that it should hold, with the same leaf paths, shapes and dtypes.
      step: quantisation step, in units of the weights; it is rounded to 8 significant bits.
      max_error: how far a weight may be from the new one. Excludes `step`.
      max_bytes: the encoded update is at most this long, and hardly shorter where more bytes would help. Excludes both.
      sensitivity: with `max_bytes`, what a squared error of a weight counts: a tree like `new`, of arrays or one
        number for each leaf, all at least 0, such as `contribution.squared_gradients` gives; default: all count 1.
      budget: with `max_bytes`, how much applying may take, as in `encode`.
      compact: whether the packet is encoded so, as in `encode`.
      common_only: whether leaves that one of them lacks are left out: the device keeps its own, and gets no others.
      allow_new: whether the device gets leaves that only the new one has, or has in another shape or dtype, and gives
        up those that only the old one has.

    Returns:
      A packet for `encode(packet, old)`; both models must stay as they are until then.

    Raises:
      LeafError: a leaf is missing, or has another shape or dtype; the message lists all of them.
      BudgetError: not even the smallest update fits in `max_bytes`; the message says its size.
      CostError: applying even that would take more than the budget.
      Error: more than one of `step`, `max_error` and `max_bytes`, or one that is not positive.

    >>> import numpy as np
    >>> old, new = {"w": np.zeros(3, np.float32)}, {"w": np.float32([0, 0.25, 0])}
    >>> packet = diff(old, new)
    >>> apply(encode(packet, old), old)["w"].tolist()
    [0.0, 0.25, 0.0]
    """
    differences.check_one(step, max_error, max_bytes, sensitivity)
    before, after = HostModel(old), HostModel(new)
    if step is None and max_error is None and max_bytes is None:
        start, changed = differences.start(before, after, allow_new=allow_new, common_only=common_only)
        both = differences.names(start, after, common_only=common_only)
        added = () if changed is None else changed.added
        return Packet(changes.find(old, new, both, added=added), structure=changed, compact=compact)
    is_split = arrays.spans_devices((old, new))
    # What one device has is brought to the host once.
    held_before, held_after = (model if is_split else dict(model) for model in (before, after))
    packet = differences.between(
        held_before,
        held_after,
        step=step,
        max_error=max_error,
        max_bytes=max_bytes,
        sensitivity=None if sensitivity is None else numbers_at(new, sensitivity),
        budget=budget,
        compact=compact,
        common_only=common_only,
        allow_new=allow_new,
    )
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

    >>> import numpy as np
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


def encode(packet: Packet, deployed: PyTree, *, budget: float = 1.0, compact: bool = False) -> bytes:
    """The bytes of an update: what travels, with everything it needs counted in.

    Args:
      packet: from `diff` or a method.
      deployed: the model that it starts from.
      budget: how much work and memory applying it may take, in proportion to the model: 1 is what devices allow by
        default, some 2 s of one core for each 100 MB; `updcomp.wire.costs` has the numbers.
      compact: whether the two fingerprints are of 8 bytes each in place of 16, and stand for the checksum too, which
        saves 20 bytes; they are so too if the packet says it. That one of N wrong models is taken for the right one
        then has a chance of N / 2^64.

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
    base: dtypes.Model = HostModel(deployed)
    if isinstance(packet.blocks, changes.Changes):  # which are made of the very leaf that is hashed
        base = recent.Recent(base)
        packet = packet._replace(blocks=packet.blocks.on(base))
    return container.encode(packet, base, budget=budget, ahead=not arrays.spans_devices(deployed), compact=compact)


def apply(update: bytes, deployed: PyTree, *, budget: float = 1.0) -> PyTree:
    """The model that an update makes of a deployed one, bit for bit what a device gets.

    Args:
      update: from `encode`.
      deployed: the model that the update starts from.
      budget: how much work and memory it may take, as in `encode`; infinity allows everything.

    Returns:
      A tree with the structure, dtypes, shapes, array types and shardings of `deployed`; leaves that the update keeps
      are the same arrays. Where leaves come or go, nested dicts, the new leaves NumPy arrays, or JAX arrays on the
      default device if the tree has some.

    Raises:
      LeafError: leaves come or go, and the tree has other nodes than dicts.
      WrongBaseError: `deployed` is not the model that the update starts from.
      CorruptUpdateError: the bytes are damaged.
      CostError: the update takes more than the budget.
      Error: the first argument is not bytes.
    """
    _check_bytes(update, "updcomp.apply(updcomp.encode(packet, deployed), deployed)")
    is_split, model = arrays.spans_devices(deployed), HostModel(deployed)
    leaves = container.changed_leaves(update, model, budget=budget, ahead=not is_split)
    changed = container.structure_of(update)
    return with_leaves(deployed, leaves) if changed is None else rebuilt(deployed, leaves, changed)


def squash(
    updates: Sequence[bytes],
    deployed: PyTree,
    *,
    metadata: Mapping[str, str] | None = None,
    budget: float = 1.0,
    compact: bool = False,
) -> bytes:
    """Several updates in a row as one: it makes the very model that they make, bit for bit.

    A leaf that one of them touches keeps its block, lossy or not; what several touch becomes exact. If an exact update
    between the first model and the last is smaller, it is that.

    Args:
      updates: the first starts from the deployed model, each other one from what the one before it makes.
      deployed: the model that the first starts from.
      metadata: of its model file, where an update was made between files that have some.
      budget: how much work and memory applying one update may take, as in `encode`.
      compact: as in `encode`.

    Returns:
      An update file's content; that it makes what the last one promises has been checked.

    Raises:
      WrongBaseError: an update does not start from what is before it.
      CorruptUpdateError: one is damaged.
      CostError: one takes more than the budget.
      Error: an argument is not bytes, or there is none, or the metadata are missing.

    >>> import numpy as np
    >>> models = [{"w": np.float32([number, 0])} for number in range(3)]
    >>> updates = [encode(diff(old, new), old) for old, new in zip(models, models[1:])]
    >>> apply(squash(updates, models[0]), models[0])["w"].tolist()
    [2.0, 0.0]
    """
    for update in updates:
        _check_bytes(update, "updcomp.squash([first, second], deployed)")
    return squashing.squash(updates, HostModel(deployed), metadata=metadata, budget=budget, compact=compact)


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
