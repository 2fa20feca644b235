"""A name with options as flags have it, NAME:OPTION=VALUE,VALUE:OPTION=VALUE, read and written."""

import hashlib
import itertools
import re
from collections.abc import Callable, Sequence

from updcomp.wire.errors import Error

Scalar = int | float | bool | str | None
Setting = dict[str, Scalar]  # options by name

_WORDS: dict[str, Scalar] = {"none": None, "true": True, "false": False}


def parse(text: str, *, flag: str, example: str) -> tuple[str, dict[str, list[Scalar]]]:
    """Reads a name with options.

    Args:
      text: as a flag has it; values as `scalar` reads them.
      flag: for messages.
      example: for messages.

    Returns:
      (the name, the values of each option).

    Raises:
      Error: the text has another form.

    >>> parse("partial:ratio=.01,.1:scores=global", flag="--settings", example="full")
    ('partial', {'ratio': [0.01, 0.1], 'scores': ['global']})
    """
    name, *parts = (part.strip() for part in text.split(":"))
    options: dict[str, list[Scalar]] = {}
    for part in parts:
        option, equals, values = part.partition("=")
        if not option.isidentifier() or not equals or option in options or not all(values.split(",")):
            expected = "expected each option once, as OPTION=VALUE or OPTION=VALUE,VALUE"
            raise Error(f"{flag}: {expected}, found {part!r} in {text!r}; write it as in {example}")
        options[option] = [scalar(value) for value in values.split(",")]
    return name, options


def combinations(options: dict[str, list[Scalar]]) -> list[Setting]:
    """Every combination of the values.

    >>> combinations({"rank": [1, 2], "bits": [4]})
    [{'rank': 1, 'bits': 4}, {'rank': 2, 'bits': 4}]
    """
    return [dict(zip(options, values, strict=True)) for values in itertools.product(*options.values())]


def text_of(name: str, settings: Sequence[Setting]) -> str:
    """Settings under a name as flags have them: as combinations if they are all of some, else separated by `;`.

    >>> text_of("low_rank", [{"rank": 1, "aux": None}, {"rank": 2, "aux": None}])
    'low_rank:rank=1,2:aux=none'
    >>> text_of("low_rank", [{"rank": 1, "bits": 2}, {"rank": 2, "bits": 4}])
    'low_rank:rank=1:bits=2;low_rank:rank=2:bits=4'
    """
    options = {option: list(dict.fromkeys(setting.get(option) for setting in settings)) for option in settings[0]}
    combined = combinations(options)
    if len(combined) == len(settings) and all(setting in combined for setting in settings):
        return name + "".join(f":{option}={','.join(map(_word, values))}" for option, values in options.items())
    return ";".join(text_of(name, [setting]) for setting in settings)


def describe(setting: Setting) -> str:
    """A setting as it stands in tables.

    >>> describe({"rank": 4, "bits": None})
    'rank=4 bits=None'
    """
    return " ".join(f"{name}={value}" for name, value in setting.items())


def file_name(name: str, setting: Setting, *more: str) -> str:
    """A name for files of something at a setting.

    >>> file_name("low_rank", {"rank": 4}, "seed0")
    'low_rank-rank=4-seed0'
    """
    wanted = "-".join([name, *(f"{option}={value}" for option, value in setting.items()), *more])
    plain = re.sub(r"[^\w.=+-]", "_", wanted)[:150]
    return plain if plain == wanted else f"{plain}-{hashlib.sha256(wanted.encode()).hexdigest()[:8]}"


def scalar(word: str) -> Scalar:
    """A value as a flag has it: a number where it reads as one, none, true or false, or else a word."""
    if word.lower() in _WORDS:
        return _WORDS[word.lower()]
    for kind in (int, float):
        try:
            return kind(word)
        except ValueError:
            continue
    return word


def numbers(flag: str, texts: Sequence[str], expected: str, holds: Callable[[float], bool]) -> list[int | float]:
    """The numbers that a flag has.

    Args:
      flag: its name, for messages.
      texts: as it has them.
      expected: what they have to be, for messages.
      holds: whether one is.

    Returns:
      One for each text.

    Raises:
      Error: one is no number, or not such a one.

    >>> numbers("rates", ["1", "0.5"], "numbers above 0", lambda rate: rate > 0)
    [1, 0.5]
    """
    found: list[int | float] = []
    for text in texts:
        number = scalar(text.strip())
        if isinstance(number, bool) or not isinstance(number, int | float) or not holds(number):
            raise Error(f"--{flag}: expected {expected}, found {text!r}")
        found.append(number)
    return found


def _word(value: Scalar) -> str:
    return next((word for word, known in _WORDS.items() if value is known), str(value))
