"""An update as bytes: encoded, decoded, applied and verified. `FORMAT.md` is the specification."""

import contextlib
import functools
from collections.abc import Generator, Iterable, Iterator, Mapping
from typing import Any

from updcomp.wire import apply as apply_
from updcomp.wire import decoding, dtypes, encoding, errors, fingerprint, header, packet, structure, workers
from updcomp.wire import metadata as metadata_
from updcomp.wire.kind import Later

Texts = Mapping[str, str]
"""The metadata of a model file."""


def encode(
    sent: packet.Packet,
    base: dtypes.Model,
    *,
    metadata: tuple[Texts, Texts] | None = None,
    budget: float = 1.0,
    ahead: bool = True,
    compact: bool = False,
) -> bytes:
    """The update file of a packet.

    Blocks and sparse entries that change nothing are left out; an exact block that codes larger than its bits is sent
    raw; a view that is the default one is not said. Otherwise `decode` gives the packet back.

    Args:
      sent: the packet.
      base: the deployed model that it starts from.
      metadata: of the model's file before and after; None: the update says nothing of it.
      budget: how much applying may take, as a factor of `costs.allowed`: a device refuses what is beyond its own.
      ahead: as in `changed_leaves`.
      compact: whether fingerprints are of 8 bytes each in place of 16, without a checksum beside them; so they are also
        if the packet says it.

    Returns:
      The file's bytes.

    Raises:
      CostError: applying it would take more than the budget, or it is longer than an update may be.
      Error: a block does not fit its leaf.
    """
    if not 0 <= sent.seed < 1 << 32:
        raise errors.Error(f"seed: expected 0 to 2^32 - 1, found {sent.seed}")
    structure.check_cost(sent.structure, dtypes.specs(base), budget)
    start = structure.start(base, sent.structure)
    specs, base_print = dtypes.specs(start), None if start is base else fingerprint.of(base)
    apply_.check_names(sent, specs)
    change = None if metadata is None else metadata_.change(*metadata)

    def encoded(*, finer: bool) -> bytes:
        written = encoding.Blocks(sent, specs, budget, ahead=ahead, finer=finer)
        try:
            for name in specs:
                written.take(name, dtypes.hold(start[name]))
            parts = written.parts(change, compact=compact or sent.compact, base_print=base_print)
        finally:
            written.close()
        update = header.pack(parts)
        decoding.account(parts, len(update), specs, budget)
        return update

    try:
        return encoded(finer=True)
    except errors.CostError:
        return encoded(finer=False)  # in what the blocks themselves leave of the budget there is no room for more


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
    parts = header.parse(update, base)
    start = _start(parts, base, budget)
    blocks = decoding.Blocks(parts, len(update), dtypes.specs(start), budget)
    decoded = {name: blocks.read(name, dtypes.hold(start[name])) for name in blocks.names}
    blocks.finish()
    return packet.Packet(decoded, parts.seed, parts.structure)


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
    changed, found = dict(changed_leaves(update, base, budget=budget)), structure_of(update)
    removed = () if found is None else found.removed
    return {name: leaf for name, leaf in {**base, **changed}.items() if name not in removed}


def changed_leaves(
    update: bytes, base: dtypes.Model, *, budget: float = 1.0, ahead: bool = True
) -> Iterator[tuple[str, dtypes.Array]]:
    """The leaves that an update changes or adds, one at a time, of a base that stays as it is meanwhile.

    Args:
      update: the file's bytes.
      base: leaf name -> array, such as a lazy model whose leaves are on devices.
      budget: as in `apply_update`.
      ahead: whether leaves are read while those before are worked on, which is faster; else no two are held at once.

    Yields:
      (name, new leaf), in sorted name order; verified when the iterator has ended.

    Raises:
      CorruptUpdateError, WrongBaseError, CostError: as `apply_update`.
    """
    yield from _new_leaves(update, base, _base_digests(update, base, ahead=ahead), budget, ahead=ahead)


