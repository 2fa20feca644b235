"""The safetensors format in NumPy: an 8-byte length, a JSON header, the leaves' bytes without gaps."""

import json
from collections.abc import Mapping
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from updcomp.edge import formats, objects
from updcomp.wire import dtypes, errors

_METADATA = "__metadata__"
_HEADER = "safetensors header"
_LONGEST_ENTRY = 4096  # characters of a leaf's entry; 64 axes and two offsets of 19 digits each take 1,400

# The format's names; a pair of dtype name and width stands for a dtype that NumPy lacks.
_DTYPES: dict[str, np.dtype[Any]] = {
    "BOOL": np.dtype("?"),
    **{f"{kind.upper()}{8 * width}": np.dtype(f"<{kind}{width}") for kind in "iu" for width in (1, 2, 4, 8)},
    **{f"F{8 * width}": np.dtype(f"<f{width}") for width in (2, 4, 8)},
    "C64": np.dtype("<c8"),
    "BF16": dtypes.BFLOAT16,
    "F8_E4M3": np.dtype([("float8_e4m3fn", "|u1")]),
    "F8_E5M2": np.dtype([("float8_e5m2", "|u1")]),
    "F8_E8M0": np.dtype([("float8_e8m0fnu", "|u1")]),
    "F8_E4M3FNUZ": np.dtype([("float8_e4m3fnuz", "|u1")]),
    "F8_E5M2FNUZ": np.dtype([("float8_e5m2fnuz", "|u1")]),
}
_NAMES = {dtypes.name(dtype): name for name, dtype in _DTYPES.items()}


class _Entry(NamedTuple):
    """Where a leaf is."""

    spec: dtypes.Spec
    start: int  # from the end of the header
    stop: int


def read(file: BinaryIO, size: int) -> formats.Contents:
    """Reads and checks the header of a file.

    Args:
      file: opened for reading at its start; the leaves are read from it.
      size: of the file in bytes.

    Returns:
      What it holds.

    Raises:
      FileError: it is not a valid safetensors file.
    """
    length = int.from_bytes(file.read(8), "little")
    most = min(size - 8, formats.LARGEST_INDEX)
    if size < 8 or length > most:
        raise errors.FileError(f"not safetensors: expected a header of at most {max(most, 0)} bytes, found {length}")
    entries, metadata = _parse(file.read(length))
    first = 8 + length
    _check_places(entries, size - first)

    def leaf(name: str) -> dtypes.Array:
        file.seek(first + entries[name].start)
        return formats.filled(file, entries[name].spec)

    return formats.Contents({name: entry.spec for name, entry in entries.items()}, metadata, leaf)


def _check_places(entries: dict[str, _Entry], size: int) -> None:
    """Checks that the leaves fill this many bytes without gap or overlap."""
    end = 0
    for name, (spec, start, stop) in sorted(entries.items(), key=lambda item: item[1][1:]):
        if start != end or stop - start != spec.nbytes:
            found = f"expected {spec.nbytes} bytes from {end}, found {start} to {stop}"
            raise errors.FileError(f"safetensors leaf {name!r}: {found}")
        end = stop
    if end != size:
        raise errors.FileError(f"safetensors: expected {end} bytes of leaves, found {size}")


def _parse(header: bytes) -> tuple[dict[str, _Entry], dict[str, str]]:
    """The leaves and the metadata."""
    entries = objects.parse(header, _value, what=_HEADER)
    metadata = entries.pop(_METADATA, {})
    return entries, metadata


def _value(name: str, text: str, at: int) -> tuple[Any, int]:
    """A leaf's entry or the metadata, and where it ends."""
    return objects.read(text, at, _metadata_text, what=_HEADER) if name == _METADATA else _entry(name, text, at)


def _metadata_text(name: str, text: str, at: int) -> tuple[str, int]:
    if text[at : at + 1] != '"':
        raise errors.FileError(f"{_HEADER}: expected a text for {name!r} under {_METADATA}")
    return objects.read_text(text, at)


