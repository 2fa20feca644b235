"""Updates: the header, whole files, and files with one block of each kind."""

import binascii
import functools
import json
import random
import struct
import zlib
from collections.abc import Callable, Hashable
from typing import Any
from unittest import mock

import numpy as np

from tests.fuzz import mutation, recoding, target
from tests.fuzz import texts as texts_
from tests.wire import samples
from updcomp.wire import (
    container,
    dtypes,
    errors,
    fingerprint,
    header,
    inspection,
    metadata,
    structure,
    versions,
    workers,
)
from updcomp.wire import kind as kind_

METADATA = {"labels": "cat,dog", "format": "pt"}  # of the file that holds the base
_LATER = {"labels": "cat,dog,emu", "license": "none"}
_VERSION, _FLAGS = slice(4, 5), slice(5, 6)  # where the header holds them
_CHECKSUM = struct.Struct("<I")


@functools.cache
def _bases() -> dict[bytes, dict[str, np.ndarray]]:
    """The models that updates start from, by fingerprint."""
    return {fingerprint.of(base): base for base, _ in samples.suites()}


def _is_compact(update: bytes) -> bool:
    return bool(update[_VERSION] >= b"\4" and update[_FLAGS] and update[_FLAGS][0] & versions.COMPACT)


def _prints(update: bytes) -> tuple[slice, slice]:
    """Where the fingerprints of the base and of the result are."""
    size = fingerprint.SHORT_SIZE if _is_compact(update) else fingerprint.SIZE
    return slice(6, 6 + size), slice(6 + size, 6 + 2 * size)


def _base_of(update: bytes) -> dict[str, np.ndarray]:
    """The model that an update says, or the first one."""
    said = bytes(update[_prints(update)[0]])
    return next((base for found, base in _bases().items() if said and found.startswith(said)), samples.model())


def parse_header(data: bytes) -> str:
    """Parses any bytes, and says what they say of themselves."""
    try:
        header.parse(data)
        inspection.inspect(data)
    except errors.Error as error:
        return target.refused(error)
    return "accepted"


def apply(data: bytes) -> str:
    """Applies any bytes to the model that they say they start from, and its metadata."""
    base = _base_of(data)
    try:
        with mock.patch.object(workers, "cores", return_value=1):  # else what they do is not seen
            new = container.apply_update(data, base)
        metadata = container.new_metadata(data, METADATA)
    except errors.Error as error:
        return target.refused(error)
    assert dtypes.specs(new) == container.new_specs(data, base), "another shape or dtype than the update says"
    assert all(isinstance(text, str) for one in metadata.items() for text in one), "metadata that are no texts"
    inspection.inspect(data, base)
    return "accepted"


def content(update: bytes) -> Hashable:
    """What an update says: its packet and metadata; version 1 may say it in several ways."""
    if update[_VERSION] == b"\1":
        return update
    found = container.decode(update, _base_of(update))
    blocks = [
        (name, type(block).__name__, *(field.tobytes() if isinstance(field, np.ndarray) else field for field in block))
        for name, block in found.blocks.items()
    ]
    metadata = container.new_metadata(update, METADATA)
    return (
        update[_prints(update)[0]],
        found.seed,
        found.structure and structure.pack(found.structure),
        tuple(sorted(metadata.items())),
        *blocks,
    )


def with_checksum(data: bytes) -> bytes:
    """The CRC made anew, so that a change is not caught by it."""
    return data if _is_compact(data) else data[:-4] + _CHECKSUM.pack(binascii.crc32(data[:-4]))


def with_prints(data: bytes) -> bytes:
    """Fingerprints, digest and CRC made anew: what is accepted but for them is accepted."""
    first, second = _prints(data)
    if len(data) < second.stop + 4:
        return data
    base, size = _base_of(data), first.stop - first.start
    data = with_checksum(data[: first.start] + fingerprint.of(base)[:size] + data[first.stop :])
    data = _with_digest(data)
    with mock.patch.object(fingerprint, "of_digests", _Last(fingerprint.of_digests)) as last:
        try:
            container.apply_update(data, base)
        except Exception:
            return with_checksum(data[: second.start] + last.value[:size] + data[second.stop :])
    return data


