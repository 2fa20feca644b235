"""An update as bytes: encoded, decoded, applied and verified. `FORMAT.md` is the specification."""

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

from updcomp.wire import apply as apply_
from updcomp.wire import blocks, dtypes, errors, fingerprint, header, packet, streams, views


def encode(sent: packet.Packet, base: dtypes.Model) -> bytes:
    """The update file of a packet.

    Blocks and sparse entries that change nothing are left out; an exact block that codes larger than its bits is sent
    raw; a view that is the default one is not said. Otherwise `decode` gives the packet back.

    Args:
      sent: the packet.
      base: the deployed model that it starts from.

    Returns:
      The file's bytes.

    Raises:
      Error: a block does not fit its leaf.
    """
    if not 0 <= sent.seed < 1 << 32:
        raise errors.Error(f"seed: expected 0 to 2^32 - 1, found {sent.seed}")
    sent = packet.held(sent)
    new = apply_.apply(sent, base)
    base_digests = {name: fingerprint.leaf_digest(name, leaf) for name, leaf in base.items()}
    digests = base_digests | {name: fingerprint.leaf_digest(name, new[name]) for name in sent.blocks}
    indices = {name: index for name, index in apply_.leaf_indices(base).items() if digests[name] != base_digests[name]}
    version = max((blocks.version_of(sent.blocks[name], np.ndim(base[name])) for name in indices), default=1)
    writer = streams.Writer()
    heads = [blocks.write(sent.blocks[name], dtypes.hold(base[name]), index, writer) for name, index in indices.items()]
    base_print, result_print = fingerprint.of_digests(base_digests), fingerprint.of_digests(digests)
    return header.pack(header.Update(version, base_print, result_print, sent.seed, heads, *writer.finish()))


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
    _check_base(parts, base)
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


def apply_leaves(update: bytes, base: dtypes.Model, *, budget: float = 1.0) -> Iterator[tuple[str, dtypes.Array]]:
    """The leaves of the new model in sorted name order, one at a time; it is verified when the iterator has ended."""
    yield from sorted(apply_update(update, base).items())


def new_metadata(update: bytes, metadata: dict[str, str]) -> dict[str, str]:
    """The metadata of the new model file, from that of the old one."""
    return metadata


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


def inspect(update: bytes, model: dtypes.Model | None = None) -> dict[str, Any]:
    """What an update says of itself, and with the model that it starts from also of which leaves.

    Args:
      update: the file's bytes.
      model: the base, or None.

    Returns:
      format_version, bytes, base and result (fingerprints in hex), seed, blocks (kind, leaf_index, step and number of
      the view of each), kinds (how many of each), and bytes_by_part (header with checksum, raw, extra_bits, coded),
      which add up to bytes. With a model, blocks also have leaf, shape and dtype, and instead of view axes: its words.

    Raises:
      CorruptUpdateError: as `decode`.
      WrongBaseError: the update starts from another model.
    """
    parts = header.parse(update)
    if model is not None:
        _check_base(parts, model)
    names = sorted(model or {})
    sections = {"raw": len(parts.raw), "extra_bits": len(parts.extra), "coded": len(parts.coded)}
    kinds = [head.kind.__name__.lower() for head in parts.heads]
    return {
        "format_version": parts.version,
        "bytes": len(update),
        "base": parts.base.hex(),
        "result": parts.result.hex(),
        "seed": parts.seed,
        "blocks": [_told(head, model, names) for head in parts.heads],
        "kinds": {kind: kinds.count(kind) for kind in sorted(set(kinds))},
        "bytes_by_part": {"header": len(update) - sum(sections.values()), **sections},
    }


def _told(head: header.Head, model: dtypes.Model | None, names: list[str]) -> dict[str, Any]:
    """What `inspect` says of a block; the names are the model's, sorted."""
    told: dict[str, Any] = {"kind": head.kind.__name__.lower(), "leaf_index": head.leaf}
    if head.kind not in header.STEPLESS:
        told["step"] = head.step
    if model is None:
        return told if head.view is None else told | {"view": head.view}
    name = _leaf_name(head, names)
    leaf = dtypes.hold(model[name])
    told |= {"leaf": name, "shape": list(leaf.shape), "dtype": dtypes.name(leaf.dtype)}
    if head.view is not None:
        with errors.of_leaf(name):
            told["axes"] = views.words_of(views.of_number(head.view, leaf.ndim), leaf.ndim)
    return told


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


def _check_base(parts: header.Update, model: dtypes.Model) -> None:
    if (found := fingerprint.of(model)) != parts.base:
        raise _wrong_base(parts, [found])


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
        name = _leaf_name(head, names)
        with errors.of_leaf(name):
            decoded[name] = blocks.read(head, dtypes.hold(base[name]), reader)
    reader.finish()
    return packet.Packet(decoded, parts.seed)


def _leaf_name(head: header.Head, names: list[str]) -> str:
    """The leaf of a block, of these sorted names."""
    if head.leaf >= len(names):
        raise errors.CorruptUpdateError(f"leaf index: expected less than {len(names)}, found {head.leaf}")
    return names[head.leaf]
