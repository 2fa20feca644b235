"""What a store writes down: its versions, which of them is current, and which updates it has seen.

All of it is one small text, so that one atomic replacement changes it: a record for each version and a pointer to one
of them could contradict each other after a crash. The text is written twice, beside the current version's model first
and as the store's `state` after that, and carries a checksum: whatever happens to one of these files, the other
serves. What is written beside a model stays there, so each version keeps the state as it was when it was current.
"""

import hashlib
import json
from collections.abc import Mapping
from datetime import UTC, datetime
from types import MappingProxyType
from typing import Any, NamedTuple, TypeVar

from updcomp.wire import errors, fingerprint

MOST_BYTES = 1 << 24  # of a state
_MOST_SEEN = 4096  # updates remembered; the state stays below a megabyte
_MOST_LOST = 64
_MOST_ATTEMPTS = 3
_SHORT_PRINT = 2 * fingerprint.SHORT_SIZE  # hexadecimal digits

INSTALLED, ROLLED_BACK, FAILED, ON_TRIAL = "installed", "rolled back", "unhealthy in its trial", "on trial"


class RepeatError(errors.Error):
    """The update was installed, rolled back or found unhealthy before."""


class Origin(NamedTuple):
    """The update that made a version."""

    sha256: str  # of the update's bytes, in hex
    base: str  # fingerprint of the model that it starts from, in hex
    size: int  # bytes


class Version(NamedTuple):
    """A version whose model is kept."""

    number: int  # from 1 on; later versions have greater ones, and none is given twice
    fingerprint: str  # of the leaves, in hex
    metadata: str  # digest of the metadata, in hex
    time: str  # UTC, ISO 8601
    size: int  # bytes of the model file
    update: Origin | None  # None: the store was initialised with it


class Seen(NamedTuple):
    """What became of an update."""

    number: int  # of the version that it made
    time: str  # UTC, ISO 8601
    outcome: str  # installed, rolled back, failed its trial, on trial
    attempts: int  # trials that were begun


class State(NamedTuple):
    """All that a store remembers."""

    serial: int = 0  # grows with every writing
    last: int = 0  # greatest number ever given
    versions: tuple[Version, ...] = ()  # that are kept, by number; the last one is current
    seen: Mapping[str, Seen] = MappingProxyType({})  # identity of an update -> what became of it
    lost: tuple[int, ...] = ()  # numbers of versions that were damaged beyond healing

    @property
    def current(self) -> int:
        """The number of the current version; 0 until the first is complete."""
        return self.versions[-1].number if self.versions else 0

    def spare(self, *needed: int) -> list[Version]:
        """What may be given up: all but the current version and the numbers given; oldest first, the first one last."""
        found = [version for version in self.versions[:-1] if version.number not in needed]
        return sorted(found, key=lambda version: (version.update is None, version.number))

    def without(self, *numbers: int) -> "State":
        """Some versions are not kept any more."""
        return self._replace(versions=tuple(version for version in self.versions if version.number not in numbers))

    def came_from(self, identity: str) -> bool:
        """Whether this update made the current version."""
        seen = self.seen.get(identity)
        return seen is not None and seen.outcome == INSTALLED and seen.number == self.current

    def check_new(self, identity: str) -> None:
        """Checks that an update may be installed.

        Raises:
          RepeatError: it was installed, was rolled back, or failed its trial, or three were interrupted.
        """
        seen = self.seen.get(identity)
        if seen is None or (seen.outcome == ON_TRIAL and seen.attempts < _MOST_ATTEMPTS):
            return
        what = (
            f"{seen.attempts} trials of it were interrupted" if seen.outcome == ON_TRIAL else f"it was {seen.outcome}"
        )
        raise RepeatError(
            f"update: expected one that is new to the store, found that {what} (version {seen.number}, {seen.time}); "
            "install it with again=True (--again) if it is meant to be installed anew"
        )

    def trying(self, identity: str, number: int, *, anew: bool) -> "State":
        """A trial begins; of an update that is meant to be installed anew, the first."""
        before = self.seen.get(identity)
        attempts = 0 if before is None or anew else before.attempts
        return self._replace(last=number).noted(identity, Seen(number, now(), ON_TRIAL, attempts + 1))

    def installed(self, version: Version, identity: str | None, keep: int) -> "State":
        """A version is complete and current; kept are the first, and of all the latest few."""
        versions = (*self.versions, version)
        kept = tuple(one for one in versions if one.update is None or one in versions[-keep:])
        state = self._replace(last=version.number, versions=kept)
        if identity is None:
            return state
        return state.noted(identity, Seen(version.number, version.time, INSTALLED, 0))

    def kept_by(self, identity: str) -> "State":
        """An update changes nothing of the current version; it has been here none the less."""
        return self.noted(identity, Seen(self.current, now(), INSTALLED, 0))

    def failed(self, identity: str) -> "State":
        """The version on trial is not healthy."""
        return self.noted(identity, self.seen[identity]._replace(outcome=FAILED, time=now()))

    def back_at(self, number: int) -> "State":
        """An earlier version is current again; the updates that made later ones are refused from now on."""
        gone = [version.number for version in self.versions if version.number > number]
        seen = {
            identity: one._replace(outcome=ROLLED_BACK, time=now()) if one.number in gone else one
            for identity, one in self.seen.items()
        }
        return self.without(*gone)._replace(seen=seen)

    def losing(self, *numbers: int) -> "State":
        """Some versions are damaged beyond healing; the updates that made them are welcome again."""
        seen = {identity: one for identity, one in self.seen.items() if one.number not in numbers}
        return self.without(*numbers)._replace(seen=seen, lost=(*self.lost, *numbers)[-_MOST_LOST:])

    def noted(self, identity: str, seen: Seen) -> "State":
        """What became of an update; the least recent ones are forgotten."""
        kept = {other: one for other, one in self.seen.items() if other != identity} | {identity: seen}
        return self._replace(seen=dict(list(kept.items())[-_MOST_SEEN:]))


