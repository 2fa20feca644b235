"""Folders of model files written whole or not at all: made under another name beside their place, synced, renamed."""

import contextlib
import fcntl
import os
import stat
from collections.abc import Iterator
from pathlib import Path

from updcomp.edge import formats, safetensors, shards
from updcomp.edge.reading import AnyPath
from updcomp.edge.replacing import remove_folder, sweep, sync_folder, temporary_name, unwritable_named
from updcomp.wire import dtypes, errors


def check_new(path: AnyPath) -> None:
    """Checks that a folder can be made there: nothing may be in the place but an empty folder.

    Args:
      path: of the folder.

    Raises:
      FileError: something is there.
    """
    with unwritable_named(path):
        if os.path.lexists(path) and (os.path.islink(path) or not os.path.isdir(path) or os.listdir(path)):
            raise errors.FileError(f"{os.fspath(path)}: expected a new or empty folder, found one that is neither")


def write(
    path: AnyPath,
    layout: shards.Layout,
    plans: dict[str, safetensors.Plan],
    leaves: formats.Leaves,
) -> None:
    """Writes the shards of a model and its index; no folder is there before they are whole.

    A shard is opened for each of its leaves, so that no number of shards is too large.

    Args:
      path: of the new folder.
      layout: which files it has.
      plans: file name -> plan of the shard.
      leaves: (name, leaf) of each leaf once.

    Raises:
      FileError: it cannot be written; then nothing is left of it.
    """
    with _new_folder(path) as folder:
        for shard, plan in plans.items():
            (folder / shard).write_bytes(plan.start)
        for name, leaf in leaves:
            home = layout.homes[name]
            with open(folder / home, "r+b") as file:
                file.seek(plans[home].places[name])
                file.write(dtypes.flat_bits(leaf).data)
        if layout.index_file is not None:
            (folder / layout.index_file.name).write_bytes(layout.index_file.content)


@contextlib.contextmanager
def _new_folder(path: AnyPath) -> Iterator[Path]:
    """A folder to write files in, which has its name at the end."""
    check_new(path)
    target = Path(path)
    with unwritable_named(path):
        sweep(target.parent)
        # What takes the place of an empty folder, which may be private, is private until it does.
        with _temporary(target.parent, 0o700 if target.is_dir() else 0o777) as temporary:
            yield temporary
            for name in os.listdir(temporary):
                with open(temporary / name, "rb") as file:
                    os.fsync(file.fileno())
            if target.is_dir():
                temporary.chmod(stat.S_IMODE(target.stat().st_mode))
            sync_folder(temporary)
            os.rename(temporary, target)
        sync_folder(target.parent)


@contextlib.contextmanager
def _temporary(folder: Path, mode: int) -> Iterator[Path]:
    """A new folder, locked; it is removed in the end if it has its name still."""
    with contextlib.ExitStack() as stack:
        while True:
            path = temporary_name(folder, "new")
            stack.callback(_remove, path)  # before it is there: a signal may come at any time
            path.mkdir(mode)
            try:
                descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
            except FileNotFoundError:
                continue  # a sweep came between the two
            stack.callback(os.close, descriptor)
            # A file system without locks never sweeps.
            with contextlib.suppress(OSError):
                fcntl.flock(descriptor, fcntl.LOCK_EX)
            if path.exists():
                break
        yield path


def _remove(path: Path) -> None:
    with contextlib.suppress(OSError):
        remove_folder(path)
