"""Which methods are compared at which settings: read from flags or a Python file, and built before anything loads."""

import dataclasses
import inspect
import runpy
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from experiments import specs
from experiments.config import Settings, added, anything, setting
from experiments.specs import Setting
from updcomp.methods import METHODS, Method
from updcomp.wire.errors import Error

Factories = Mapping[str, Callable[..., Method]]
Table = Mapping[str, Sequence[Setting]]  # method -> its settings
Key = tuple[str, Setting]  # a method and its setting

DEFAULTS: Table = {
    "full": [{"bits": None}, {"bits": 8}, {"bits": 4}, {"bits": 3}, {"bits": 2}],
    "partial": [{"ratio": ratio, "bits": 2, "aux": 4} for ratio in (0.003, 0.01, 0.03)],
    "low_rank": [{"rank": rank, "bits": 2, "aux": 4} for rank in (1, 2, 4, 8)],
    "subspace": [{"rank": rank, "bits": 2} for rank in (8, 16, 24, 32, 48)],
    "random_mask": [{"ratio": ratio, "bits": 2, "aux": 4} for ratio in (0.003, 0.01, 0.03)],
    "magnitude_mask": [{"ratio": ratio, "bits": 2, "aux": 4} for ratio in (0.003, 0.01, 0.03)],
    "random_low_rank": [{"rank": rank, "bits": 2, "aux": 4} for rank in (1, 2, 4, 8)],
    "subsample": [{"ratio": ratio, "bits": 4, "aux": 4} for ratio in (0.03, 0.1, 0.3)],
    "stochastic_quantize": [{"bits": bits, "rotated": rotated} for bits in (1, 2, 4) for rotated in (False, True)],
    "truncated_svd": [{"rank": rank, "bits": 4, "aux": 4} for rank in (2, 8, 32)],
    "vera": [{"rank": rank, "bits": 4, "aux": 4} for rank in (16, 64, 256)],
    "uni_lora": [{"size": size} for size in (256, 1024, 4096)],
    "tiny_lora": [{"size": size, "rank": 16, "share": 1} for size in (16, 64, 256)],
    "nola": [{"size": size} for size in (64, 256, 1024)],
    "pranc": [{"size": size} for size in (256, 1024, 4096)],
    "fourier": [{"size": size} for size in (100, 300, 800)],
}
USUAL = ("full", "partial", "low_rank", "subspace", "random_mask")  # compared if no flag says what to compare
OPTIONAL = frozenset(DEFAULTS) - {*USUAL}  # compared only where --methods names them
REFERENCE: Key = ("full", {"bits": None})  # every other update is measured against it
EXAMPLE = "--settings=low_rank:rank=1,2:bits=4"

_KINDS = {int: "a whole number", float: "a number", str: "a word", bool: "true or false", types.NoneType: "none"}


@dataclasses.dataclass(frozen=True)
class ComparisonConfig(Settings):
    """Comparison."""

    methods: tuple[str, ...] = setting(
        (),
        f"compare these at their usual settings: some of {', '.join(DEFAULTS)}; if no flag says what to compare, "
        f"{', '.join(USUAL)}",
        later=anything,
    )
    settings: tuple[str, ...] = setting(
        (),
        "compare these: METHOD:OPTION=VALUE,VALUE:OPTION=VALUE is every combination, such as low_rank:rank=1,2:bits=4; "
        "several are separated by ';', or the flag is given several times",
        later=anything,
    )
    settings_file: str | None = setting(
        None,
        "a Python file that says what to compare: SETTINGS = {'low_rank': [{'rank': 3}]}, and for methods of your own "
        "METHODS = {'name': factory}",
        later=added,
    )
    update_bytes: tuple[str, ...] = setting(
        (),
        "compare fit_budget as well, which chooses method and setting, at these numbers of bytes, such as 300,1000",
        later=anything,
    )
    seeds: int = setting(3, "how many seeds; each has its own deployed model, samples and order", later=anything)


class Cell(NamedTuple):
    """One method at one setting."""

    method: str
    setting: Setting
    make: Method


