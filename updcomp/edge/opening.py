"""Models opened for reading: what a file says of its leaves is checked at once, each leaf when it is read."""

import contextlib
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import BinaryIO, NamedTuple, Protocol

import numpy as np

from updcomp.edge import formats, npz, safetensors, shards
from updcomp.edge.reading import AnyPath, named, open_file
from updcomp.wire import dtypes, errors


class _Format(Protocol):
    """What a module does for a format."""

    def read(self, file: BinaryIO, size: int) -> formats.Contents: ...

    def writer(self, specs: dict[str, dtypes.Spec], metadata: dict[str, str]) -> formats.Writer: ...


FORMATS: dict[str, _Format] = {".safetensors": safetensors, ".npz": npz}
SUFFIXES = tuple(FORMATS)
_ENDINGS = " or ".join(SUFFIXES)


class ModelFile(NamedTuple):
    """What a model file holds."""

    model: dtypes.Model  # leaf name -> array
    metadata: dict[str, str]  # of a .safetensors file, or all shards of a folder; empty for .npz


def check_suffix(path: AnyPath) -> None:
    """Checks that the path names a format that this code knows.

    Raises:
      FileError: it does not.
    """
    if Path(path).suffix not in SUFFIXES:
        raise errors.FileError(f"{os.fspath(path)}: expected a model file ending in {_ENDINGS}")


@contextlib.contextmanager
def open_model(path: AnyPath) -> Iterator[ModelFile]:
    """Opens a model and checks what it says of its leaves; each is read when it is asked for.

    Args:
      path: of a `.safetensors` or `.npz` file, of an index of shards, or of a folder with one; see
        `updcomp.edge.shards`.

    Yields:
      The model as a mapping that keeps no leaf and has `specs`, and the metadata. To read a leaf raises FileError if it
      is damaged or the file has changed.

    Raises:
      FileError: a file cannot be read, is damaged, or has an unknown suffix or dtype; or the index does not fit its
        shards.

    >>> import tempfile
    >>> from updcomp.edge.files import write_model
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     write_model(f"{folder}/m.npz", {"w": np.float32([1, 2])})
    ...     with open_model(f"{folder}/m.npz") as (model, metadata):
    ...         model.specs["w"].shape, model["w"].tolist(), metadata
    ((2,), [1.0, 2.0], {})
    """
    found = shards.locate(path)
    with contextlib.ExitStack() as stack:
        if shards.is_index(found):
            yield _opened_shards(found, stack)
            return
        opened = _opened(found, stack)
        if os.path.isdir(path):
            homes = dict.fromkeys(opened.specs, found.name)
            opened.layout = shards.Layout(homes, {found.name: opened.metadata}, None)
        yield ModelFile(opened, opened.metadata)


def _opened(path: Path, stack: contextlib.ExitStack) -> "_OpenModel":
    if path.suffix not in SUFFIXES and not path.exists():
        raise errors.FileError(f"{path}: expected a model file ending in {_ENDINGS}, or a folder, found nothing")
    check_suffix(path)
    with _reading(path):
        file = stack.enter_context(open_file(path))
        contents = FORMATS[path.suffix].read(file, os.fstat(file.fileno()).st_size)
    return _OpenModel(path, file, contents)


def _opened_shards(path: Path, stack: contextlib.ExitStack) -> ModelFile:
    """The shards of an index."""
    index = shards.read_index(path)
    parts = {name: _opened(path.parent / name, stack) for name in sorted(set(index.homes.values()))}
    with named(path):
        shards.check(index.homes, parts)
    layout = shards.Layout(index.homes, {name: part.metadata for name, part in parts.items()}, index)
    return ModelFile(_OpenShards(parts, layout), shards.common(layout.metadata.values()))


class _Leaves(Mapping[str, dtypes.Array]):
    """Leaves that are read when they are asked for; their specs are known."""

    specs: dict[str, dtypes.Spec]  # in sorted order of their names

    def __iter__(self) -> Iterator[str]:
        return iter(self.specs)

    def __contains__(self, name: object) -> bool:  # a Mapping's own would get the value
        return name in self.specs

    def __len__(self) -> int:
        return len(self.specs)


class _OpenShards(_Leaves):
    """The leaves of all shards, in sorted order of their names."""

    def __init__(self, parts: Mapping[str, "_OpenModel"], layout: shards.Layout) -> None:
        self.layout, self._parts = layout, parts
        found = {name: spec for part in parts.values() for name, spec in part.specs.items()}
        self.specs = {name: found[name] for name in sorted(found)}

    def __getitem__(self, name: str) -> dtypes.Array:
        return self._parts[self.layout.homes[name]][name]


class _OpenModel(_Leaves):
    """The leaves of an open file, in sorted order of their names."""

    def __init__(self, path: AnyPath, file: BinaryIO, contents: formats.Contents) -> None:
        self.specs = {name: contents.specs[name] for name in sorted(contents.specs)}
        self.metadata = contents.metadata
        self.layout: shards.Layout | None = None  # of a folder
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
