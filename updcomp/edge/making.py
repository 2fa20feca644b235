"""What a store makes: its folders, and new versions: what they start from, the space for them, their files."""

import functools
import hashlib
import itertools
import operator
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from updcomp.edge import applying, files, ledger, shards, state, versions
from updcomp.wire import container, dtypes, errors, fingerprint, header, metadata

_SPARE = 1 << 20  # bytes to leave free, for what a store writes down


def make_folder(path: Path) -> None:
    """Makes a folder, and those that it lies in, so that they are there after a crash.

    Raises:
      OSError: it cannot be made.
    """
    made = [one for one in (path, *path.parents) if not one.exists()]
    path.mkdir(parents=True, exist_ok=True)
    for one in {*made, *(one.parent for one in made)}:
        descriptor = os.open(one, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def claim(folder: Path, source: Path) -> state.State:
    """Begins a store in which nothing is yet; from then on what has a version's name is the store's.

    Args:
      folder: the store's; the lock is held.
      source: the model that the first version will be a copy of.

    Returns:
      The state.

    Raises:
      FileError: there is a store, or there are others' files where it would have its own.
    """
    kept, found, sources = folder / versions.FOLDER, ledger.load(folder), shards.files_of(source)
    if found is not None and found.current:
        raise errors.FileError(f"{folder}: expected no store, found one at version {found.current}")
    inside = any(path.resolve().parent == kept.resolve() for path in sources)
    if (found is None and ledger.is_begun(folder)) or inside:
        raise errors.FileError(
            f"{folder}: expected no 'state', and no 'versions' or an empty one, found others' files there; "
            "make the store in another folder"
        )
    make_folder(kept)
    # Who may not read the source may not read its copies.
    readers = functools.reduce(operator.and_, (path.stat().st_mode for path in sources)) & 0o044
    kept.chmod(0o700 | readers | readers >> 2)
    return ledger.write(folder, state.State()) if found is None else ledger.settle(folder, found)


def first(folder: Path, begun: state.State, source: files.ModelFile) -> state.Version:
    """Writes the first version.

    Args:
      folder: the store's; the lock is held.
      begun: its state.
      source: an open model file.

    Returns:
      The version.

    Raises:
      FileError: a file cannot be read or written.
    """
    specs, digests = dtypes.specs(source.model), dict[str, bytes]()

    def leaves() -> Iterator[tuple[str, dtypes.Array]]:
        for name in specs:
            leaf = source.model[name]
            digests[name] = fingerprint.leaf_digest(name, leaf)
            yield name, leaf

    room(folder, begun, sum(spec.nbytes for spec in specs.values()))
    path = versions.path(folder, 1)
    files.write_leaves(path, specs, leaves(), source.metadata, follow=False)
    made = fingerprint.of_digests(digests).hex(), metadata.fingerprint(source.metadata).hex()
    return versions.read_back(folder, state.Version(1, *made, state.now(), path.stat().st_size, None))


def base(folder: Path, found: state.State, update: bytes) -> tuple[state.Version, tuple[str, str]]:
    """The version that an update starts from.

    Args:
      folder: the store's; the lock is held.
      found: its state.
      update: an update file's bytes.

    Returns:
      (version, aim): a version that is whole, and the fingerprint, as far as the update says it, and digest of the
      metadata of what the update makes.

    Raises:
      WrongBaseError: no version that is kept is the one.
      FileError: it is damaged beyond healing.
      CorruptUpdateError: the update is damaged.
    """
    wanted, result = (one.hex() for one in header.fingerprints(update))
    current = found.versions[-1]
    complaint: errors.Error = errors.WrongBaseError(
        f"base model: expected one of the {len(found.versions)} versions in {folder}, found {wanted}; "
        f"make the update from version {current.number}, which is {current.fingerprint}"
    )
    for version in found.versions[::-1]:
        if not version.fingerprint.startswith(wanted):
            continue
        path = versions.path(folder, version.number)
        if not versions.mend(folder, found, version):
            complaint = errors.FileError(
                f"{path}: the update starts from this version, which is damaged beyond healing; "
                "make it from another version"
            )
            continue
        with files.open_model(path) as file:
            try:
                texts = container.new_metadata(update, file.metadata)
            except errors.WrongBaseError as error:
                complaint = error
            else:
                return version, (result, metadata.fingerprint(texts).hex())
    raise complaint


def room(folder: Path, found: state.State, size: int, *needed: int) -> state.State:
    """Makes space for a new version: where it lacks, versions are given up, oldest first, the very first one last.

    Args:
      folder: the store's; the lock is held.
      found: its state.
      size: bytes of the new version's files.
      *needed: numbers of versions to keep; the current one is kept in any case.

    Returns:
      The state now.

    Raises:
      FileError: there is not enough, whatever is given up; nothing is.
    """
    free, wanted = shutil.disk_usage(folder).free, size + _SPARE
    spare, given = found.spare(*needed), list[state.Version]()
    while free + sum(version.size for version in given) < wanted:
        if not spare:
            raise errors.FileError(
                f"{folder}: expected space for {wanted} bytes, found {free}, and "
                f"{sum(version.size for version in given)} in versions that can be given up; free some"
            )
        given.append(spare.pop(0))
    if not given:
        return found
    found = ledger.write(folder, found.without(*(version.number for version in given)), given)
    ledger.tidy(folder)
    return found


def added(update: bytes) -> int:
    """Bytes of the leaves that an update adds."""
    structure = container.structure_of(update)
    return 0 if structure is None else structure.nbytes


def new(
    folder: Path, start: state.Version, update: bytes, aim: tuple[str, str], least: int, *, budget: float
) -> state.Version:
    """Writes the version that an update makes.

    Args:
      folder: the store's; the lock is held.
      start: the version that the update starts from.
      update: an update file's bytes.
      aim: fingerprint and digest of the metadata of what it makes.
      least: its number, or more if something that cannot be removed has the name.
      budget: allowance of operations and memory.

    Returns:
      The version; it is not in the store's state yet.

    Raises:
      Error: the update does not fit or cannot be stored.
    """
    suffixes = (versions.MODEL, versions.UPDATE, versions.RECORD)
    number = next(
        one
        for one in itertools.count(least)
        if not any(os.path.lexists(versions.path(folder, one, suffix)) for suffix in suffixes)
    )
    path = versions.path(folder, number)
    applying.apply_file(versions.path(folder, start.number), update, path, budget=budget, follow=False)
    files.replace_file(versions.path(folder, number, versions.UPDATE), lambda file: file.write(update), follow=False)
    origin = state.Origin(hashlib.sha256(update).hexdigest(), start.fingerprint, len(update))
    return versions.read_back(folder, state.Version(number, *aim, state.now(), path.stat().st_size, origin))
