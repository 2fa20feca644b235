"""An update as bytes: encoded, decoded, applied and verified. `FORMAT.md` is the specification."""

from collections.abc import Iterable, Iterator, Mapping

from updcomp.wire import apply as apply_
from updcomp.wire import decoding, dtypes, errors, fingerprint, header, packet, rans, streams, versions
from updcomp.wire import metadata as metadata_
from updcomp.wire.kind import Block, Head
from updcomp.wire.kinds import raw

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
    sent, specs = packet.held(sent), dtypes.specs(base)
    apply_.check(sent, base)
    # No coding of these blocks is cheaper to decode than one of the most lanes: what that is too dear for is not begun.
    empty = header.Parts(versions.NEWEST, b"", b"", sent.seed, _heads(sent, base), b"", b"", rans.MAX_LANES, b"")
    decoding.account(empty, 0, specs, budget)
    new = apply_.apply(sent, base)
    base_digests = fingerprint.of_leaves(base)
    digests = base_digests | fingerprint.of_leaves({name: new[name] for name in sent.blocks})
    changing = {name: block for name, block in sent.blocks.items() if digests[name] != base_digests[name]}
    changing, (raw_section, extra, lanes, coded) = _written(changing, base)
    heads = _without_default_views(_heads(sent._replace(blocks=changing), base), specs)
    change = None if metadata is None else metadata_.change(*metadata)
    prints = fingerprint.of_digests(base_digests), fingerprint.of_digests(digests)
    parts = header.Parts(versions.NEWEST, *prints, sent.seed, heads, raw_section, extra, lanes, coded, change)
    update = header.pack(parts)
    decoding.account(parts, len(update), specs, budget)
    return update


def _heads(sent: packet.Packet, base: dtypes.Model) -> list[Head]:
    """The headers of the blocks, in leaf order."""
    blocks = ((name, index) for name, index in apply_.leaf_indices(base).items() if name in sent.blocks)
    return [
        versions.kind_of(sent.blocks[name]).head(sent.blocks[name], dtypes.hold(base[name]))._replace(leaf=index)
        for name, index in blocks
    ]


def _written(blocks: dict[str, Block], base: dtypes.Model) -> tuple[dict[str, Block], tuple[bytes, bytes, int, bytes]]:
    """The blocks, those raw that code no smaller, and their sections."""
    writer, written = streams.Writer(), dict[str, Block]()
    for name in sorted(blocks):
        old, block = dtypes.hold(base[name]), blocks[name]
        if not versions.kind_of(block).write(block, old, writer):
            block = raw.Raw(*block)
            raw.KIND.write(block, old, writer)
        written[name] = block
    return written, writer.finish()


def _without_default_views(heads: list[Head], specs: Mapping[str, dtypes.Spec]) -> list[Head]:
    """The headers, without views where all of them are the default one."""
    if decoding.have_default_views(heads, specs):
        return [head._replace(view=None) for head in heads]
    return heads


def decode(update: bytes, base: dtypes.Model, *, budget: float = 1.0) -> packet.Packet:
    """The packet in an update.

    Args:
      update: the file's bytes.
      base: the model that it starts from.
      budget: as in `apply_update`.

    Returns:
      The packet.

    Raises:
      CorruptUpdateError: damaged, truncated, or of a version or kind that this code does not know.
      WrongBaseError: the base is another model.
      CostError: it would take more than the budget.
    """
    check_base(update, [fingerprint.of(base)])
    parts = header.parse(update, len(base))
    blocks = decoding.Blocks(parts, len(update), dtypes.specs(base), budget)
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
    yield from _new_leaves(update, base, digests, budget, read_twice=True)


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


def _new_leaves(
    update: bytes, base: dtypes.Model, digests: dict[str, bytes], budget: float, *, read_twice: bool = False
) -> Iterator[tuple[str, dtypes.Array]]:
    """As `apply_leaves`, the base being the right one and these its digests; what is read again is hashed again."""
    parts, specs, changed = header.parse(update, len(base)), dtypes.specs(base), fingerprint.Digests()
    blocks = decoding.Blocks(parts, len(update), specs, budget)
    for index, name in enumerate(specs):
        leaf = base[name]
        if name in blocks.names:
            old = dtypes.hold(leaf)
            block = blocks.read(name, old)
            with errors.of_leaf(name):
                leaf = apply_.apply_block(block, old, seed=parts.seed, index=index)
            del old, block
        if read_twice or name in blocks.names:
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


def _wrong_base(expected: bytes, found: Iterable[bytes]) -> errors.WrongBaseError:
    different = ", ".join(dict.fromkeys(one.hex() for one in found))
    return errors.WrongBaseError(
        f"base model: expected the one with fingerprint {expected.hex()}, found {different}; "
        "apply the update to the model that it was made from"
    )
