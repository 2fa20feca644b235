"""NumPy's `.npz`: a zip archive with a `.npy` member for each leaf. No pickle is ever loaded."""

import ast
import io
import struct
import warnings
import zipfile
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from updcomp.edge import formats
from updcomp.wire import dtypes, errors

_LONGEST_HEADER = 10_000  # bytes of a member's own header, as NumPy reads it
_LONGEST_NAME = 65_535  # bytes that a zip archive has for it
_DIRECTORY_ENTRY = 46 + 28  # bytes of a member in the directory: fixed, and its sizes and place where they are large
_LOCAL_HEADER = 30  # bytes before a member's name
_LENGTHS = struct.Struct("<HH")  # in the local header: of the name and of what follows it
_LENGTHS_AT = 26
_HAS_TRAILER = 1 << 3  # flag: a member's checksum and sizes follow it, with or without a mark, in 4 or 8 bytes each
_TRAILERS: tuple[int, ...] = (12, 16, 20, 24)
_NO_TRAILER: tuple[int, ...] = (0,)
_RATIO = {zipfile.ZIP_STORED: 1, zipfile.ZIP_DEFLATED: 1032}  # no deflated byte stands for more
_ENCRYPTED_OR_PATCHED = 1 | 1 << 5 | 1 << 6  # flags


class _Member(NamedTuple):
    """A leaf in an archive."""

    info: zipfile.ZipInfo
    header_size: int  # of its .npy
    stored: dtypes.Spec  # as its bytes are: of any byte order, and with the axes reversed if in Fortran's order
    is_fortran: bool

    @property
    def spec(self) -> dtypes.Spec:
        """Of the leaf that is read."""
        shape = self.stored.shape[::-1] if self.is_fortran else self.stored.shape
        return dtypes.Spec(shape, self.stored.dtype.newbyteorder("<"))


class _Bounded:
    """A file of which no more than an index is read at once, whatever `zipfile` finds in it."""

    def __init__(self, file: BinaryIO, size: int) -> None:
        self._file, self._size = file, size
        self.seek, self.tell, self.seekable = file.seek, file.tell, file.seekable

    def read(self, size: int = -1) -> bytes:
        left = self._size - self._file.tell()
        asked = left if size < 0 else min(size, left)
        if asked > formats.LARGEST_INDEX:
            raise errors.FileError(f"npz: expected a directory of at most {formats.LARGEST_INDEX} bytes, found {asked}")
        return self._file.read(asked)


def read(file: BinaryIO, size: int) -> formats.Contents:
    """Reads and checks what an archive says of its members.

    Args:
      file: opened for reading at its start; the leaves are read from it.
      size: of the file in bytes.

    Returns:
      What it holds; it has no metadata.

    Raises:
      FileError, DtypeError: a member is no `.npy` with numbers in it, or overlaps another.
      Exception: of many types, where the archive is damaged.
    """
    archive = zipfile.ZipFile(_Bounded(file, size))
    members: dict[str, _Member] = {}
    with warnings.catch_warnings():
        # Python's parser warns of some headers that are then refused.
        warnings.simplefilter("ignore")
        for info in archive.infolist():
            name = _name(info)
            if name in members:
                raise errors.FileError(f"npz member {info.filename!r}: appears twice")
            with errors.of_leaf(name):
                members[name] = _member(archive, info)
    _check_places(file, archive)

    def leaf(name: str) -> dtypes.Array:
        member = members[name]
        with archive.open(member.info) as part:
            part.read(member.header_size)
            stored = formats.filled(part, member.stored)
        # The last byte has been read, so the checksum was right.
        return dtypes.hold(stored.T if member.is_fortran else stored)

    return formats.Contents({name: member.spec for name, member in members.items()}, {}, leaf)


def _name(info: zipfile.ZipInfo) -> str:
    name = info.orig_filename.removesuffix(".npy")
    if name == info.orig_filename or "\0" in name:
        raise errors.FileError(f"npz member {info.orig_filename!r}: expected a name that ends in .npy, without NUL")
    return name