def apply_leaves(update: bytes, base: dtypes.Model, *, budget: float = 1.0) -> Iterator[tuple[str, dtypes.Array]]:
    """The leaves of the new model, as `new_specs` says, one at a time: it may be larger than the memory.

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
    yield from _new_leaves(update, base, _base_digests(update, base), budget, all_leaves=True)


def new_specs(update: bytes, base: dtypes.Model) -> dict[str, dtypes.Spec]:
    """The shapes and dtypes of the new model's leaves, in sorted name order.

    Args:
      update: the file's bytes.
      base: the model that it starts from; no leaf is read.

    Raises:
      CorruptUpdateError: the update is damaged, or is of a base with other leaves.
    """
    return dtypes.specs(structure.start(base, structure_of(update)))


def structure_of(update: bytes) -> structure.Structure | None:
    """Which leaves an update adds and removes; None if none.

    Raises:
      CorruptUpdateError: the update is damaged.
    """
    return header.parse(update).structure


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


def check_base(update: bytes, found: Iterable[bytes]) -> None:
    """Checks that an update starts from a model with one of these fingerprints.

    Raises:
      CorruptUpdateError: the update is damaged.
      WrongBaseError: it does not.
    """
    expected, _ = header.fingerprints(update)
    known = list(found)
    if not any(fingerprint.agree(expected, one) for one in known):
        raise _wrong_base(expected, known)


def _start(parts: header.Parts, base: dtypes.Model, budget: float) -> dtypes.Model:
    """What the blocks are relative to."""
    structure.check_cost(parts.structure, dtypes.specs(base), budget)
    return structure.start(base, parts.structure)


def _base_digests(update: bytes, base: dtypes.Model, *, ahead: bool = True) -> dict[str, bytes]:
    """The digests of the base's leaves, that being the one that the update starts from."""
    header.fingerprints(update)  # refuses damage before the base is read
    digests = fingerprint.of_leaves(base, read_ahead=ahead)
    check_base(update, [fingerprint.of_digests(digests)])
    return digests


def _new_leaves(
    update: bytes,
    base: dtypes.Model,
    digests: dict[str, bytes],
    budget: float,
    *,
    ahead: bool = True,
    all_leaves: bool = False,
) -> Iterator[tuple[str, dtypes.Array]]:
    """The leaves that change, or all of them; what is read again is hashed again.

    Args:
      update: the file's bytes.
      base: the right one.
      digests: of its leaves.
      budget: as in `apply_update`.
      ahead: as in `changed_leaves`.
      all_leaves: whether those are given as well that the update keeps.
    """
    parts, changed = header.parse(update, base), fingerprint.Digests()
    start = _start(parts, base, budget)
    specs, added = dtypes.specs(start), () if parts.structure is None else parts.structure.added
    blocks = decoding.Blocks(parts, len(update), specs, budget)
    names = [name for name in specs if name in blocks.names or name in added or all_leaves]
    with contextlib.closing(_made(names, start, specs, parts.seed, blocks, ahead=ahead)) as made:
        for name, leaf in made:
            changed.add(name, leaf)
            yield name, leaf
            if not ahead:
                changed.wait()
            del leaf
    blocks.finish()
    kept = {name: digest for name, digest in digests.items() if name in specs}
    if not fingerprint.agree(found := fingerprint.of_digests(kept | changed.finish()), parts.result):
        raise errors.CorruptUpdateError(_mismatch(parts.result, found))


def _made(
    names: list[str],
    base: dtypes.Model,
    specs: dict[str, dtypes.Spec],
    seed: int,
    blocks: decoding.Blocks,
    *,
    ahead: bool,
) -> Generator[tuple[str, dtypes.Array], None, None]:
    """These leaves of the new model, in order; those that are coded in pieces are worked on ahead, in threads."""
    indices, working = {name: index for index, name in enumerate(specs)}, workers.Ahead[tuple[str, dtypes.Array]]()

    def finish(name: str, old: dtypes.Array, block: Any) -> tuple[str, dtypes.Array]:
        with errors.of_leaf(name):
            made = block.finish() if isinstance(block, Later) else block
            return name, apply_.apply_block(made, old, seed=seed, index=indices[name])

    try:
        for name in names:
            leaf = base[name]
            old = dtypes.hold(leaf)
            block = blocks.begin(name, old) if name in blocks.names else None
            if isinstance(block, Later):
                yield from working.done(2 * old.nbytes)
                working.add(2 * old.nbytes, functools.partial(finish, name, old, block))
            if ahead and isinstance(block, Later):
                continue
            yield from working.done(None)
            if not isinstance(block, Later):
                yield (name, leaf) if block is None else finish(name, old, block)
            del leaf, old, block
        yield from working.done(None)
    finally:
        working.close()


def _mismatch(expected: bytes, found: bytes) -> str:
    if dtypes.flushes_subnormals():
        return (
            "result: this process computes subnormal numbers as 0, so that no result can be exact; "
            "a library compiled with -ffast-math switched that on: apply the update in a process without it"
        )
    return f"result: expected the model {expected.hex()}, found {found.hex()}; fetch the update again"


def _wrong_base(expected: bytes, found: Iterable[bytes]) -> errors.WrongBaseError:
    different = ", ".join(dict.fromkeys(one.hex() for one in found))
    damaged = ", or fetch it again if it may be damaged" if len(expected) < fingerprint.SIZE else ""
    return errors.WrongBaseError(
        f"base model: expected the one with fingerprint {expected.hex()}, found {different}; "
        f"apply the update to the model that it was made from{damaged}"
    )
