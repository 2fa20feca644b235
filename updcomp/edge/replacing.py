"""Files written whole or not at all; an error or a signal leaves nothing behind, and what a kill leaves is swept."""

import contextlib
import errno
import fcntl
import os
import re
import secrets
import shutil
import stat
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

from updcomp.edge.reading import AnyPath, is_standard, kind_of
from updcomp.wire import errors

_TEMPORARY = re.compile(r"\.updcomp-[0-9a-f]{8}\.(?:tmp|new)")  # a file, or a folder


def replace_file(path: AnyPath, write: Callable[[BinaryIO], object], *, follow: bool = True) -> None:
    """Writes a file under a temporary name in its folder, syncs it, and renames it.

    The temporary file is locked while it is written, so that `sweep` can tell it from what a killed process left. A
    file that is replaced hands on its mode and, where that is permitted, its owner.

    Args:
      path: the file's; `-` is standard output, to which nothing goes before all has been written.
      write: writes the content.
      follow: whether a symbolic link stays and its target is replaced, or the link itself.

    Raises:
      FileError: it cannot be written; then nothing is left of it.
    """
    if is_standard(path):
        _write_standard_output(write)
        return
    with unwritable_named(path):
        target = _target(path) if follow else Path(path)
        replaced = _replaced(path, target)
        sweep(target.parent)
        with _temporary(target.parent, private=replaced is not None) as (temporary, file):
            write(file)
            file.flush()
            if replaced is not None:
                _hand_on(replaced, file)
            os.fsync(file.fileno())
            os.replace(temporary, target)
        sync_folder(target.parent)


def write_bytes(path: AnyPath, content: bytes) -> None:
    """Writes a whole file: all of it, or nothing.

    Args:
      path: as for `replace_file`.
      content: its bytes.

    Raises:
      FileError: it cannot be written; nothing is left behind.
    """
    replace_file(path, lambda file: file.write(content))


def sweep(folder: AnyPath) -> None:
    """Removes the temporary files and folders that killed processes left in a folder; none that one still writes."""
    with contextlib.suppress(OSError):
        for name in os.listdir(folder):
            if _TEMPORARY.fullmatch(name):
                _remove_abandoned(Path(folder, name))


def check_output(path: AnyPath, *inputs: AnyPath) -> None:
    """Checks, before work goes into it, that a file can be put there and is none of the inputs, which never change.

    Args:
      path: of the output; `-` is always right.
      inputs: what it is made from.

    Raises:
      FileError: it is one of them, by whatever name, or a folder or device.
    """
    if is_standard(path):
        return
    with unwritable_named(path):
        found = _replaced(path, _target(path))
    for other in inputs:
        with contextlib.suppress(OSError):
            if found is not None and os.path.samestat(found, os.stat(other)):
                wanted = "expected another file than the input, which is never changed"
                raise errors.FileError(f"{os.fspath(path)}: {wanted}")


@contextlib.contextmanager
def unwritable_named(path: AnyPath) -> Iterator[None]:
    """What the system says while a file is written, as an error of this package that names it."""
    try:
        yield
    except errors.Error:
        raise
    except OSError as error:
        raise errors.FileError(f"{os.fspath(path)}: cannot write: {error.strerror or error}") from None
    except ValueError as error:  # a NUL, or what no file system can encode
        raise errors.FileError(f"{os.fspath(path)!r}: expected the name of a file, found {error}") from None


def _target(path: AnyPath) -> Path:
    """Where a link leads in the end; any other path as it is, whose folders one may not be allowed to look through."""
    if not os.path.islink(path):
        return Path(path)
    target = os.path.realpath(path)
    if os.path.islink(target):
        raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))
    return Path(target)


def _replaced(path: AnyPath, target: Path) -> os.stat_result | None:
    """What is there to be replaced; None for nothing, and for a link, which says nothing of its target."""
    try:
        found = os.lstat(target)
    except FileNotFoundError:
        return None
    if stat.S_ISLNK(found.st_mode):
        return None
    if not stat.S_ISREG(found.st_mode):
        raise errors.FileError(f"{os.fspath(path)}: expected a file to write, found {kind_of(found.st_mode)}")
    return found


def temporary_name(folder: Path, ending: str) -> Path:
    """A path that `sweep` knows: of a file if it ends in `tmp`, of a folder if in `new`."""
    return folder / f".updcomp-{secrets.token_hex(4)}.{ending}"


@contextlib.contextmanager
def _temporary(folder: Path, *, private: bool) -> Iterator[tuple[Path, BinaryIO]]:
    """A new file, locked and open for writing; it is removed in the end if it has its name still."""
    with contextlib.ExitStack() as stack:
        while True:
            path = temporary_name(folder, "tmp")
            stack.callback(_remove, path)  # before it is there: a signal may come at any time
            file = stack.enter_context(open(path, "xb", opener=_open_private if private else None))
            # A file system without locks never sweeps.
            with contextlib.suppress(OSError):
                fcntl.flock(file, fcntl.LOCK_EX)
            if os.fstat(file.fileno()).st_nlink:
                break
            # A sweep came between the two.
        yield path, file


def _open_private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


def _remove(path: Path) -> None:
    with contextlib.suppress(OSError):
        path.unlink()


def remove_folder(path: Path) -> None:
    """Removes a folder of files; one that holds anything else stays.

    Raises:
      OSError: it cannot be removed, or is none.
    """
    for name in os.listdir(path):
        with contextlib.suppress(IsADirectoryError, PermissionError):  # one or the other, by the system
            os.unlink(path / name)
    path.rmdir()


def _remove_abandoned(path: Path) -> None:
    with contextlib.suppress(OSError):
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            (remove_folder if path.suffix == ".new" else Path.unlink)(path)
        finally:
            os.close(descriptor)


def _hand_on(replaced: os.stat_result, file: BinaryIO) -> None:
    """Gives a file the mode of the one that it replaces, and its owner and group as far as the process may."""
    for owner, group in ((-1, replaced.st_gid), (replaced.st_uid, -1)):
        with contextlib.suppress(PermissionError):
            os.fchown(file.fileno(), owner, group)
    os.fchmod(file.fileno(), stat.S_IMODE(replaced.st_mode) & 0o777)


def sync_folder(folder: Path) -> None:
    """Waits until what a folder holds is on the disk; one that may not be read is left to the system."""
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    except PermissionError:
        return  # it may be written but not read, and only what is open can be synced
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _write_standard_output(write: Callable[[BinaryIO], object]) -> None:
    if sys.stdout is None:
        raise errors.FileError("standard output: cannot write: it is closed")
    try:
        with tempfile.TemporaryFile() as spool:
            write(spool)
            spool.seek(0)
            shutil.copyfileobj(spool, sys.stdout.buffer)
            sys.stdout.buffer.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        raise errors.FileError(f"standard output: cannot write: {error.strerror or error}") from None