class Chosen(NamedTuple):
    """What is compared."""

    cells: list[Cell]  # the reference first
    from_file: list[Key]  # those of them that --settings_file brings


def choose(config: ComparisonConfig, *, defaults: Table = DEFAULTS, factories: Factories = METHODS) -> Chosen:
    """Builds every method that the settings name, so that what does not fit is reported before anything loads.

    Args:
      config: what was asked for.
      defaults: method -> its usual settings.
      factories: method -> its factory.

    Returns:
      `Chosen`.

    Raises:
      Error: a name, an option or a value does not fit; names the flag.
    """
    given = config.methods or config.settings or config.settings_file or config.update_bytes
    names = config.methods if given else _default_methods(defaults)
    if unknown := [name for name in names if name not in defaults]:
        raise Error(f"--methods: expected some of {', '.join(defaults)}, found {unknown[0]!r}; or use {EXAMPLE}")
    asked = [("--methods", name, options) for name in names for options in defaults[name]]
    from_file: list[Key] = []
    if config.settings_file:
        own, from_file = read_file(config.settings_file)
        factories = {**factories, **own}
        asked += [("--settings_file", *key) for key in from_file]
    asked += [("--settings", *key) for key in keys(config.settings, flag="--settings", example=EXAMPLE)]
    asked += [("--update_bytes", "fit_budget", options) for options in budgets(config)]
    cells: list[Cell] = []
    for flag, name, options in [("--methods", *REFERENCE), *asked]:
        if (name, options) not in [(cell.method, cell.setting) for cell in cells]:
            cells.append(Cell(name, options, build(flag, name, options, factories)))
    return Chosen(cells, from_file)


def keys(texts: Sequence[str], *, flag: str, example: str) -> list[Key]:
    """The methods and settings that a flag names.

    Args:
      texts: METHOD:OPTION=VALUE,VALUE:OPTION=VALUE each, every combination; a text may have several, separated by ';'.
      flag: for messages.
      example: for messages.

    Returns:
      One for each.

    Raises:
      Error: a text has another form.

    >>> keys(["low_rank:rank=1,2;full"], flag="--settings", example="full")
    [('low_rank', {'rank': 1}), ('low_rank', {'rank': 2}), ('full', {})]
    """
    parsed = [specs.parse(part, flag=flag, example=example) for text in texts for part in parts(text)]
    return [(name, options) for name, values in parsed for options in specs.combinations(values)]


def parts(text: str) -> list[str]:
    """What ';' separates in a flag."""
    return [part for part in text.split(";") if part.strip()]


def budgets(config: Any) -> list[Setting]:
    """The settings of fit_budget that --update_bytes asks for; the updates of an experiment are all compact or none.

    Raises:
      Error: a value is no whole number.
    """
    compact = {"compact": True} if getattr(config, "compact", False) else {}
    try:
        return [{"max_bytes": int(text), **compact} for text in config.update_bytes]
    except ValueError:
        expected = "expected whole numbers such as 300,1000"
        raise Error(f"--update_bytes: {expected}, found {','.join(config.update_bytes)!r}") from None


def read_file(path: str) -> tuple[Factories, list[Key]]:
    """Runs a user's Python file of methods and settings.

    Args:
      path: of the file; it defines `SETTINGS`, method -> list of settings, or `METHODS`, name -> factory, or both.

    Returns:
      (its factories, its methods and settings); a method of its own without settings is compared without options.

    Raises:
      Error: the file cannot be run, or defines something else.
    """
    try:
        found = runpy.run_path(path)
    except Exception as error:  # whatever the user's code raises
        raise Error(f"--settings_file: {path}: cannot run it: {type(error).__name__}: {error}") from None
    own, table = found.get("METHODS", {}), found.get("SETTINGS", {})
    well_formed = isinstance(own, dict) and all(map(callable, own.values())) and isinstance(table, dict)
    if not well_formed or not (own or table):
        expected = "expected SETTINGS = {'low_rank': [{'rank': 3}]}, METHODS = {'name': factory}, or both"
        raise Error(f"--settings_file: {path}: {expected}; found neither, or something else under these names")
    keys: list[Key] = []
    for name, settings in {**{name: [{}] for name in own}, **table}.items():
        for options in settings if isinstance(settings, list | tuple) else [settings]:
            if not _is_setting(options):
                expected = "expected a list of dicts from options to numbers, words, True, False or None"
                raise Error(f"--settings_file: {path}: SETTINGS[{name!r}]: {expected}, found {options!r}")
            keys.append((name, dict(options)))
    return own, keys


