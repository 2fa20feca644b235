"""An update as bytes: encoded, decoded, applied and verified. `FORMAT.md` is the specification."""

from collections.abc import Iterable, Iterator, Mapping

import numpy as np

from updcomp.wire import apply as apply_
from updcomp.wire import costs, dtypes, errors, fingerprint, header, packet, streams, versions, views
from updcomp.wire import metadata as metadata_
from updcomp.wire.kind import Block, Head

Texts = Mapping[str, str]
"""The metadata of a model file."""


def encode(
    sent: packet.Packet,
    base: dtypes.Model,
    *,
    metadata: tuple[Texts, Texts] | None = None,
    budget: float = 1.0,
) -> bytes:
    """The update file of a packet.

    Blocks and sparse entries that change nothing are left out; an exact block that codes larger than its bits is sent
    raw; a view that is the default one is not said. Otherwise `decode` gives the packet back.

    Args:
      sent: the packet.
      base: the deployed model that it starts from.
      metadata: of the model's file before and after; None: the update says nothing of it.
      budget: how much applying may take, as a factor of `costs.allowed`: a device refuses what is beyond its own.

    Returns:
      The file's bytes.

    Raises:
      CostError: applying it would take more than the budget, or it is longer than an update may be.
      Error: a block does not fit its leaf.
    """
    if not 0 <= sent.seed < 1 << 32:
        raise errors.Error(f"seed: expected 0 to 2^32 - 1, found {sent.seed}")
    sent = packet.held(sent)
    new = apply_.apply(sent, base)
    base_digests = fingerprint.of_leaves(base)
    digests = base_digests | fingerprint.of_leaves({name: new[name] for name in sent.blocks})
    indices = {name: index for name, index in apply_.leaf_indices(base).items() if digests[name] != base_digests[name]}
    writer, heads = streams.Writer(), []
    for name, index in indices.items():
        head = versions.kind_of(sent.blocks[name]).write(sent.blocks[name], dtypes.hold(base[name]), writer)
        heads.append(head._replace(leaf=index))
    heads = _heads_said(heads, [np.ndim(base[name]) for name in indices])
    raw, extra, lanes, coded = writer.finish()
    change = None if metadata is None else metadata_.change(*metadata)
    prints = fingerprint.of_digests(base_digests), fingerprint.of_digests(digests)
    parts = header.Update(versions.NEWEST, *prints, sent.seed, heads, raw, extra, lanes, coded, change)
    update = header.pack(parts)
    _check_cost(parts, len(update), dtypes.specs(base), budget)
    return update


def decode(update: bytes, base: dtypes.Model) -> packet.Packet:
    """The packet in an update.

    Args:
      update: the file's bytes.
      base: the model that it starts from.

    Returns:
      The packet.

    Raises:
      CorruptUpdateError: damaged, truncated, or of a version or kind that this code does not know.
      WrongBaseError: the base is another model.
      CostError: it would take more than the default budget.
    """
    check_base(update, [fingerprint.of(base)])
    parts = header.parse(update, len(base))
    blocks = _Blocks(parts, len(update), dtypes.specs(base), 1.0)
    decoded = {name: blocks.read(name, dtypes.hold(base[name])) for name in blocks.names}
    blocks.finish()
    return packet.Packet(decoded, parts.seed)


def apply_update(update: bytes, base: dtypes.Model, *, budget: float = 1.0) -> dict[str, dtypes.Array]:
    """The model that an update makes of its base, verified.

    Args:
      update: the file's bytes.
      base: leaf name -> array; it is not changed.
      budget: how much it may take, as a factor of `costs.allowed`; infinity allows everything.

    Returns:
      A new dict; leaves that the update keeps are the same array objects.

    Raises:
      CorruptUpdateError: as `decode`, or the result is not the model that the update promises.
      WrongBaseError: the base is another model.
      CostError: it would take more than the budget.
    """
    return apply_to_any(update, (base,), budget=budget)


