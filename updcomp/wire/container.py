"""An update as bytes: encoded, decoded, applied and verified. `FORMAT.md` is the specification."""

from collections.abc import Iterable, Iterator
from typing import Any

from updcomp.wire import apply as apply_
from updcomp.wire import blocks, dtypes, errors, fingerprint, header, packet, streams


def encode(update: packet.Packet, base: dtypes.Model) -> bytes:
    """The update file of a packet.

    Blocks and sparse entries that change nothing are left out; an exact block that codes larger than its bits is sent
    raw. Otherwise `decode` gives the packet back.

    Args:
      update: the packet.
      base: the deployed model that it starts from.

    Returns:
      The file's bytes.

    Raises:
      Error: a block does not fit its leaf.
    """
    if not 0 <= update.seed < 1 << 32:
        raise errors.Error(f"seed: expected 0 to 2^32 - 1, found {update.seed}")
    new = apply_.apply(update, base)
    base_digests = {name: fingerprint.leaf_digest(name, leaf) for name, leaf in base.items()}
    digests = base_digests | {name: fingerprint.leaf_digest(name, new[name]) for name in update.blocks}
    writer = streams.Writer()
    heads = [
        blocks.write(update.blocks[name], dtypes.hold(base[name]), index, writer)
        for name, index in apply_.leaf_indices(base).items()
        if digests[name] != base_digests[name]
    ]
    base_print, result_print = fingerprint.of_digests(base_digests), fingerprint.of_digests(digests)
    return header.pack(header.Update(base_print, result_print, update.seed, heads, *writer.finish()))


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
    """
    parts = header.parse(update)
    if (found := fingerprint.of(base)) != parts.base:
        raise _wrong_base(parts, [found])
    return _decode(parts, base)


def apply_update(update: bytes, base: dtypes.Model) -> dtypes.Model:
    """The model that an update makes of its base, verified.

    Args:
      update: the file's bytes.
      base: leaf name -> array; it is not changed.

    Returns:
      A new dict; leaves that the update keeps are the same array objects.

    Raises:
      CorruptUpdateError: as `decode`, or the result is not the model that the update promises.
      WrongBaseError: the base is another model.
    """
    return apply_to_any(update, (base,))


def apply_to_any(update: bytes, bases: Iterable[dtypes.Model]) -> dtypes.Model:
    """The model that an update makes of the one base among these that it starts from.

    Args:
      update: the file's bytes.
      bases: models, tried in order; a lazy iterable is read no further than needed.

    Returns:
      As `apply_update`.

    Raises:
      CorruptUpdateError: as `apply_update`.
      WrongBaseError: the update starts from none of them.
    """
    parts, found = header.parse(update), []
    for base in bases:
        digests = {name: fingerprint.leaf_digest(name, leaf) for name, leaf in base.items()}
        found.append(fingerprint.of_digests(digests))
        if found[-1] == parts.base:
            return _applied(parts, base, digests)
    raise _wrong_base(parts, found)


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


def inspect(update: bytes) -> dict[str, Any]:
    """What an update says of itself, without any model.

    Args:
      update: the file's bytes.

    Returns:
      format_version, bytes, base and result (fingerprints in hex), seed, blocks (kind, leaf_index and step of each),
      kinds (how many of each), and bytes_by_part (header with checksum, raw, extra_bits, coded), which add up to bytes.

    Raises:
      CorruptUpdateError: as `decode`.
    """
    parts = header.parse(update)
    sections = {"raw": len(parts.raw), "extra_bits": len(parts.extra), "coded": len(parts.coded)}
    kinds = [head.kind.__name__.lower() for head in parts.heads]
    return {
        "format_version": header.VERSION,
        "bytes": len(update),
        "base": parts.base.hex(),
        "result": parts.result.hex(),
        "seed": parts.seed,
        "blocks": [
            {"kind": kind, "leaf_index": head.leaf} | ({} if head.kind in header.STEPLESS else {"step": head.step})
            for kind, head in zip(kinds, parts.heads, strict=True)
        ],
        "kinds": {kind: kinds.count(kind) for kind in sorted(set(kinds))},
        "bytes_by_part": {"header": len(update) - sum(sections.values()), **sections},
    }


def _applied(parts: header.Update, base: dtypes.Model, digests: dict[str, bytes]) -> dtypes.Model:
    """The new model, checked against its fingerprint; leaves that are kept are not hashed again."""
    new = apply_.apply(_decode(parts, base), base)
    changed = {name: fingerprint.leaf_digest(name, leaf) for name, leaf in new.items() if leaf is not base[name]}
    found = fingerprint.of_digests(digests | changed)
    if found != parts.result:
        raise errors.CorruptUpdateError(
            f"result: expected the model {parts.result.hex()}, found {found.hex()}; fetch the update again"
        )
    return new


def _wrong_base(parts: header.Update, found: Iterable[bytes]) -> errors.WrongBaseError:
    different = ", ".join(dict.fromkeys(one.hex() for one in found))
    return errors.WrongBaseError(
        f"base model: expected the one with fingerprint {parts.base.hex()}, found {different}; "
        "apply the update to the model that it was made from"
    )


def _decode(parts: header.Update, base: dtypes.Model) -> packet.Packet:
    """Decodes the payload; every size is bounded by the base's leaves."""
    names = sorted(base)
    reader = streams.Reader(parts.raw, parts.extra, parts.lanes, parts.coded)
    decoded = {}
    for head in parts.heads:
        if head.leaf >= len(names):
            raise errors.CorruptUpdateError(f"leaf index: expected less than {len(names)}, found {head.leaf}")
        name = names[head.leaf]
        try:
            decoded[name] = blocks.read(head, dtypes.hold(base[name]), reader)
        except errors.Error as error:
            raise type(error)(f"leaf {name!r}: {error}") from None
    reader.finish()
    return packet.Packet(decoded, parts.seed)
