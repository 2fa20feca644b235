"""A store whose own files hold any bytes.

An input is an operation, one byte, and what is put in place of the store's files: for each the number of the file, one
byte (with 64 more: it is removed; with 128 more: a folder is in its place), the length of its content, two bytes, and
the content.
"""

import functools
import hashlib
import json
import logging
import random
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import numpy as np

from tests.fuzz import mutation, readers, target, texts
from updcomp.edge import Store, files, state, versions
from updcomp.wire import container, errors, fingerprint
from updcomp.wire.kinds.raw import Raw
from updcomp.wire.packet import Packet

_MODELS = tuple({"w": np.float32([number, 1]), "b": np.zeros(2, np.float16)} for number in range(5))
_RECORDS = ("state", ".json")
_FOREIGN = ("notes.txt", "versions/notes.txt")
_REMOVED, _FOLDER = 64, 128
_PART = struct.Struct("<BH")


def _update(old: int, new: int) -> bytes:
    return container.encode(Packet({"w": Raw(_MODELS[new]["w"])}), _MODELS[old])


_OPERATIONS: tuple[Callable[[Store], object], ...] = (
    Store.current,
    Store.version,
    Store.path,
    Store.status,
    Store.verify,
    Store.rollback,
    lambda store: store.install(_update(3, 4)),
    lambda store: store.install(_update(1, 4)),
    lambda store: store.install(_update(2, 3)),
    lambda store: store.install(_update(2, 3), again=True),
    lambda store: store.install(_update(3, 4), check=lambda path: files.read_model(path).model["w"][0] == 4),
    lambda store: store.install(_update(3, 4), check=lambda _: False),
    lambda store: store.initialise(readers.folder() / "first.safetensors"),
)


@functools.cache
def _template() -> dict[str, bytes]:
    """The files of a store with three versions, by path; the same in every process."""
    folder = readers.folder() / "template"
    source = readers.folder() / "first.safetensors"
    files.write_model(source, _MODELS[1], {"labels": "a,b"})
    with mock.patch.object(state, "now", return_value="2024-01-01T00:00:00+00:00"):
        store = Store(folder, keep=3)
        store.initialise(source)
        store.install(_update(1, 2))
        store.install(_update(2, 3))
    for name in _FOREIGN:
        (folder / name).write_bytes(b"not the store's")
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def _names() -> list[str]:
    """The store's own files."""
    return [name for name in _template() if name not in _FOREIGN]


def use(data: bytes) -> str:
    """Puts an input in place of a store's files and uses the store: a model, or an error; others' files stay."""
    operation, parts = _taken_apart(data)
    folder = readers.folder() / "store"
    shutil.rmtree(folder, ignore_errors=True)
    _lay_out(folder, parts)
    versions._found.clear()
    forged = any(name.endswith(_RECORDS) and name in parts for name in _names())
    logging.disable(logging.CRITICAL)  # it warns of what it mends
    try:
        store, outcome = Store(folder, keep=3, lock_timeout=0.0), "accepted"
        # What comes after the operation is as it would be in another process.
        for operate in (_OPERATIONS[operation % len(_OPERATIONS)], Store.current):
            try:
                operate(store)
            except errors.Error as error:
                outcome = target.refused(error)
            versions._found.clear()
        if outcome == "accepted":
            found = fingerprint.of(store.current())
            assert forged or found in map(fingerprint.of, _MODELS), "a model that was never installed"
    finally:
        logging.disable(logging.NOTSET)
    for name in _FOREIGN:
        assert (folder / name).read_bytes() == b"not the store's", f"{name} is another one"
    left = [path.name for path in folder.rglob("*") if path.name.endswith(".tmp")]
    assert not left, f"left lying about: {left}"
    return outcome


def _lay_out(folder: Path, parts: dict[str, bytes | int]) -> None:
    for name, content in {**_template(), **parts}.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, bytes):
            path.write_bytes(content)
        elif content == _FOLDER:
            path.mkdir()


def _taken_apart(data: bytes) -> tuple[int, dict[str, bytes | int]]:
    """(operation, name of a file -> its content, or what is there instead)."""
    names, parts, at = _names(), dict[str, bytes | int](), 1
    while at + _PART.size <= len(data):
        number, size = _PART.unpack_from(data, at)
        content = data[at + _PART.size : at + _PART.size + size]
        at += _PART.size + size
        parts[names[number % 64 % len(names)]] = content if number < _REMOVED else number & (_REMOVED | _FOLDER)
    return (data[0] if data else 0), parts


def _put_together(operation: int, parts: dict[str, bytes | int]) -> bytes:
    out = bytes([operation % 256])
    for name, content in parts.items():
        instead = 0 if isinstance(content, bytes) else content
        held = content if isinstance(content, bytes) else b""
        out += _PART.pack(_names().index(name) | instead, len(held)) + held
    return out


def seeds() -> list[bytes]:
    """Every operation on the whole store, and on one of which a file is missing, cut off, or swapped with another."""
    found = [bytes([operation]) for operation in range(len(_OPERATIONS))]
    template = _template()
    for number, name in enumerate(_names()):
        other = template[_names()[number - 1]]
        for operation, content in enumerate((_REMOVED, _FOLDER, template[name][:-1], other)):
            found.append(_put_together(number + operation, {name: content}))
    return [data for data in found if len(data) <= mutation.MOST]


def repair(data: bytes) -> bytes:
    """The checksums of states made right."""
    operation, parts = _taken_apart(data)
    for name, content in parts.items():
        if name.endswith(_RECORDS) and isinstance(content, bytes) and b"\n" in content:
            text = content.partition(b"\n")[2]
            parts[name] = hashlib.sha256(text).hexdigest().encode() + b"\n" + text
    return _put_together(operation, parts)


def edit(data: bytes, rng: random.Random) -> bytes:
    """Another operation, or another content of a file: JSON of a state that stays JSON, or bytes."""
    operation, parts = _taken_apart(data)
    if rng.randrange(3) == 0:
        operation = rng.randrange(len(_OPERATIONS))
    for _ in range(rng.randrange(1, 3)):
        name = rng.choice(_names())
        content = parts.get(name, _template()[name])
        if rng.randrange(6) == 0:
            parts[name] = rng.choice((_REMOVED, _FOLDER))
        elif isinstance(content, bytes) and name.endswith(_RECORDS) and rng.randrange(4):
            parts[name] = _edited(content, rng)
        elif isinstance(content, bytes):
            parts[name] = mutation.mutate(content, rng, list(_template().values()), texts.WORDS)
        if rng.randrange(4) == 0:
            parts.pop(rng.choice(list(parts)), None)
    # A file whose content is the store's own need not be said.
    return _put_together(operation, {name: one for name, one in parts.items() if one != _template()[name]})


def _edited(content: bytes, rng: random.Random) -> bytes:
    try:
        text = json.dumps(texts.edit_json(json.loads(content.partition(b"\n")[2]), rng)).encode()
    except (ValueError, RecursionError):
        return content
    return b"\n" + text
