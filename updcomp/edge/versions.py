"""The files of a store's versions: their names, whether they hold what they should, and how they are made anew."""

import contextlib
import errno
import hashlib
import logging
import math
import os
import re
import stat
from collections.abc import Iterator
from pathlib import Path

from updcomp.edge import applying, files, state
from updcomp.wire import errors, fingerprint, metadata

FOLDER = "versions"
MODEL, UPDATE, RECORD = "safetensors", "upd", "json"

_NAME = re.compile(rf"([0-9]{{8,18}})\.({MODEL}|{UPDATE}|{RECORD})")
# Of the process or the machine, not of the file: trying later helps, and nothing may be given up for it.
_PASSING = (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EACCES, errno.EPERM, errno.ESTALE)
_FULL = (errno.ENOSPC, errno.EDQUOT)

_FileKey = tuple[int, ...]
_found: dict[_FileKey, tuple[str, str]] = {}  # what files held when this process read them
_MOST_FOUND = 1024

_log = logging.getLogger(__name__)


def path(folder: Path, number: int, suffix: str = MODEL) -> Path:
    """The file of a version.

    >>> path(Path("store"), 7).as_posix()
    'store/versions/00000007.safetensors'
    """
    return folder / FOLDER / f"{number:08d}.{suffix}"


def made(folder: Path) -> Iterator[tuple[Path, int]]:
    """(path, number) of the files in a store's folder that have the names of a version's."""
    try:
        names = sorted(os.listdir(folder / FOLDER))
    except (FileNotFoundError, NotADirectoryError):
        return
    for name in names:
        match = _NAME.fullmatch(name)
        if match and path(folder, int(match[1]), match[2]).name == name:
            yield folder / FOLDER / name, int(match[1])


def remove(folder: Path, number: int) -> None:
    """Removes the files of a version; what cannot be removed only takes space."""
    for suffix in (MODEL, UPDATE, RECORD):
        with contextlib.suppress(OSError):
            path(folder, number, suffix).unlink()


def remove_others(folder: Path, numbers: set[int]) -> None:
    """Removes the files of all versions but some."""
    for found, number in made(folder):
        if number not in numbers:
            with contextlib.suppress(OSError):
                found.unlink()


def is_whole(folder: Path, version: state.Version, *, anew: bool = False) -> bool:
    """Whether a version's model is what it should be: every byte is read, once per process and file.

    A file is another one if its device, inode, size, or time of modification or change differ.

    Args:
      folder: the store's.
      version: whose model.
      anew: read it even if this process has read it before.

    Returns:
      False also if it is missing, not a plain file, or damaged so that it cannot be read.

    Raises:
      FileError: it cannot be read for a reason that may pass: no memory, too many open files, no permission.
    """
    return _held(path(folder, version.number), anew=anew) == (version.fingerprint, version.metadata)


def _held(model_path: Path, *, anew: bool = False) -> tuple[str, str] | None:
    """(fingerprint, digest of the metadata) of a model file, None where there is none; raises as `is_whole`."""
    key = _key(model_path)
    if key is None:
        return None
    if anew or key not in _found:
        found = _digests(model_path)
        if found is None or _key(model_path) != key:
            return None
        while len(_found) >= _MOST_FOUND:
            _found.pop(next(iter(_found)))
        _found[key] = found
    return _found[key]


def read_back(folder: Path, version: state.Version) -> state.Version:
    """The version with the whole fingerprint of its model, of which a compact update says the beginning.

    Args:
      folder: the store's.
      version: whose model was written.

    Returns:
      The same version.

    Raises:
      FileError: the file holds another model.
    """
    model_path = path(folder, version.number)
    found = _held(model_path)
    if found is None or not found[0].startswith(version.fingerprint) or found[1] != version.metadata:
        raise errors.FileError(
            f"{model_path}: expected the model that was written, found another one; the storage may be failing"
        )
    return version._replace(fingerprint=found[0])


def mend(folder: Path, kept: state.State, version: state.Version) -> bool:
    """Makes a damaged version anew, from one that it can come from, which is mended before, and its update.

    Args:
      folder: the store's; the lock is held.
      kept: the versions that are kept.
      version: one of them.

    Returns:
      Whether it is whole now.

    Raises:
      FileError: as `is_whole`.
    """
    return _mend(folder, kept, version, set())


def _mend(folder: Path, kept: state.State, version: state.Version, beyond: set[int]) -> bool:
    """As `mend`; beyond healing are versions that were tried, of which several may come from one."""
    if is_whole(folder, version):
        return True
    update = update_of(folder, version)
    if version.number in beyond or version.update is None or update is None:
        return False
    beyond.add(version.number)
    for base in kept.versions:
        earlier = base.number < version.number and base.fingerprint == version.update.base
        if earlier and _mend(folder, kept, base, beyond) and _remade(folder, base, version, update):
            return True
    return False


def _remade(folder: Path, base: state.Version, version: state.Version, update: bytes) -> bool:
    """Whether a version is whole after its update was applied to another one."""
    damaged = path(folder, version.number)
    with contextlib.suppress(OSError):
        damaged.unlink()  # the new one may need its space
    try:
        # It was applied before, at a budget that was enough.
        applying.apply_file(path(folder, base.number), update, damaged, budget=math.inf, follow=False)
    except errors.Error as error:
        _raise_passing(error)
        _log.warning("%s: is damaged, and cannot be made anew: %s", damaged, error)
    if not is_whole(folder, version):
        return False
    _log.warning("%s: was damaged; made anew from version %d", damaged, base.number)
    return True


def update_of(folder: Path, version: state.Version) -> bytes | None:
    """The update that made a version; None if there is none or it is damaged."""
    if version.update is None:
        return None
    update = read(path(folder, version.number, UPDATE), version.update.size)
    return update if update is not None and hashlib.sha256(update).hexdigest() == version.update.sha256 else None


def read(path: Path, most: int) -> bytes | None:
    """The bytes of a small file; None if it is missing, not a plain file, too large, or damaged.

    Raises:
      FileError: as `is_whole`.
    """
    if _key(path) is None:
        return None
    try:
        return files.read_bytes(path, most=most)
    except errors.Error as error:
        _raise_passing(error)
        return None


def is_full(error: BaseException) -> bool:
    """Whether a file could not be written because there is no space for it."""
    return _system_error(error) in _FULL


def _digests(path: Path) -> tuple[str, str] | None:
    """(fingerprint, digest of the metadata) of a model file; its leaves are read one at a time."""
    try:
        with files.open_model(path) as file:
            return fingerprint.of(file.model).hex(), metadata.fingerprint(file.metadata).hex()
    except errors.Error as error:
        _raise_passing(error)
        return None


def _raise_passing(error: errors.Error) -> None:
    if _system_error(error) in _PASSING or isinstance(error.__context__, MemoryError):
        raise error


def _system_error(error: BaseException | None) -> int | None:
    """The number of the system's error behind one of this package."""
    while error is not None and not isinstance(error, OSError):
        error = error.__cause__ or error.__context__
    return None if error is None else error.errno


def _key(path: Path) -> _FileKey | None:
    """What tells a file from another one; None if there is no plain file."""
    try:
        found = os.lstat(path)
    except OSError as error:
        if error.errno in _PASSING:
            raise errors.FileError(f"{path}: {error.strerror}") from error
        return None
    if not stat.S_ISREG(found.st_mode):
        return None
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns
