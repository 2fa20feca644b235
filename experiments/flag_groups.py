"""Flags made of the experiments' settings: every field of a `Config` that has a help text is one.

A flag that is not given leaves an experiment's own default in place.
"""

import dataclasses
import inspect
import textwrap
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from absl import flags

from experiments import EXPERIMENTS, by_name
from experiments.config import WITH_COMMAS, described
from updcomp.wire.errors import Error

ConfigT = TypeVar("ConfigT")

JOINING = {  # processes: flag -> (kind, help)
    "coordinator_address": ("string", "host:port of the first process"),
    "num_processes": ("integer", "how many processes there are"),
    "process_id": ("integer", "of this process, from 0"),
}
_GENERAL = {
    "experiment": ("string", "which experiment to run; default quickstart"),
    "workdir": ("string", "folder for results; default runs/EXPERIMENT; a second start there continues"),
    "multihost": ("bool", "run as one of several processes, which share --workdir; see docs/machines.md"),
    **{
        name: (kind, f"with --multihost: {text}; not needed on Cloud TPU, Slurm and Open MPI")
        for name, (kind, text) in JOINING.items()
    },
}
PRESETS = Path(__file__).parent / "presets"
_KINDS: dict[Any, str] = {
    int: "integer",
    int | None: "integer",
    float: "float",
    bool: "bool",
    str: "string",
    str | None: "string",
    tuple[str, ...]: "list",
}


class Flag(NamedTuple):
    """One setting in the class that declares it."""

    field: dataclasses.Field[Any]
    help: str
    defaults: dict[str, Any]  # experiment -> its default, of the experiments that read it


def configs() -> dict[str, type]:
    """Experiment -> its `Config`."""
    return {name: by_name(name).Config for name in EXPERIMENTS}


def sections() -> dict[type, list[Flag]]:
    """The classes that declare settings, each with its flags, in the order of the experiments."""
    found: dict[type, dict[str, Flag]] = {}
    for experiment, config in configs().items():
        for field in dataclasses.fields(config):
            if owner := _owner(config, field.name):
                text = described(config, field.name)["help"]
                flag = found.setdefault(owner, {}).setdefault(field.name, Flag(field, text, {}))
                flag.defaults[experiment] = field.default
    # A benchmark's settings are explained where an experiment declares the same name.
    for experiment, config in configs().items():
        for field in dataclasses.fields(config):
            elsewhere = next((own[field.name] for own in found.values() if field.name in own), None)
            if elsewhere and not _owner(config, field.name):
                elsewhere.defaults[experiment] = field.default
    return {owner: list(own.values()) for owner, own in found.items()}


def _owner(config: type, name: str) -> type | None:
    """The class that gives a setting its help."""
    for base in config.__mro__:
        own = getattr(base, "__dataclass_fields__", {}).get(name)
        if own is not None and name in inspect.get_annotations(base) and "help" in own.metadata:
            return base
    return None


def define() -> flags.FlagValues:
    """Defines every flag, in a set of its own, so that notebooks and tests can have several."""
    values = flags.FlagValues()  # type: ignore[no-untyped-call]
    for name, (kind, text) in _GENERAL.items():
        default = "quickstart" if name == "experiment" else None
        getattr(flags, f"DEFINE_{kind}")(name, default, text, flag_values=values)
    for flag in (flag for section in sections().values() for flag in section):
        name, kind = flag.field.name, _KINDS[flag.field.type]
        if name not in values:
            kind = "multi_string" if name in WITH_COMMAS else kind  # given several times instead
            getattr(flags, f"DEFINE_{kind}")(name, None, flag.help, flag_values=values)
    return values


def configure(config: type[ConfigT], experiment: str, values: flags.FlagValues) -> ConfigT:
    """An experiment's settings: its defaults, and every flag that was given.

    Args:
      config: the experiment's dataclass.
      experiment: its name, for the message.
      values: the parsed flags.

    Returns:
      An instance.

    Raises:
      Error: a flag was given that this experiment does not read, or a value does not fit.
    """
    names = [field.name for field in dataclasses.fields(config)]  # type: ignore[arg-type]
    given: dict[str, Any] = {}
    for name in values:
        value = values[name].value
        if value is None or name in _GENERAL:
            continue
        if name not in names:
            expected = ", ".join(f"--{known}" for known in names if known in values)
            raise Error(f"--{name}: {experiment} does not read it; it takes {expected or 'no such flag'}")
        given[name] = tuple(value) if isinstance(value, list) else value
    return config(**given)


def help_text() -> str:
    """What --help prints: how to start, the experiments, the presets, and every flag with its defaults."""
    lines = ["updcomp: the smallest update that turns the deployed model into the new one.", ""]
    lines += ["  python run.py [--experiment=NAME] [--workdir=FOLDER] [--flagfile=PRESET] [flags]", "", "Experiments:"]
    lines += [_entry(name, text) for name, text in EXPERIMENTS.items()]
    lines += ["", f"Presets (--flagfile={PRESETS.parent.name}/{PRESETS.name}/NAME.flags):"]
    lines += [_entry(path.stem, first_line(path)) for path in sorted(PRESETS.glob("*.flags"))]
    lines += ["", "General:", *(_entry(f"--{name}", text) for name, (_, text) in _GENERAL.items())]
    lines += [_entry("--flagfile", "a file with one flag per line, such as a preset")]
    for owner, own in sections().items():
        readers = dict.fromkeys(name for flag in own for name in flag.defaults)
        lines += ["", f"{inspect.getdoc(owner).splitlines()[0].rstrip('.')} ({', '.join(readers)}):"]  # type: ignore[union-attr]
        lines += [_entry(f"--{flag.field.name}", f"{flag.help}{_defaults(flag)}") for flag in own]
    return "\n".join([*lines, "", "A flag that an experiment does not read is an error."])


def _defaults(flag: Flag) -> str:
    """The default, of each experiment where they differ. Nothing where the help says what happens without the flag."""
    experiments: dict[str, list[str]] = {}
    for name, default in flag.defaults.items():
        if default not in (None, ()):
            experiments.setdefault(_shown(default), []).append(name)
    if len(experiments) == 1:
        return f" (default {next(iter(experiments))})"
    texts = [f"{value} in {', '.join(names)}" for value, names in experiments.items()]
    return f" (default {'; '.join(texts)})" if texts else ""


def _shown(default: Any) -> str:
    return ",".join(default) if isinstance(default, tuple) else str(default)


def first_line(path: Path) -> str:
    """What a preset says of itself."""
    return path.read_text().splitlines()[0].removeprefix("#").strip()


def _entry(name: str, text: str) -> str:
    wrapper = textwrap.TextWrapper(110, f"  {name:<26}", " " * 28, break_long_words=False, break_on_hyphens=False)
    return wrapper.fill(text)