def apply_to_any(update: bytes, bases: Iterable[dtypes.Model], *, budget: float = 1.0) -> dict[str, dtypes.Array]:
    """The model that an update makes of the one base among these that it starts from.

    Args:
      update: the file's bytes.
      bases: models, tried in order; a lazy iterable is read no further than needed.
      budget: as in `apply_update`.

    Returns:
      As `apply_update`.

    Raises:
      CorruptUpdateError, CostError: as `apply_update`.
      WrongBaseError: the update starts from none of them.
    """
    (expected, _), found = header.fingerprints(update), []
    for base in bases:
        digests = fingerprint.of_leaves(base)
        found.append(fingerprint.of_digests(digests))
        if found[-1] == expected:
            new = dict(_new_leaves(update, base, digests, budget))
            return {name: new[name] for name in base}
    raise _wrong_base(expected, found)


def apply_leaves(update: bytes, base: dtypes.Model, *, budget: float = 1.0) -> Iterator[tuple[str, dtypes.Array]]:
    """The leaves of the new model, one at a time, for models that are larger than the memory.

    Each leaf of the base is read twice: once for the fingerprint, before anything else, and once for its new self.

    Args:
      update: the file's bytes.
      base: leaf name -> array, such as `updcomp.edge.open_model` gives.
      budget: as in `apply_update`.

    Yields:
      (name, new leaf) of every leaf, in sorted name order. The new model is verified when the iterator has ended, so
      that nothing of it may be used before.

    Raises:
      CorruptUpdateError, WrongBaseError, CostError: as `apply_update`.
    """
    header.fingerprints(update)  # refuses damage before the base is read
    digests = fingerprint.of_leaves(base)
    check_base(update, [fingerprint.of_digests(digests)])
    yield from _new_leaves(update, base, digests, budget)


def new_metadata(update: bytes, metadata: Texts) -> dict[str, str]:
    """The metadata of the new model file; as they are where the update says nothing of them.

    Args:
      update: the file's bytes.
      metadata: of the file that it starts from.

    Returns:
      The new metadata.

    Raises:
      CorruptUpdateError: the update is damaged.
      WrongBaseError: it was made from a file with other metadata.
    """
    change = header.parse(update).change
    return dict(metadata) if change is None else metadata_.changed(change, metadata)


def replay(updates: Iterable[bytes], first: dtypes.Model) -> Iterator[dtypes.Model]:
    """The models that a chain of updates makes, each of the model before it or of the first, as its fingerprint says.

    Args:
      updates: the files' bytes, in the order in which they came.
      first: the model that the device was deployed with.

    Yields:
      The model after each update.

    Raises:
      CorruptUpdateError, WrongBaseError: as `apply_to_any`.
    """
    held = first
    for update in updates:
        held = apply_to_any(update, (held, first))
        yield held


def check_base(update: bytes, found: Iterable[bytes]) -> None:
    """Checks that an update starts from a model with one of these fingerprints.

    Raises:
      CorruptUpdateError: the update is damaged.
      WrongBaseError: it does not.
    """
    expected, _ = header.fingerprints(update)
    if expected not in (known := list(found)):
        raise _wrong_base(expected, known)


def cost(parts: header.Update, specs: Mapping[str, dtypes.Spec]) -> list[costs.Cost]:
    """What each block takes, as far as the header says: all of them, or none in version 1.

    Raises:
      CorruptUpdateError: a block fits no leaf of such a model.
    """
    found, names = [], list(specs)
    for head in parts.heads:
        name = names[head.leaf]
        if head.size is not None or not head.kind.sized:
            with errors.of_leaf(name):
                found.append(head.kind.cost(head, specs[name], parts.lanes))
    return found


