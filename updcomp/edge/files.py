"""Models and updates in files: checked when read, whole or absent when written."""

import os
import secrets
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np

from updcomp.edge import safetensors
from updcomp.wire import dtypes, errors

SUFFIXES = (".safetensors", ".npz")


class ModelFile(NamedTuple):
    """What a model file holds."""

    model: dtypes.Model  # leaf name -> array
    metadata: dict[str, str]  # of a .safetensors file; empty for .npz


def check_suffix(path: str | os.PathLike[str]) -> None:
    """Checks that the path names a format that this code knows.

    Raises:
      FileError: it does not.
    """
    if Path(path).suffix not in SUFFIXES:
        raise errors.FileError(f"{os.fspath(path)}: expected a model file ending in {' or '.join(SUFFIXES)}")


def check_distinct(output: str | os.PathLike[str], *inputs: str | os.PathLike[str]) -> None:
    """Checks that an output is none of the inputs, which are never changed.

    Raises:
      FileError: it is one of them, by whatever name.
    """
    for path in inputs:
        if Path(output).exists() and Path(path).exists() and Path(output).samefile(path):
            raise errors.FileError(f"{os.fspath(output)}: expected another file than the input, which is never changed")


def read_model(path: str | os.PathLike[str]) -> ModelFile:
    """Reads a `.safetensors` or `.npz` file; no pickle is ever loaded.

    Args:
      path: the file's.

    Returns:
      Its leaves and metadata.

    Raises:
      FileError: it cannot be read, is damaged, or has an unknown suffix or dtype.
    """
    check_suffix(path)
    path = Path(path)
    try:
        with path.open("rb") as file:
            if path.suffix == ".npz":
                return ModelFile(_read_npz(file), {})
            return ModelFile(*safetensors.read(file, os.fstat(file.fileno()).st_size))
    except errors.Error as error:
        raise type(error)(f"{path}: {error}") from None
    except OSError as error:
        raise errors.FileError(f"{path}: {error.strerror or error}") from None
    except Exception as error:
        # zipfile and numpy.lib.format raise many types on damaged input.
        raise errors.FileError(f"{path}: not a model file: {_one_line(error)}") from None


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def _read_npz(file: BinaryIO) -> dtypes.Model:
    model = {}
    with zipfile.ZipFile(file) as archive:
        for member in archive.namelist():
            name = member.removesuffix(".npy")
            if name == member or name in model:
                raise errors.FileError(f"npz member {member!r}: expected .npy members of distinct names")
            with archive.open(member) as part:
                model[name] = np.lib.format.read_array(part, allow_pickle=False)
            dtypes.name(model[name].dtype)
    return model


def write_model(path: str | os.PathLike[str], model: dtypes.Model, metadata: dict[str, str] | None = None) -> None:
    """Writes a `.safetensors` or `.npz` file, whole or not at all.

    Args:
      path: the file's; an older file there is replaced.
      model: leaf name -> array.
      metadata: texts to keep in a `.safetensors` file.

    Raises:
      FileError: it cannot be written; then nothing is left of it.
    """
    check_suffix(path)

    def write(file: BinaryIO) -> None:
        if Path(path).suffix == ".npz":
            _write_npz(file, model)
        else:
            safetensors.write(file, model, metadata or {})

    replace_file(path, write)


def _write_npz(file: BinaryIO, model: dtypes.Model) -> None:
    with zipfile.ZipFile(file, "w") as archive:
        for name in sorted(model):
            # A fixed date: the same model gives the same bytes.
            member = zipfile.ZipInfo(f"{name}.npy", (1980, 1, 1, 0, 0, 0))
            with archive.open(member, "w", force_zip64=True) as part:
                np.lib.format.write_array(part, dtypes.hold(model[name]), allow_pickle=False)


def read_bytes(path: str | os.PathLike[str]) -> bytes:
    """Reads a file.

    Raises:
      FileError: it cannot be read.
    """
    try:
        if Path(path).exists() and not Path(path).is_file():
            raise errors.FileError(f"{os.fspath(path)}: expected a file, found a folder or device")
        return Path(path).read_bytes()
    except OSError as error:
        raise errors.FileError(f"{os.fspath(path)}: {error.strerror or error}") from None
    except MemoryError:
        raise errors.FileError(f"{os.fspath(path)}: the file does not fit into memory") from None


def write_bytes(path: str | os.PathLike[str], content: bytes) -> None:
    """Writes a whole file: all of it, or nothing.

    Args:
      path: of the file; one that is there is replaced.
      content: its bytes.

    Raises:
      FileError: it cannot be written; nothing is left behind.
    """

    def write(file: BinaryIO) -> None:
        file.write(content)

    replace_file(path, write)


def replace_file(path: str | os.PathLike[str], write: Callable[[BinaryIO], object]) -> None:
    """Writes a file under a temporary name in its folder, syncs it, and renames it.

    Args:
      path: the file's; it must not be a folder or device.
      write: writes the content.

    Raises:
      FileError: it cannot be written; then nothing is left of it.
    """
    target = Path(os.path.realpath(path))
    temporary = target.with_name(f".{target.name}.{secrets.token_hex(4)}.tmp")
    try:
        if target.exists() and not target.is_file():
            raise errors.FileError(f"{os.fspath(path)}: expected a file to write, found a folder or device")
        try:
            with temporary.open("xb") as file:
                write(file)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(target)
        finally:
            temporary.unlink(missing_ok=True)
        folder = os.open(target.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    except OSError as error:
        raise errors.FileError(f"{os.fspath(path)}: cannot write: {error.strerror or error}") from None
