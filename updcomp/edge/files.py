"""Models in files: checked when read, leaf by leaf; whole or absent when written."""

import contextlib
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import BinaryIO, NamedTuple, Protocol

import numpy as np

from updcomp.edge import formats, npz, safetensors
from updcomp.edge.reading import AnyPath, is_standard, named, open_file
from updcomp.edge.reading import read_bytes as read_bytes
from updcomp.edge.reading import read_update as read_update
from updcomp.edge.replacing import replace_file as replace_file
from updcomp.edge.replacing import sweep as sweep
from updcomp.edge.replacing import write_bytes as write_bytes
from updcomp.wire import dtypes, errors


class _Format(Protocol):
    """What a module does for a format."""

    def read(self, file: BinaryIO, size: int) -> formats.Contents: ...

    def writer(self, specs: dict[str, dtypes.Spec], metadata: dict[str, str]) -> formats.Writer: ...


_FORMATS: dict[str, _Format] = {".safetensors": safetensors, ".npz": npz}
SUFFIXES = tuple(_FORMATS)


class ModelFile(NamedTuple):
    """What a model file holds."""

    model: dtypes.Model  # leaf name -> array
    metadata: dict[str, str]  # of a .safetensors file; empty for .npz


def check_suffix(path: AnyPath) -> None:
    """Checks that the path names a format that this code knows.

    Raises:
      FileError: it does not.
    """
    if Path(path).suffix not in SUFFIXES:
        raise errors.FileError(f"{os.fspath(path)}: expected a model file ending in {' or '.join(SUFFIXES)}")


def keeps_metadata(path: AnyPath) -> bool:
    """Whether the path names a format that has metadata."""
    return Path(path).suffix == ".safetensors"


@contextlib.contextmanager
def open_model(path: AnyPath) -> Iterator[ModelFile]:
    """Opens a `.safetensors` or `.npz` file and checks what it says of its leaves; each is read when it is asked for.

    Args:
      path: the file's.

    Yields:
      The model as a mapping that keeps no leaf and has `specs`, and the metadata. To read a leaf raises FileError if it
      is damaged or the file has changed.

    Raises:
      FileError: the file cannot be read, is damaged, or has an unknown suffix or dtype.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     write_model(f"{folder}/m.npz", {"w": np.float32([1, 2])})
    ...     with open_model(f"{folder}/m.npz") as (model, metadata):
    ...         model.specs["w"].shape, model["w"].tolist(), metadata
    ((2,), [1.0, 2.0], {})
    """
    check_suffix(path)
    with contextlib.ExitStack() as stack:
        with _reading(path):
            file = stack.enter_context(open_file(path))
            contents = _FORMATS[Path(path).suffix].read(file, os.fstat(file.fileno()).st_size)
        yield ModelFile(_OpenModel(path, file, contents), contents.metadata)


class _OpenModel(Mapping[str, dtypes.Array]):
    """The leaves of an open file, in sorted order of their names."""

    def __init__(self, path: AnyPath, file: BinaryIO, contents: formats.Contents) -> None:
        self.specs = {name: contents.specs[name] for name in sorted(contents.specs)}
        self._path, self._file, self._read = path, file, contents.read
        self._stamp = self._stamped()

    def __getitem__(self, name: str) -> dtypes.Array:
        if name not in self.specs:
            raise KeyError(name)
        with _reading(self._path):
            with errors.of_leaf(name):
                leaf = self._read(name)
                if leaf.dtype == bool and leaf.size and leaf.view(np.uint8).max() > 1:
                    raise errors.FileError(f"expected bytes of 0 and 1, found {leaf.view(np.uint8).max()}")
            if self._stamped() != self._stamp:
                raise errors.FileError("the file changed while it was read; read it again")
        return leaf

    def __iter__(self) -> Iterator[str]:
        return iter(self.specs)

    def __len__(self) -> int:
        return len(self.specs)

    def _stamped(self) -> tuple[int, int]:
        found = os.fstat(self._file.fileno())
        return found.st_size, found.st_mtime_ns


@contextlib.contextmanager
def _reading(path: AnyPath) -> Iterator[None]:
    with named(path):
        try:
            yield
        except (errors.Error, OSError, MemoryError):
            raise
        except Exception as error:
            # zipfile, zlib, ast and numpy.lib.format raise many types on damaged input.
            found = " ".join(str(error).split()) or type(error).__name__
            raise errors.FileError(f"not a model file: {found}") from None


def read_model(path: AnyPath) -> ModelFile:
    """Reads the whole of a `.safetensors` or `.npz` file.

    Args:
      path: the file's.

    Returns:
      Its leaves as a dict, and its metadata.

    Raises:
      FileError: as `open_model`.
    """
    with open_model(path) as (model, metadata):
        return ModelFile(dict(model), metadata)


def write_model(path: AnyPath, model: dtypes.Model, metadata: dict[str, str] | None = None) -> None:
    """Writes a `.safetensors` or `.npz` file, whole or not at all.

    Args:
      path: the file's; an older file there is replaced.
      model: leaf name -> array; of a lazy one no more than a leaf is held at a time.
      metadata: texts to keep in a `.safetensors` file.

    Raises:
      FileError: it cannot be written; then nothing is left of it.
    """
    specs = dtypes.specs(model)
    write_leaves(path, specs, ((name, model[name]) for name in specs), metadata)


def write_leaves(
    path: AnyPath,
    specs: Mapping[str, dtypes.Spec],
    leaves: formats.Leaves,
    metadata: dict[str, str] | None = None,
    *,
    like: AnyPath | None = None,
    follow: bool = True,
) -> None:
    """Writes a `.safetensors` or `.npz` file of leaves that come one at a time; nothing, if they end in an error.

    Args:
      path: the file's; an older file there is replaced. `-` is standard output.
      specs: of all leaves.
      leaves: (name, leaf) of each of them once; the order is that of the members of an `.npz`.
      metadata: texts to keep in a `.safetensors` file.
      like: a path whose suffix says the format if that of `path` does not.
      follow: whether a symbolic link stays and its target is replaced, or the link itself.

    Raises:
      FileError: it cannot be written, or leaves are missing, twice there, or others than their specs say.
    """
    formatted = path if like is None else like
    check_suffix(formatted)
    with named("standard output" if is_standard(path) else path):
        write = _FORMATS[Path(formatted).suffix].writer(dict(specs), metadata or {})
    replace_file(path, lambda file: write(file, _checked(specs, leaves)), follow=follow)


def _checked(specs: Mapping[str, dtypes.Spec], leaves: formats.Leaves) -> Iterator[tuple[str, dtypes.Array]]:
    """The leaves as `dtypes.hold` gives them."""
    missing = dict(specs)
    for name, leaf in leaves:
        held = dtypes.hold(leaf)
        found = dtypes.Spec(held.shape, held.dtype)
        if found != (expected := missing.pop(name, None)):
            raise errors.FileError(f"leaf {name!r}: expected {expected or 'no such leaf, or not twice'}, found {found}")
        yield name, held
    if missing:
        raise errors.FileError(f"leaf {min(missing)!r}: expected {missing[min(missing)]}, found no such leaf")