class _Blocks:
    """The blocks of an update, decoded one after another; every size is bounded by the leaf."""

    def __init__(
        self, parts: header.Update, update_bytes: int, specs: Mapping[str, dtypes.Spec], budget: float
    ) -> None:
        """At the first block, the budget checked as far as the header says the costs."""
        names = list(specs)
        self.names = {names[head.leaf]: head for head in parts.heads}
        _check_cost(parts, update_bytes, specs, budget)
        self._account = costs.Account(specs, update_bytes, budget)
        self._parts = parts
        self._specs = specs
        self._reader = streams.Reader(parts.raw, parts.extra, parts.lanes, parts.coded)

    def read(self, name: str, old: dtypes.Array) -> Block:
        """The next block, that of this held leaf."""
        head = self.names[name]
        with errors.of_leaf(name):
            if head.kind.sized and head.size is None:
                head = head._replace(size=self._reader.number())
            self._account.charge(head.kind.cost(head, self._specs[name], self._parts.lanes))
            block: Block = head.kind.read(head, old, self._reader)
        return block

    def finish(self) -> None:
        """Checks that nothing is left."""
        self._reader.finish(idle_lanes=self._parts.version.idle_lanes)


def _new_leaves(
    update: bytes, base: dtypes.Model, digests: dict[str, bytes], budget: float
) -> Iterator[tuple[str, dtypes.Array]]:
    """As `apply_leaves`, the base being the right one and these its digests; kept leaves are not hashed again."""
    parts, specs, changed = header.parse(update, len(base)), dtypes.specs(base), fingerprint.Digests()
    blocks = _Blocks(parts, len(update), specs, budget)
    for index, name in enumerate(specs):
        leaf = base[name]
        if name in blocks.names:
            old = dtypes.hold(leaf)
            block = blocks.read(name, old)
            with errors.of_leaf(name):
                leaf = apply_.apply_block(block, old, seed=parts.seed, index=index)
            del old, block
            changed.add(name, leaf)
        yield name, leaf
    blocks.finish()
    if (found := fingerprint.of_digests(digests | changed.finish())) != parts.result:
        raise errors.CorruptUpdateError(_mismatch(parts.result, found))


def _mismatch(expected: bytes, found: bytes) -> str:
    if dtypes.flushes_subnormals():
        return (
            "result: this process computes subnormal numbers as 0, so that no result can be exact; "
            "a library compiled with -ffast-math switched that on: apply the update in a process without it"
        )
    return f"result: expected the model {expected.hex()}, found {found.hex()}; fetch the update again"


def _check_cost(parts: header.Update, update_bytes: int, specs: Mapping[str, dtypes.Spec], budget: float) -> None:
    """Checks what is known before anything is decoded."""
    if update_bytes > (longest := costs.largest_update(specs)):
        raise errors.CostError(
            f"update: expected at most {longest:,} bytes for this model, found {update_bytes:,}; "
            "send a larger step or Raw"
        )
    blocks = cost(parts, specs)
    whole = costs.Cost(sum(block.operations for block in blocks), max((b.working_bytes for b in blocks), default=0))
    costs.Account(specs, update_bytes, budget).charge(whole)
    _check_views(parts, specs)


def _check_views(parts: header.Update, specs: Mapping[str, dtypes.Spec]) -> None:
    """Checks that views are said only where one of them is not the default one."""
    ranks = [len(spec.shape) for spec in specs.values()]
    said = [(head.view, ranks[head.leaf]) for head in parts.heads if head.view is not None]
    if said and all(view == views.number(views.last_axis_out(ndim), ndim) for view, ndim in said):
        raise errors.CorruptUpdateError("views: expected none where all are the default one, found some")


def _heads_said(heads: list[Head], ranks: list[int]) -> list[Head]:
    """The headers, without views where all of them are the default one."""
    defaults = [views.number(views.last_axis_out(ndim), ndim) for ndim in ranks]
    if any(head.view not in (None, default) for head, default in zip(heads, defaults, strict=True)):
        return heads
    return [head._replace(view=None) for head in heads]


def _wrong_base(expected: bytes, found: Iterable[bytes]) -> errors.WrongBaseError:
    different = ", ".join(dict.fromkeys(one.hex() for one in found))
    return errors.WrongBaseError(
        f"base model: expected the one with fingerprint {expected.hex()}, found {different}; "
        "apply the update to the model that it was made from"
    )