def _member(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> _Member:
    if info.flag_bits & _ENCRYPTED_OR_PATCHED:
        raise errors.FileError("npz member: expected one that is not encrypted")
    if info.compress_type not in _RATIO:
        raise errors.FileError(f"npz member: expected it stored or deflated, found method {info.compress_type}")
    with archive.open(info) as part:
        stored, is_fortran, header_size = _npy_header(part.read(_LONGEST_HEADER + 12))
    expected = header_size + stored.nbytes
    if info.file_size != expected:
        raise errors.FileError(f"npz member: expected {expected} bytes as its shape says, found {info.file_size}")
    if info.file_size > _RATIO[info.compress_type] * info.compress_size:
        raise errors.FileError(f"npz member: {info.file_size} bytes cannot be in {info.compress_size}")
    return _Member(info, header_size, stored, is_fortran)


def _npy_header(start: bytes) -> tuple[dtypes.Spec, bool, int]:
    """(what its bytes are, whether in Fortran's order, length of the header) of a `.npy` that starts so."""
    version, width = start[6:8], 2 if start[6:7] == b"\1" else 4
    if start[:6] != b"\x93NUMPY" or version not in (b"\1\0", b"\2\0", b"\3\0"):
        raise errors.FileError(f"npz member: expected a .npy of version 1 to 3, found {start[:8]!r}")
    end = 8 + width + int.from_bytes(start[8 : 8 + width], "little")
    if end > len(start):
        raise errors.FileError(f"npz member: expected a header of at most {_LONGEST_HEADER} bytes, found {end}")
    header = ast.literal_eval(start[8 + width : end].decode("utf8" if version == b"\3\0" else "latin1"))
    if not isinstance(header, dict) or header.keys() != {"descr", "fortran_order", "shape"}:
        raise errors.FileError("npz member: expected descr, fortran_order and shape in its header")
    dtype, is_fortran, shape = np.lib.format.descr_to_dtype(header["descr"]), header["fortran_order"], header["shape"]
    dtypes.name(dtype)
    if not isinstance(shape, tuple) or not isinstance(is_fortran, bool):
        raise errors.FileError(f"npz member: expected shape and order, found {shape!r} and {is_fortran!r}")
    formats.check_shape(shape, dtype)
    return dtypes.Spec(shape[::-1] if is_fortran else shape, dtype), is_fortran, end


def _check_places(file: BinaryIO, archive: zipfile.ZipFile) -> None:
    """Checks that the members fill the file up to its directory: none shares bytes with another, none is left out."""
    end, gaps = 0, _NO_TRAILER
    for info in sorted(archive.infolist(), key=lambda info: info.header_offset):
        if info.header_offset - end not in gaps:
            raise errors.FileError(f"npz member {info.filename!r}: expected it at {end}, found at {info.header_offset}")
        file.seek(info.header_offset + _LENGTHS_AT)
        end = info.header_offset + _LOCAL_HEADER + sum(_LENGTHS.unpack(file.read(_LENGTHS.size))) + info.compress_size
        gaps = _TRAILERS if info.flag_bits & _HAS_TRAILER else _NO_TRAILER
    if archive.start_dir - end not in gaps:
        raise errors.FileError(f"npz: expected its directory at {end}, found at {archive.start_dir}")


def writer(specs: dict[str, dtypes.Spec], metadata: dict[str, str]) -> formats.Writer:
    """What writes an archive of these leaves, in the order in which they come.

    Args:
      specs: of the leaves.
      metadata: not written; the format has none.

    Returns:
      A function (file opened for writing, leaves): the same leaves in the same order give the same bytes.

    Raises:
      FileError: the format has no such name or dtype, or the directory is larger than a reader takes.
    """
    headers = {name: _header_of(name, spec) for name, spec in specs.items()}
    size = sum(_DIRECTORY_ENTRY + len(f"{name}.npy".encode()) for name in specs)
    if size > formats.LARGEST_INDEX:
        found = f"expected at most {formats.LARGEST_INDEX} bytes of names, found {size}"
        raise errors.FileError(f"npz: {found}; use fewer or shorter ones")

    def write(file: BinaryIO, leaves: formats.Leaves) -> None:
        with zipfile.ZipFile(file, "w") as archive:
            for name, leaf in leaves:
                # A fixed date: the same model gives the same bytes.
                info = zipfile.ZipInfo(f"{name}.npy", (1980, 1, 1, 0, 0, 0))
                with archive.open(info, "w", force_zip64=True) as part:
                    part.write(headers[name])
                    part.write(dtypes.flat_bits(leaf).data)

    return write


def _header_of(name: str, spec: dtypes.Spec) -> bytes:
    """The `.npy` header of a leaf."""
    formats.check_text(name)
    if "\0" in name or len(f"{name}.npy".encode()) > _LONGEST_NAME:
        found = f"expected a name without NUL and of at most {_LONGEST_NAME - 4} bytes, found {len(name)} characters"
        raise errors.FileError(f"npz leaf {name!r}: {found}; use .safetensors")
    fields: dict[str, Any] = {"descr": np.lib.format.dtype_to_descr(spec.dtype), "fortran_order": False}
    header = io.BytesIO()
    try:
        np.lib.format.write_array_header_1_0(header, fields | {"shape": spec.shape})
    except ValueError as error:
        raise errors.FileError(f"npz leaf {name!r}: no .npy header has {dtypes.name(spec.dtype)}: {error}") from None
    return header.getvalue()