def _with_digest(data: bytes) -> bytes:
    """The digest of the metadata made that of what the update makes of `METADATA`."""
    try:
        change = header.parse(data).change
        if change is None:
            return data
        after = metadata.unpack(change)
        new = {name: text for name, text in {**METADATA, **after}.items() if text is not None}
        digest = metadata.change(METADATA, new).digest
    except Exception:
        return data
    at = data.find(change.digest, _prints(data)[1].stop)
    return with_checksum(data[:at] + digest + data[at + len(digest) :])


class _Last:
    """A function that keeps what it returned last."""

    def __init__(self, function: Callable[..., bytes]) -> None:
        self._function, self.value = function, b""

    def __call__(self, *arguments: Any) -> bytes:
        self.value = self._function(*arguments)
        return self.value


def seeds(kind: str | None = None) -> list[bytes]:
    """Updates of the samples: whole packets with metadata, or one block of a kind each."""
    found = []
    for base, packets in samples.suites():
        for sent in packets:
            if kind is None:
                found += [container.encode(sent, base, compact=compact) for compact in (False, True)]
                found.append(container.encode(sent, base, metadata=(METADATA, _LATER)))
            else:
                alone = (sent._replace(blocks={name: block}) for name, block in sent.blocks.items())
                found += [container.encode(one, base) for one in alone]
    return sorted(
        {update for update in found if len(update) <= mutation.MOST and (not kind or _kind_of(update) == kind)}
    )


def _kind_of(update: bytes) -> str:
    """The kind of the first block, which the encoder may have chosen."""
    return header.parse(update).heads[0].kind.name


def edit(data: bytes, rng: random.Random) -> bytes:
    """Other block headers, or other integers in the sections, coded as a writer would."""
    try:
        parts = header.parse(with_checksum(data))
    except errors.Error:
        return data
    if rng.randrange(2):
        parts = parts._replace(heads=_other_heads(list(parts.heads), rng))
    if rng.randrange(8) == 0:
        parts = parts._replace(seed=rng.getrandbits(32))
    if parts.change is not None and rng.randrange(4) == 0:
        parts = parts._replace(change=_other_change(parts.change, rng))
    try:
        header.pack(parts)
        start = structure.start(_base_of(data), parts.structure)
    except (OverflowError, ValueError):  # what cannot be said, such as a leaf before the last one
        return data
    return header.pack(recoding.recoded(parts, start, rng))


def _other_heads(heads: list[kind_.Head], rng: random.Random) -> list[kind_.Head]:
    for _ in range(rng.randrange(1, 3)):
        if not heads:
            return heads
        at = rng.randrange(len(heads))
        head = heads[at]
        match rng.randrange(8):
            case 0:
                heads[at] = head._replace(leaf=max(0, head.leaf + rng.randrange(-3, 4)))
            case 1:
                heads[at] = head._replace(kind=rng.choice(list(versions.NEWEST.kinds.values())))
            case 2:
                exponent = rng.choice((rng.randrange(1, 255), 1, 254))
                step = np.array(exponent << 23 | rng.randrange(128) << 16, "<u4").view("<f4")
                heads[at] = head._replace(step=float(step))
            case 3:
                heads[at] = head._replace(view=rng.choice((None, rng.randrange(81), mutation.number(rng))))
            case 4:
                del heads[at]
            case 5:
                heads.insert(at, head)
            case 6:
                heads.append(head._replace(leaf=head.leaf + 1 + rng.randrange(3)))
            case 7:
                near = max(0, (head.size or 0) + rng.randrange(-3, 4))
                heads[at] = head._replace(size=rng.choice((None, near, near, rng.randrange(300), mutation.number(rng))))
    return heads


def _other_change(change: metadata.Change, rng: random.Random) -> metadata.Change:
    """Other texts, as a writer would say them or not quite."""
    texts = texts_.edit_json(dict(_LATER), rng)
    try:
        text = json.dumps(texts, sort_keys=rng.randrange(4) > 0, separators=(",", ":")).encode()
    except (TypeError, ValueError):
        return change
    text = mutation.mutate(text, rng, (), texts_.WORDS) if rng.randrange(4) == 0 else text * rng.choice((1, 1, 1, 2))
    compressor = zlib.compressobj(9, zlib.DEFLATED, -15)
    return change._replace(changes=compressor.compress(text) + compressor.flush())
