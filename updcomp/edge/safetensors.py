"""The safetensors format in NumPy: an 8-byte length, a JSON header, the leaves' bytes without gaps."""

import json
import math
from typing import Any, BinaryIO

import numpy as np

from updcomp.wire import dtypes, errors

_MAX_HEADER = 100_000_000
_METADATA = "__metadata__"

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


def read(file: BinaryIO, size: int) -> tuple[dtypes.Model, dict[str, str]]:
    """Reads and validates a file.

    Args:
      file: opened for reading at its start.
      size: of the file in bytes.

    Returns:
      (model, metadata).

    Raises:
      FileError: it is not a valid safetensors file.
    """
    header_size = int.from_bytes(file.read(8), "little")
    if size < 8 or header_size > min(size - 8, _MAX_HEADER):
        raise errors.FileError(f"not safetensors: expected a header within its {size} bytes, found {header_size}")
    header = _parse_header(file.read(header_size))
    metadata = header.pop(_METADATA, {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise errors.FileError(f"safetensors header: expected texts under {_METADATA}")
    buffer = np.empty(size - 8 - header_size, np.uint8)
    if file.readinto(buffer) != len(buffer):  # type: ignore[attr-defined]
        raise errors.FileError("safetensors: the file changed while it was read")
    entries = {name: _entry(name, entry) for name, entry in header.items()}
    end = 0
    for name, (dtype, shape, start, stop) in sorted(entries.items(), key=lambda item: item[1][2:]):
        if start != end or stop - start != math.prod(shape) * dtype.itemsize:
            raise errors.FileError(
                f"safetensors leaf {name!r}: expected {math.prod(shape) * dtype.itemsize} bytes from {end}, "
                f"found {start} to {stop}"
            )
        end = stop
    if end != len(buffer):
        raise errors.FileError(f"safetensors: expected {end} bytes of leaves, found {len(buffer)}")
    model = {name: _leaf(buffer[start:stop], dtype, shape) for name, (dtype, shape, start, stop) in entries.items()}
    return model, metadata


def _parse_header(text: bytes) -> dict[str, Any]:
    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if len(dict(pairs)) != len(pairs):
            raise ValueError("a name appears twice")
        return dict(pairs)

    try:
        header = json.loads(text.decode(), object_pairs_hook=unique)
    except (ValueError, RecursionError) as error:
        raise errors.FileError(f"safetensors header: expected JSON, found {error}") from None
    if not isinstance(header, dict):
        raise errors.FileError("safetensors header: expected a JSON object")
    return header


def _entry(name: str, entry: Any) -> tuple[np.dtype[Any], tuple[int, ...], int, int]:
    """(dtype, shape, first byte, end) of a leaf."""
    try:
        dtype_name, shape, (start, stop) = entry["dtype"], entry["shape"], entry["data_offsets"]
    except (TypeError, KeyError, ValueError):
        raise errors.FileError(f"safetensors leaf {name!r}: expected dtype, shape and two data_offsets") from None
    numbers = [*shape, start, stop] if isinstance(shape, list) else [None]
    # bool is a subclass of int, and true is no size.
    if not all(type(number) is int and number >= 0 for number in numbers):
        raise errors.FileError(f"safetensors leaf {name!r}: expected a shape and offsets of integers >= 0")
    if not isinstance(dtype_name, str) or dtype_name not in _DTYPES:
        raise errors.FileError(f"safetensors leaf {name!r}: expected one of {', '.join(_DTYPES)}, found {dtype_name!r}")
    return _DTYPES[dtype_name], tuple(shape), start, stop


def _leaf(data: dtypes.Array, dtype: np.dtype[Any], shape: tuple[int, ...]) -> dtypes.Array:
    aligned = data if data.ctypes.data % dtype.itemsize == 0 else data.copy()
    try:
        return aligned.view(dtype).reshape(shape)
    except ValueError as error:
        raise errors.FileError(f"safetensors: shape {shape}: {error}") from None


def write(file: BinaryIO, model: dtypes.Model, metadata: dict[str, str]) -> None:
    """Writes a file; wide dtypes first, so that every leaf is aligned.

    Args:
      file: opened for writing.
      model: leaf name -> array.
      metadata: texts.

    Raises:
      FileError: the format has no such dtype, or no such name.
    """
    leaves = {name: dtypes.hold(leaf) for name, leaf in model.items()}
    order = sorted(leaves, key=lambda name: (-leaves[name].dtype.itemsize, name))
    header: dict[str, Any] = {_METADATA: metadata} if metadata else {}
    end = 0
    for name in order:
        dtype = dtypes.name(leaves[name].dtype)
        if dtype not in _NAMES or name == _METADATA:
            raise errors.FileError(f"safetensors leaf {name!r}: the format has no {dtype} of this name; use .npz")
        start, end = end, end + leaves[name].nbytes
        header[name] = {"dtype": _NAMES[dtype], "shape": leaves[name].shape, "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    file.write(len(text).to_bytes(8, "little") + text)
    for name in order:
        file.write(dtypes.flat_bits(leaves[name]).data)
