"""Versions of a model in a folder, one of them current: verified when served, made anew when damaged."""

import contextlib
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from updcomp.edge import files, health, ledger, locks, making, state, versions
from updcomp.wire import dtypes, errors

_LOCK = "lock"
_MOST_KEPT = 256


class Store:
    """A folder with the first and the last few versions of a model, of which one is current.

        lock                           held by the one process that changes anything
        state                          see `updcomp.edge.state`
        versions/00000007.safetensors  a model
        versions/00000007.upd          the update that made it, to make it anew
        versions/00000007.json         the state when it was current last

    Whoever installs or rolls back holds the lock, writes whole files under other names, and replaces `state` last: a
    crash at any point leaves the store before or after. What was left lying about goes when the lock is taken next.
    Only files with such names are ever removed, all of which the store has made: it begins with no `versions`.

    Readers take no lock. A model that they get was read and compared with its fingerprint and the digest of its
    metadata before, once per process and file. A damaged one is made anew from the version that it came from; if that
    cannot be, the latest other version that is whole becomes current. Either is said with `logging`, as a warning.

    An update may start from any version that is kept: its fingerprint says which. The first one is as long as there is
    space, since a server that starts anew makes its updates relative to that.
    """

    def __init__(self, folder: str | os.PathLike[str], *, keep: int = 3, lock_timeout: float = 60.0) -> None:
        """Opens a folder.

        Args:
          folder: it is made by `initialise`.
          keep: number of latest versions to keep, the current one included; 1 to 256. A version heals from the one
            that it came from, so of one alone only what came from the first can.
          lock_timeout: seconds to wait for another process that changes something, such as a trial.

        Raises:
          Error: another number, or a negative time.
        """
        if not 1 <= keep <= _MOST_KEPT:
            raise errors.Error(f"keep: expected 1 to {_MOST_KEPT} versions, found {keep}")
        if not lock_timeout >= 0:
            raise errors.Error(f"lock_timeout: expected at least 0 seconds, found {lock_timeout}")
        self._folder = Path(folder)
        self._keep = keep
        self._lock_timeout = lock_timeout

    def initialise(self, model_path: str | os.PathLike[str]) -> None:
        """Makes a copy of a model the first version, one file whatever the model is in.

        Args:
          model_path: a `.safetensors` or `.npz` file, or a folder or index of shards; it may lie in the store's folder,
            and is only read.

        Raises:
          FileError: the folder holds a store, or others' files where a store has its own; or a file cannot be read or
            written.
        """
        with _system_errors(self._folder), files.open_model(model_path) as source:
            making.make_folder(self._folder)
            with locks.held(self._folder / _LOCK, self._lock_timeout):
                begun = making.claim(self._folder, Path(model_path))
                first = making.first(self._folder, begun, source)
                ledger.write(self._folder, begun.installed(first, None, self._keep))

    def version(self) -> int:
        """The number of the current version.

        Raises:
          FileError: there is none.
        """
        with _system_errors(self._folder):
            return self._load().current

    def path(self) -> Path:
        """The file of the current version, verified.

        It stays until `keep` versions were installed after it, or it is rolled back. While a damaged one cannot be
        made anew because another process holds the lock, an earlier version serves.

        Raises:
          FileError: no version is whole, or the folder cannot be read.
        """
        with _system_errors(self._folder):
            found, before = self._load(), None
            # Where the state has changed meanwhile, the file may have gone for that reason.
            while found != before:
                if self._can_serve(found.versions[-1]):
                    return versions.path(self._folder, found.current)
                found, before = self._load(), found
            return versions.path(self._folder, self._repaired())

    def current(self) -> dtypes.Model:
        """The current model, verified: leaf name -> array.

        Raises:
          FileError: as `path`.
        """
        while True:
            path = self.path()
            try:
                return files.read_model(path).model
            except errors.FileError:
                # If it was given up since, another one is current.
                if path.exists():
                    raise

    def install(
        self,
        update: bytes,
        *,
        check: health.Check | None = None,
        timeout: float = 60.0,
        again: bool = False,
        budget: float = 1.0,
    ) -> int:
        """Applies an update to the version that it starts from and makes the result current.

        With a check, the new version is current only after that has found it healthy; else the update is refused from
        then on. A trial that was interrupted may be repeated, twice.

        Args:
          update: an update file's bytes.
          check: a command, to which the new model's path is added, or a function of it; see `health.trial`.
          timeout: seconds until the check is stopped.
          again: take an update that was installed, rolled back or found unhealthy before.
          budget: allowance of operations and memory, 1 for the default; see `container.apply_update`.

        Returns:
          The number of the new version; of the current one if the update made that already, or changes nothing.

        Raises:
          RepeatError: the update was here before.
          TrialError: the new version is not healthy.
          Error: the update does not fit or cannot be stored. Whatever is raised, the current version stays.
        """
        trial = None if check is None else health.trial(check, timeout)
        with self._writing() as found:
            base, aim = making.base(self._folder, found, update)
            identity = state.identity((base.fingerprint, base.metadata), aim)
            if found.came_from(identity):
                return found.current  # whoever sends it has not heard so
            if not again:
                found.check_new(identity)
            same = base.fingerprint.startswith(aim[0]) and base.metadata == aim[1]
            if base.number == found.current and same:
                return ledger.write(self._folder, found.kept_by(identity)).current
            found = making.room(self._folder, found, base.size + making.added(update) + len(update), base.number)
            new = making.new(self._folder, base, update, aim, found.last + 1, budget=budget)
            if trial is not None:
                found = ledger.write(self._folder, found.trying(identity, new.number, anew=again))
                self._try(trial, new, found, identity)
            ledger.write(self._folder, found.installed(new, identity, self._keep))
            return new.number

    def rollback(self) -> int:
        """Makes the version before the current one current again, and removes the current one.

        The update that made that is refused from then on. A full disk is no obstacle: versions are given up for it.

        Returns:
          The number of the version that is current now.

        Raises:
          FileError: no earlier version that is whole is kept.
        """
        with self._writing() as found:
            damaged = list[int]()
            for earlier in found.versions[-2::-1]:
                if versions.mend(self._folder, found, earlier):
                    back = found.losing(*damaged).back_at(earlier.number)
                    leaving = [version for version in found.versions if version not in back.versions]
                    return ledger.write(self._folder, back, leaving[::-1] + back.spare()).current
                damaged.append(earlier.number)
            raise errors.FileError(f"{self._folder}: expected a whole version before {found.current}, found none")

    def status(self) -> dict[str, Any]:
        """What the store holds, as JSON can say it; no model is read.

        Returns:
          version (the current one), last (greatest number given), free_bytes, versions (of each its number,
          fingerprint, metadata, time, size, and the sha256, base and size of its update), updates (number, time,
          outcome and attempts of each), and lost (numbers of versions that were damaged beyond healing).

        Raises:
          FileError: there is no store.
        """
        with _system_errors(self._folder):
            found = self._load()
            told = state.told(found)
            return {
                "version": found.current,
                "last": found.last,
                "free_bytes": shutil.disk_usage(self._folder).free,
                "versions": told["versions"],
                "updates": list(told["seen"].values()),
                "lost": list(found.lost),
            }

    def verify(self) -> dict[str, Any]:
        """Reads every byte that the store keeps, and makes anew what is damaged and can be.

        Returns:
          version (the current one), whole (numbers of all versions), healed (of those that were damaged), lost (of
          those given up since they cannot be healed), updates_lost (of those whose update is damaged: the version is
          whole, and could not be healed).

        Raises:
          FileError: no version is whole.
        """
        with self._writing() as found:
            before = [one.number for one in found.versions if versions.is_whole(self._folder, one, anew=True)]
            whole = [one.number for one in found.versions if versions.mend(self._folder, found, one)]
            lost = [one.number for one in found.versions if one.number not in whole]
            found = ledger.give_up(self._folder, found, lost)
            without = [one.number for one in found.versions if one.update and not versions.update_of(self._folder, one)]
            return {
                "version": found.current,
                "whole": whole,
                "healed": [number for number in whole if number not in before],
                "lost": lost,
                "updates_lost": without,
            }

    def _load(self) -> state.State:
        found = ledger.load(self._folder)
        if found is None or not found.current:
            raise errors.FileError(
                f"{self._folder}: expected a store, found no state that is whole; "
                "make one in a folder that is empty: python -m updcomp.edge init FOLDER MODEL"
            )
        return found

    @contextlib.contextmanager
    def _writing(self, timeout: float | None = None) -> Iterator[state.State]:
        """Holds the lock; yields the state, which nobody else changes, and leaves no more than it says."""
        with _system_errors(self._folder):
            self._load()
            with locks.held(self._folder / _LOCK, self._lock_timeout if timeout is None else timeout):
                try:
                    yield ledger.settle(self._folder, self._load())
                finally:
                    ledger.tidy(self._folder)

    def _try(self, trial: Callable[[Path], None], new: state.Version, found: state.State, identity: str) -> None:
        """Raises if the new version is not healthy, and notes that."""
        try:
            trial(versions.path(self._folder, new.number))
            versions.read_back(self._folder, new)  # a check that changed it would be none
        except health.TrialError as error:
            ledger.write(self._folder, found.failed(identity), [new])
            raise health.TrialError(f"version {new.number}: {error}; version {found.current} stays") from None

    def _can_serve(self, version: state.Version) -> bool:
        """Whether a version is whole and can be read just now."""
        try:
            return versions.is_whole(self._folder, version)
        except errors.FileError:
            return False

    def _repaired(self) -> int:
        """The number of a version that is whole, when the current one is not; no writer is waited for in vain."""
        try:
            with self._writing(timeout=0) as found:
                return ledger.repair(self._folder, found).current
        except errors.FileError:
            for other in self._load().versions[::-1]:
                if self._can_serve(other):
                    return other.number
        with self._writing() as found:
            return ledger.repair(self._folder, found).current


@contextlib.contextmanager
def _system_errors(folder: Path) -> Iterator[None]:
    """What the system says of a folder, as an error of this package."""
    try:
        yield
    except errors.Error:
        raise
    except OSError as error:
        raise errors.FileError(f"{error.filename or folder}: {error.strerror or error}") from error
    except ValueError as error:  # a NUL, or what no file system can encode
        raise errors.FileError(f"{str(folder)!r}: expected the name of a folder, found {error}") from None
