"""One writer at a time: a lock on a file, which the kernel frees when its holder dies."""

import contextlib
import fcntl
import io
import os
import time
from collections.abc import Iterator
from pathlib import Path

from updcomp.wire import errors

_FIRST_PAUSE, _LONGEST_PAUSE = 0.001, 0.05  # seconds between two tries
_held: set[io.FileIO] = set()


class LockError(errors.FileError):
    """Another process holds the lock, and has not let it go in time."""


@contextlib.contextmanager
def held(path: str | os.PathLike[str], timeout: float) -> Iterator[None]:
    """Holds the lock of a file while the body runs; two of them exclude each other within a process, too.

    Args:
      path: a file that is made if it is not there, and that stays; it is never written to.
      timeout: seconds to wait for another holder; 0 tries once.

    Yields:
      Once the lock is held.

    Raises:
      LockError: another process holds it for longer than that.
      FileError: the file cannot be opened.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder, held(f"{folder}/lock", timeout=1):
    ...     print(os.listdir(folder))
    ['lock']
    """
    with _acquire(Path(path), timeout) as file:
        _held.add(file)
        try:
            yield
        finally:
            _held.discard(file)


def _acquire(path: Path, timeout: float) -> io.FileIO:
    """The file that has the name now, locked."""
    deadline, pause = time.monotonic() + timeout, _FIRST_PAUSE
    while True:
        file = _try(path)
        if file is not None:
            return file
        if time.monotonic() >= deadline:
            raise LockError(
                f"{path}: expected to get the lock within {timeout:g} s, found it held by another process; "
                "wait for that one, or end it"
            )
        time.sleep(pause)
        pause = min(2 * pause, _LONGEST_PAUSE)


def _try(path: Path) -> io.FileIO | None:
    try:
        with contextlib.ExitStack() as stack:
            file = stack.enter_context(io.FileIO(path, opener=_open))
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                # A lock on a file that was removed meanwhile excludes nobody.
                if os.path.samestat(os.fstat(file.fileno()), os.lstat(path)):
                    stack.pop_all()
                    return file
            except (BlockingIOError, FileNotFoundError):
                pass
            return None
    except OSError as error:
        raise errors.FileError(f"{path}: cannot lock: {error.strerror or error}") from None


def _open(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK, 0o644)


def _leave_to_parent() -> None:
    """A forked child that outlives its parent must not go on holding the parent's locks."""
    for file in _held:
        file.close()
    _held.clear()


os.register_at_fork(after_in_child=_leave_to_parent)
