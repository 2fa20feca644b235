"""Settings of experiments: dataclass fields that carry the help of their flag and what values they take."""

import dataclasses
import shlex
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from updcomp.wire.errors import Error

WITH_COMMAS = ("settings", "others", "grids")  # settings of methods, which contain commas


class Check(NamedTuple):
    """What values a setting takes."""

    expected: Callable[[], str]  # for messages; called late, since registries grow
    holds: Callable[[Any], bool]


def at_least(least: int, most: int | None = None) -> Check:
    """Takes numbers from `least` on, up to `most` where there is one."""
    if most is None:
        return Check(lambda: f"at least {least}", lambda value: value >= least)
    return Check(lambda: f"from {least} to {most}", lambda value: least <= value <= most)


def above_zero(most: float | None = None) -> Check:
    """Takes numbers above 0, up to `most` where there is one."""
    if most is None:
        return Check(lambda: "above 0", lambda value: value > 0)
    return Check(lambda: f"above 0 and at most {most:g}", lambda value: 0 < value <= most)


def one_of(names: Collection[Any]) -> Check:
    """Takes the members of a collection, such as the keys of a registry."""
    return Check(lambda: f"one of {', '.join(map(str, names))}", lambda value: value in names)


Later = Callable[[Any, Any], bool]
"""(value of the first start in a folder, value of a later one) -> whether they fit."""


def unchanged(before: Any, now: Any) -> bool:
    """A later start in the same folder has the same value: another would give other rows."""
    return bool(before == now)


def anything(before: Any, now: Any) -> bool:
    """A later start in the same folder may have another value, which adds rows or changes none."""
    return True


def added(before: Any, now: Any) -> bool:
    """A later start in the same folder may add the value or leave it out, but not exchange it."""
    return before is None or now is None or bool(before == now)


def setting(default: Any, text: str, *, check: Check | None = None, later: Later = unchanged) -> Any:
    """A field of a `Settings` class, and thereby a flag.

    Args:
      default: its default; None stands for "not given", whatever the check.
      text: help of the flag.
      check: what values it takes; by default whole numbers are at least 1 and other numbers above 0.
      later: what a later start in the same folder may have.

    Returns:
      A dataclass field.
    """
    if check is None and type(default) in (int, float):
        check = at_least(1) if isinstance(default, int) else above_zero()
    return dataclasses.field(default=default, metadata={"help": text, "check": check, "later": later})


@dataclasses.dataclass(frozen=True)
class Settings:
    """Settings that are checked when they are made. A subclass may declare a field again with another default."""

    def __post_init__(self) -> None:
        """Checks every field.

        Raises:
          Error: a value is none that its field takes.
        """
        for field in dataclasses.fields(self):
            value, check = getattr(self, field.name), described(type(self), field.name).get("check")
            if check is not None and value is not None and not check.holds(value):
                raise Error(f"--{field.name}: expected {check.expected()}, found {value!r}")


def described(config: type, name: str) -> Mapping[str, Any]:
    """What `setting` noted of a field, also where a subclass declares the field again with another default.

    Args:
      config: a dataclass.
      name: of a field.

    Returns:
      "help", "check" and "later"; nothing for a field that was not declared by `setting`.

    >>> @dataclasses.dataclass(frozen=True)
    ... class General(Settings):
    ...     epochs: int = setting(20, "how many")
    >>> @dataclasses.dataclass(frozen=True)
    ... class Little(General):
    ...     epochs: int = 1
    >>> described(Little, "epochs")["help"]
    'how many'
    """
    for base in config.__mro__:
        field = getattr(base, "__dataclass_fields__", {}).get(name)
        if field is not None and "help" in field.metadata:
            return dict(field.metadata)
    return {}


def command(experiment: str, config: Any, workdir: Path) -> str:
    """The command that runs an experiment with these settings: every flag that is not at its default.

    Args:
      experiment: its name.
      config: its settings, a dataclass.
      workdir: its folder.

    Returns:
      A line for a shell.
    """
    flags = {"experiment": experiment, "workdir": str(workdir)}
    for field in dataclasses.fields(config):
        if (value := getattr(config, field.name)) != field.default:
            separator = ";" if field.name in WITH_COMMAS else ","
            flags[field.name] = separator.join(value) if isinstance(value, tuple) else str(value)
    return shlex.join(["python", "run.py", *(f"--{name}={value}" for name, value in flags.items())])