def _entry(name: str, text: str, at: int) -> tuple[_Entry, int]:
    end = text.find("}", at, at + _LONGEST_ENTRY) + 1
    if not end:
        raise errors.FileError(f"safetensors leaf {name!r}: expected an entry of at most {_LONGEST_ENTRY} characters")
    try:
        entry, length = objects.DECODER.raw_decode(text[at:end])
    except (ValueError, RecursionError) as error:
        raise errors.FileError(f"safetensors leaf {name!r}: expected its entry as JSON, found {error}") from None
    try:
        dtype, shape, offsets = entry["dtype"], tuple(entry["shape"]), tuple(entry["data_offsets"])
    except (TypeError, KeyError):
        raise errors.FileError(f"safetensors leaf {name!r}: expected dtype, shape and data_offsets") from None
    if not isinstance(dtype, str) or dtype not in _DTYPES:
        raise errors.FileError(f"safetensors leaf {name!r}: expected one of {', '.join(_DTYPES)}, found {dtype!r}")
    if [type(offset) for offset in offsets] != [int, int]:
        raise errors.FileError(f"safetensors leaf {name!r}: expected two integers as data_offsets, found {offsets}")
    with errors.of_leaf(name):
        formats.check_shape(shape, _DTYPES[dtype])
    return _Entry(dtypes.Spec(shape, _DTYPES[dtype]), *offsets), at + length


class Plan(NamedTuple):
    """A file before its leaves are written."""

    start: bytes  # of the file: all that stands before the leaves
    places: dict[str, int]  # leaf name -> where its bytes go


def plan(specs: Mapping[str, dtypes.Spec], metadata: Mapping[str, str]) -> Plan:
    """Where a file has each of these leaves; wide dtypes come first in it, so that every leaf is aligned.

    Args:
      specs: of the leaves.
      metadata: texts.

    Returns:
      The plan: the same leaves give the same.

    Raises:
      FileError: the format has no such dtype, name or text, or the header is longer than a reader takes.
    """
    for text in (*specs, *metadata, *metadata.values()):
        formats.check_text(text)
    header: dict[str, Any] = {_METADATA: dict(metadata)} if metadata else {}
    starts, end = {}, 0
    for name in sorted(specs, key=lambda name: (-specs[name].dtype.itemsize, name)):
        spec, dtype = specs[name], dtypes.name(specs[name].dtype)
        if dtype not in _NAMES or name == _METADATA:
            raise errors.FileError(f"safetensors leaf {name!r}: the format has no {dtype} of this name; use .npz")
        starts[name], end = end, end + spec.nbytes
        header[name] = {"dtype": _NAMES[dtype], "shape": spec.shape, "data_offsets": [starts[name], end]}
    encoded = json.dumps(header, separators=(",", ":")).encode()
    encoded += b" " * (-len(encoded) % 8)
    if len(encoded) > formats.LARGEST_INDEX:
        found = f"expected at most {formats.LARGEST_INDEX} bytes of names and metadata, found {len(encoded)}"
        raise errors.FileError(f"{_HEADER}: {found}; use fewer or shorter ones")
    before = len(encoded).to_bytes(8, "little") + encoded
    return Plan(before, {name: len(before) + start for name, start in starts.items()})


def writer(specs: Mapping[str, dtypes.Spec], metadata: Mapping[str, str]) -> formats.Writer:
    """What writes a file of these leaves, in any order.

    Args:
      specs: of the leaves.
      metadata: texts.

    Returns:
      A function (file opened for writing, leaves): the same leaves give the same bytes.

    Raises:
      FileError: as `plan`.
    """
    planned = plan(specs, metadata)

    def write(file: BinaryIO, leaves: formats.Leaves) -> None:
        file.write(planned.start)
        for name, leaf in leaves:
            file.seek(planned.places[name])
            file.write(dtypes.flat_bits(leaf).data)

    return write