def identity(base: tuple[str, str], aim: tuple[str, str]) -> str:
    """What makes two updates the same: the model and the metadata that they start from, and those that they give.

    Args:
      base: fingerprint and digest of the metadata of what an update starts from, in hex; of fingerprints what a compact
        update says counts.
      aim: those of what it gives.

    Returns:
      A digest of them, in hex.
    """
    told = (text for print_, texts in (base, aim) for text in (print_[:_SHORT_PRINT], texts))
    return hashlib.sha256(" ".join(told).encode()).hexdigest()[:32]


def now() -> str:
    """The time, UTC, ISO 8601."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def told(state: State) -> dict[str, Any]:
    """The state as JSON can say it: named tuples as objects of their fields."""
    versions = [{**one._asdict(), "update": one.update and one.update._asdict()} for one in state.versions]
    seen = {identity: one._asdict() for identity, one in state.seen.items()}
    return {**state._asdict(), "versions": versions, "seen": seen}


def pack(state: State) -> bytes:
    """The state as a line with a checksum and JSON."""
    text = json.dumps(told(state)).encode()
    return hashlib.sha256(text).hexdigest().encode() + b"\n" + text


def parse(content: bytes) -> State:
    """The state in a file.

    Args:
      content: any bytes.

    Returns:
      The state, in which every number is an integer from 0 on, and those of the versions grow up to `last`.

    Raises:
      FileError: they are damaged.

    >>> parse(pack(State(serial=3, last=2))).serial
    3
    """
    checksum, _, text = content.partition(b"\n")
    if checksum != hashlib.sha256(text).hexdigest().encode():
        raise errors.FileError("state: expected the text of the checksum in its first line; it is damaged")
    try:
        return _state(json.loads(text.decode()))
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise errors.FileError(f"state: expected what a store writes down, found {type(error).__name__}") from None


def _state(parsed: dict[str, Any]) -> State:
    versions = tuple(
        _record(Version, {**one, "update": None if one["update"] is None else _record(Origin, one["update"])})
        for one in _list(parsed["versions"])
    )
    seen = {_text(identity): _record(Seen, one) for identity, one in parsed["seen"].items()}
    lost = tuple(_number(number) for number in _list(parsed["lost"]))
    state = _record(State, {**parsed, "versions": versions, "seen": seen, "lost": lost})
    numbers = [version.number for version in versions]
    if numbers != sorted(set(numbers)) or not all(0 < number <= state.last for number in numbers):
        raise ValueError("numbers")
    return state


_Record = TypeVar("_Record", Origin, Version, Seen, State)


def _record(kind: type[_Record], found: dict[str, Any]) -> _Record:
    """The named tuple of these fields, no more and no fewer; integers and texts are checked."""
    if found.keys() != set(kind._fields):
        raise ValueError("fields")
    for name, wanted in kind.__annotations__.items():
        if wanted in (int, str):
            (_number if wanted is int else _text)(found[name])
    return kind(**found)


def _list(found: Any) -> list[Any]:
    if not isinstance(found, list):
        raise ValueError("list")
    return found


def _number(found: Any) -> int:
    if type(found) is not int or not 0 <= found < 1 << 63:
        raise ValueError("number")
    return found


def _text(found: Any) -> str:
    if not isinstance(found, str) or not found.isascii() or not found.isprintable():
        raise ValueError("text")
    return found
