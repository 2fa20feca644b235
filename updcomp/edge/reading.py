"""Files as bytes: regular ones alone, since others may never end, and no more of them than is asked for."""

import contextlib
import io
import os
import stat
import sys
from collections.abc import Iterator, Mapping
from typing import BinaryIO, TypeAlias

from updcomp.wire import costs, dtypes, errors, header

AnyPath: TypeAlias = str | os.PathLike[str]

_LARGEST_UPDATE = 1 << 30  # bytes, where nothing is known of the model
_PIECE = 1 << 20  # bytes read at once
_KINDS = {stat.S_IFDIR: "a folder", stat.S_IFIFO: "a FIFO", stat.S_IFSOCK: "a socket", stat.S_IFREG: "a file"}


def is_standard(path: AnyPath) -> bool:
    """Whether a path is `-`: standard input where a file is read, standard output where one is written."""
    return os.fspath(path) == "-"


def kind_of(mode: int) -> str:
    """What a path names, from its mode as `os.stat` gives it.

    >>> kind_of(os.stat("/dev/null").st_mode)
    'a device'
    """
    return _KINDS.get(stat.S_IFMT(mode), "a device")


@contextlib.contextmanager
def named(path: AnyPath) -> Iterator[None]:
    """Errors raised within begin with the file's name; those of the system become `FileError`."""
    name = "standard input" if is_standard(path) else os.fspath(path)
    try:
        yield
    except errors.Error as error:
        raise type(error)(f"{name}: {error}") from None
    except OSError as error:
        raise errors.FileError(f"{name}: {error.strerror or error}") from None
    except ValueError as error:  # a NUL, or what no file system can encode
        raise errors.FileError(f"{name!r}: expected the name of a file, found {error}") from None
    except MemoryError:
        raise errors.FileError(f"{name}: the file does not fit into memory") from None


@contextlib.contextmanager
def open_file(path: AnyPath) -> Iterator[BinaryIO]:
    """Opens a regular file, or a link to one, for reading; never waits.

    Raises:
      FileError: it is something else.
      OSError: it cannot be opened.
    """
    # Asked before, since to open a device may do something, and after, since it may have been exchanged.
    _check_regular(os.stat(path).st_mode)
    with open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK | os.O_NOCTTY)) as file:
        _check_regular(os.fstat(file.fileno()).st_mode)
        yield file


def _check_regular(mode: int) -> None:
    if not stat.S_ISREG(mode):
        raise errors.FileError(f"expected a file, found {kind_of(mode)}")


def read_bytes(path: AnyPath, *, most: int | None = None) -> bytes:
    """Reads a file.

    Args:
      path: of a regular file.
      most: bytes that it may have; a larger one is not read.

    Returns:
      All of it.

    Raises:
      FileError: it cannot be read or is larger.
    """
    with named(path), open_file(path) as file:
        _check_size(file, most)
        return _rest(file, most)


def read_update(path: AnyPath, specs: Mapping[str, dtypes.Spec] | None = None) -> bytes:
    """Reads what may be an update, and nothing else: its first bytes and its size are looked at before the rest.

    Args:
      path: of a regular file; `-` is standard input.
      specs: of the model that it is for; without them, or where it adds leaves, it may have 1 GiB.

    Returns:
      All of it.

    Raises:
      CorruptUpdateError: it does not begin as an update, or is larger than any update of such a model.
      FileError: it cannot be read.
    """
    most = _LARGEST_UPDATE if specs is None else costs.largest_update(specs)
    with named(path), _source(path) as file:
        start = file.read(header.FIXED_SIZE)
        if not start.startswith(header.MAGIC):
            header.parse(start)  # says so
        if header.has_structure(start):
            most = max(most, _LARGEST_UPDATE)
        try:
            if not is_standard(path):
                _check_size(file, most)
            return start + _rest(file, most - len(start))
        except errors.FileError as error:
            raise errors.CorruptUpdateError(f"not an update{' of this model' if specs else ''}: {error}") from None


@contextlib.contextmanager
def _source(path: AnyPath) -> Iterator[BinaryIO]:
    if not is_standard(path):
        with open_file(path) as file:
            yield file
    elif sys.stdin is None:
        raise errors.FileError("it is closed")
    else:
        with contextlib.suppress(AttributeError, OSError, ValueError):  # it need not be a file of the system's
            os.set_blocking(sys.stdin.fileno(), True)
        yield sys.stdin.buffer


def _check_size(file: BinaryIO, most: int | None) -> None:
    size = os.fstat(file.fileno()).st_size
    if most is not None and size > most:
        raise errors.FileError(f"expected at most {most:,} bytes, found {size:,}")


def _rest(file: BinaryIO, most: int | None) -> bytes:
    """What follows in a file, which may grow while it is read."""
    content = io.BytesIO()
    while piece := file.read(_PIECE):
        content.write(piece)
        if most is not None and content.tell() > most:
            raise errors.FileError(f"expected at most {most:,} bytes, found more")
    return content.getvalue()
