"""The state of a store in its files: read whichever is whole, written in two places, one of which decides."""

import contextlib
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

from updcomp.edge import files, state, versions
from updcomp.wire import errors

_NAME = "state"

_log = logging.getLogger(__name__)


def load(folder: Path) -> state.State | None:
    """The state of a store; no lock is needed.

    Args:
      folder: the store's.

    Returns:
      What its `state` says, or else the latest that is whole beside a model; None if there is none.

    Raises:
      FileError: a file cannot be read for a reason that may pass.
    """
    written = _copy(folder / _NAME)
    return written or max(_beside_models(folder), key=lambda one: one.serial, default=None)


def is_begun(folder: Path) -> bool:
    """Whether there is anything where a store keeps its own files."""
    kept = folder / versions.FOLDER
    # A link to an empty folder is not the store's either.
    foreign = kept.is_symlink() or (kept.exists() and (not kept.is_dir() or any(kept.iterdir())))
    return foreign or (folder / _NAME).is_symlink() or (folder / _NAME).exists()


def write(folder: Path, new: state.State, spare: Sequence[state.Version] = ()) -> state.State:
    """Writes the state beside its current model, then as the store's `state`, which decides.

    Args:
      folder: the store's; the lock is held.
      new: the state.
      spare: versions to give up, one after the other, while there is no space for the text.

    Returns:
      The state as it was written, with the next serial.

    Raises:
      FileError: it cannot be written; the one before holds.
    """
    left = list(spare)
    while True:
        try:
            return _write(folder, new)
        except errors.FileError as error:
            if not left or not versions.is_full(error):
                raise
        versions.remove(folder, left[0].number)
        new = new.without(left.pop(0).number)


def settle(folder: Path, found: state.State) -> state.State:
    """Finishes what a process before left unfinished: writes damaged copies of the state anew, and tidies up.

    Args:
      folder: the store's; the lock is held.
      found: what `load` gives.

    Returns:
      The state, its serial the greatest.
    """
    copies = _beside_models(folder)
    newest = max(one.serial for one in (found, *copies))
    unfinished = newest > found.serial or (found.current and found not in copies) or _copy(folder / _NAME) is None
    tidy(folder)
    if unfinished:
        _log.warning("%s: a copy of the state was damaged or unfinished; it is written anew", folder)
        found = found._replace(serial=newest)
        # What follows may do without, as on a full disk.
        with contextlib.suppress(errors.FileError):
            return _write(folder, found)
    return found


def tidy(folder: Path) -> None:
    """Removes what writers that were killed left behind, and the files of versions that are not kept, where it can.

    Args:
      folder: the store's; the lock is held.
    """
    for place in (folder, folder / versions.FOLDER):
        files.sweep(place)
    with contextlib.suppress(OSError, errors.FileError):
        found = load(folder)
        if found is not None:
            versions.remove_others(folder, {version.number for version in found.versions})


def repair(folder: Path, found: state.State) -> state.State:
    """Makes the current version anew if it is damaged; if that cannot be, the latest one that is whole is current.

    Args:
      folder: the store's; the lock is held.
      found: its state.

    Returns:
      Its state now.

    Raises:
      FileError: no version is whole.
    """
    lost = list[int]()
    for version in found.versions[::-1]:
        if versions.mend(folder, found, version):
            break
        lost.append(version.number)
    return give_up(folder, found, lost)


def give_up(folder: Path, found: state.State, lost: Sequence[int]) -> state.State:
    """Keeps some versions no longer, since they are damaged beyond healing.

    Args:
      folder: the store's; the lock is held.
      found: its state.
      lost: numbers of the versions.

    Returns:
      Its state now.

    Raises:
      FileError: these are all; they stay.
    """
    if not lost:
        return found
    left = found.losing(*lost)
    if not left.versions:
        raise errors.FileError(
            f"{folder}: expected a version that is whole, found none of {len(lost)}; "
            "make a new store in another folder: python -m updcomp.edge init FOLDER MODEL"
        )
    _log.warning("%s: lost %s, damaged beyond healing; version %d is current", folder, sorted(lost), left.current)
    return write(folder, left, [version for version in found.versions if version.number in lost] + left.spare())


def _write(folder: Path, new: state.State) -> state.State:
    new = new._replace(serial=new.serial + 1)
    content = state.pack(new)

    def write_content(file: BinaryIO) -> None:
        file.write(content)

    beside = [versions.path(folder, new.current, versions.RECORD)] if new.current else []
    for path in (*beside, folder / _NAME):
        files.replace_file(path, write_content, follow=False)
    return new


def _beside_models(folder: Path) -> list[state.State]:
    paths = [path for path, _ in versions.made(folder) if path.suffix == f".{versions.RECORD}"]
    return [found for path in paths if (found := _copy(path)) is not None]


def _copy(path: Path) -> state.State | None:
    """The state in a file; None if it is missing or damaged."""
    content = versions.read(path, state.MOST_BYTES)
    if content is None:
        return None
    try:
        return state.parse(content)
    except errors.FileError:
        return None