def _is_setting(value: Any) -> bool:
    return isinstance(value, dict) and all(isinstance(key, str) and type(value[key]) in _KINDS for key in value)


def build(flag: str, name: str, options: Setting, factories: Factories = METHODS) -> Method:
    """A method at a setting.

    Args:
      flag: that asks for it, for messages.
      name: of the method.
      options: its setting.
      factories: method -> its factory.

    Returns:
      The method.

    Raises:
      Error: the name, an option or a value does not fit; names the flag.
    """
    if name not in factories:
        raise Error(f"{flag}: expected a method of {', '.join(factories)}, found {name!r}; write it as in {EXAMPLE}")
    signature = inspect.signature(factories[name])
    try:
        signature.bind_partial(**options)  # first, as a name that is wrong is also one that is missing
        signature.bind(**options)
    except TypeError as error:
        known = [str(parameter.replace(annotation=parameter.empty)) for parameter in signature.parameters.values()]
        raise Error(f"{flag}: {name}: {error}; its options are {', '.join(known) or 'none'}") from None
    hints = _hints(factories[name])
    for option, value in options.items():
        kinds = [kind for kind in _alternatives(hints.get(option)) if kind in _KINDS]
        if kinds and type(value) not in kinds and not (type(value) is int and float in kinds):
            expected = " or ".join(_KINDS[kind] for kind in kinds)
            raise Error(f"{flag}: {name}: {option}: expected {expected}, found {value!r}; give such a value")
    try:
        return factories[name](**options)
    except (TypeError, ValueError) as error:
        raise Error(f"{flag}: {name}: {error}") from None


def _hints(factory: Callable[..., Method]) -> dict[str, Any]:
    try:
        return typing.get_type_hints(factory)
    except (NameError, TypeError):  # a user's factory may be anything that can be called
        return {}


def _alternatives(hint: Any) -> tuple[Any, ...]:
    is_union = isinstance(hint, types.UnionType) or typing.get_origin(hint) is typing.Union
    return typing.get_args(hint) if is_union else (hint,)


def _default_methods(defaults: Table) -> tuple[str, ...]:
    return tuple(name for name in defaults if name not in OPTIONAL)


def flags_of(compared: Sequence[Key], from_file: Sequence[Key], defaults: Table) -> dict[str, tuple[str, ...]]:
    """The flags that compare exactly these.

    Args:
      compared: methods and their settings, the reference among them.
      from_file: those that the settings file brings.
      defaults: method -> its usual settings.

    Returns:
      The values of `methods` and `settings`.

    >>> flags_of([("full", {"bits": None}), ("low_rank", {"rank": 1}), ("low_rank", {"rank": 2})], [], {})
    {'methods': (), 'settings': ('low_rank:rank=1,2',)}
    """
    methods = tuple(name for name in defaults if all((name, options) in compared for options in defaults[name]))
    usual = [(name, options) for name in methods for options in defaults[name]]
    rest = [key for key in compared if key not in usual and key not in from_file and key != REFERENCE]
    names = dict.fromkeys(name for name, _ in rest)
    texts = [specs.text_of(name, [options for other, options in rest if other == name]) for name in names]
    if not (methods or texts or from_file):
        texts = [specs.text_of(REFERENCE[0], [REFERENCE[1]])]  # no flag at all would compare the default methods
    if not (texts or from_file) and set(methods) == set(_default_methods(defaults)):
        methods = ()
    return {"methods": methods, "settings": tuple(texts)}
