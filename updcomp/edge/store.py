"""Versions of a model in a folder, one of them current; a crash at any point leaves a valid current one."""

import contextlib
import itertools
import os
from collections.abc import Iterator
from pathlib import Path

from updcomp.edge import files
from updcomp.wire import container, dtypes, errors

_POINTER = "current"


class Store:
    """A folder with the first and the last few versions of a model and a file that names the current one.

    An update may start from any version that is kept: its fingerprint says which. The first one always is, since a
    server that starts anew makes its updates relative to that.

    A version is written, synced and renamed before the pointer is replaced, and older versions are removed after that:
    whichever of these steps a crash interrupts, the pointer names a whole file.
    """

    def __init__(self, folder: str | os.PathLike[str], *, keep: int = 3) -> None:
        """Opens a folder.

        Args:
          folder: it is made by `initialise`.
          keep: number of latest versions to keep, the current one included; at least 1.

        Raises:
          Error: fewer than 1.
        """
        if keep < 1:
            raise errors.Error(f"keep: expected at least 1, found {keep}")
        self._folder = Path(folder)
        self._keep = keep

    def initialise(self, model_path: str | os.PathLike[str]) -> None:
        """Makes a model file the first version.

        Raises:
          FileError: the folder has a current version already, or a file cannot be read or written.
        """
        if (self._folder / _POINTER).exists():
            raise errors.FileError(f"{self._folder}: expected a folder without a current version")
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise errors.FileError(f"{self._folder}: {error.strerror}") from None
        self._add(1, files.read_model(model_path))

    def version(self) -> int:
        """The number of the current version.

        Raises:
          FileError: there is none.
        """
        text = files.read_bytes(self._folder / _POINTER)
        if not text.isdigit():
            raise errors.FileError(f"{self._folder / _POINTER}: expected a version number, found {text[:20]!r}")
        return int(text)

    def path(self) -> Path:
        """The file of the current version."""
        return self._path(self.version())

    def current(self) -> dtypes.Model:
        """The current model: leaf name -> array."""
        return files.read_model(self.path()).model

    def install(self, update: bytes) -> None:
        """Applies an update to the version that it starts from and makes the result current.

        Args:
          update: an update file's bytes.

        Raises:
          Error: the update does not fit or cannot be stored; the current version stays.
        """
        version = self.version()
        old = files.read_model(self._path(version))
        new = container.apply_to_any(update, itertools.chain([old.model], self._earlier(version)))
        self._add(version + 1, old._replace(model=new))

    def rollback(self) -> None:
        """Makes the version before the current one current again, and removes the current one.

        Raises:
          FileError: no earlier version is kept.
        """
        version = self.version()
        if not self._path(version - 1).exists():
            raise errors.FileError(f"{self._folder}: expected a version before {version}, found none")
        self._point_to(version - 1)

    def _earlier(self, version: int) -> Iterator[dtypes.Model]:
        """The models kept from before a version, latest first."""
        paths = sorted(self._folder.glob("*.safetensors"), reverse=True)
        return (files.read_model(path).model for path in paths if path < self._path(version))

    def _path(self, version: int) -> Path:
        return self._folder / f"{version:08d}.safetensors"

    def _add(self, version: int, content: files.ModelFile) -> None:
        files.write_model(self._path(version), content.model, content.metadata)
        self._point_to(version)

    def _point_to(self, version: int) -> None:
        files.replace_file(self._folder / _POINTER, lambda file: file.write(b"%d" % version))
        kept = {self._path(number) for number in (1, *range(version - self._keep + 1, version + 1))}
        for path in self._folder.glob("*.safetensors"):
            if path not in kept:
                # The switch is done; a version that cannot be removed only takes space.
                with contextlib.suppress(OSError):
                    path.unlink()
