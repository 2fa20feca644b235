"""The texts that a model file carries beside its leaves, as an update changes and covers them."""

import hashlib
from collections.abc import Mapping
from typing import NamedTuple

from updcomp.wire import canonical, errors

DIGEST_SIZE = 8


class Change(NamedTuple):
    """What an update says of the metadata."""

    digest: bytes  # of the metadata before and after
    changes: bytes  # compressed; empty where nothing changes


def change(old: Mapping[str, str], new: Mapping[str, str]) -> Change | None:
    """The change between the metadata of two files; None where neither has any.

    The changes are a JSON object of the new texts and null for each that goes, its names sorted, without spaces and in
    ASCII, compressed by deflate.

    Args:
      old: of the file that the update starts from.
      new: of the file that it makes.

    Returns:
      What the update says.

    Raises:
      Error: the changes are longer than 1 MiB.
    """
    if not old and not new:
        return None
    changes = {name: new.get(name) for name in old.keys() | new.keys() if old.get(name) != new.get(name)}
    return Change(_digest(old, new), canonical.pack(changes, "metadata: changes") if changes else b"")


def changed(said: Change, old: Mapping[str, str]) -> dict[str, str]:
    """The metadata that an update makes of those that a file has.

    Args:
      said: what the update says.
      old: of the file.

    Returns:
      The new metadata.

    Raises:
      WrongBaseError: the update starts from other metadata.
      CorruptUpdateError: the changes are damaged.
    """
    changes = unpack(said)
    new = {name: text for name, text in {**old, **changes}.items() if text is not None}
    idle = any(old.get(name) == text for name, text in changes.items())
    if idle or _digest(old, new) != said.digest:
        raise errors.WrongBaseError(
            "metadata: expected the texts that the update was made from, found others; "
            "apply the update to the file that it was made from"
        )
    return new


def unpack(said: Change) -> dict[str, str | None]:
    """The new texts, and None for each that goes.

    Raises:
      CorruptUpdateError: the changes are damaged.
    """
    if not said.changes:
        return {}
    try:
        found, text = canonical.unpack(said.changes)
    except (ValueError, RecursionError) as error:
        raise errors.CorruptUpdateError(f"metadata: expected compressed JSON, found {error}") from None
    texts = isinstance(found, dict) and all(value is None or isinstance(value, str) for value in found.values())
    if not texts or not found or canonical.text_of(found) != text:
        raise errors.CorruptUpdateError("metadata: expected one JSON object of texts in its shortest form")
    return dict(found)


def fingerprint(metadata: Mapping[str, str]) -> bytes:
    """The first 16 bytes of SHA-256 over the metadata as JSON, its names sorted."""
    return hashlib.sha256(canonical.text_of(metadata)).digest()[:16]


def _digest(old: Mapping[str, str], new: Mapping[str, str]) -> bytes:
    return hashlib.sha256(canonical.text_of(old) + canonical.text_of(new)).digest()[:DIGEST_SIZE]
