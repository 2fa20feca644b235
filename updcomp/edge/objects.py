"""JSON objects of files, read entry by entry: JSON that is read at once takes thirty times its size."""

import json
import re
from collections.abc import Callable
from typing import Any, TypeAlias

from updcomp.edge import formats
from updcomp.wire import errors

_LONGEST_NUMBER = 19  # digits
_SPACE = re.compile(r"[ \t\n\r]*")

Value: TypeAlias = Callable[[str, str, int], tuple[Any, int]]
"""(name, text, where it begins) -> a value and where it ends; raises ValueError where there is none."""


def parse(content: bytes, value: Value, *, what: str) -> dict[str, Any]:
    """Reads a file or header that is one JSON object.

    Args:
      content: any bytes.
      value: reads the value of a name.
      what: the object is, for messages.

    Returns:
      The object.

    Raises:
      FileError: it is something else, or a name appears twice or has no encoding.

    >>> parse(b'{"a": "b"}', lambda name, text, at: read_text(text, at), what="header")
    {'a': 'b'}
    """
    try:
        text = content.decode()
        found, end = read(text, 0, value, what=what)
        if _behind_space(text, end) != len(text):
            raise ValueError(f"more behind its end at character {end}")
    except errors.Error:
        raise
    except (ValueError, RecursionError) as error:
        raise errors.FileError(f"{what}: expected a JSON object, found {error}") from None
    return found


def read(text: str, at: int, value: Value, *, what: str) -> tuple[dict[str, Any], int]:
    """Reads a JSON object within a text.

    Args:
      text: that holds it.
      at: where it begins.
      value: reads the value of a name.
      what: the text is, for messages.

    Returns:
      The object, and where it ends.

    Raises:
      ValueError: there is none.
      FileError: a name appears twice or has no encoding.
    """
    found: dict[str, Any] = {}
    at = _behind("{", text, at)
    if text[at : at + 1] == "}":
        return found, at + 1
    while True:
        name, at = read_text(text, at)
        if name in found:
            raise errors.FileError(f"{what}: the name {name!r} appears twice")
        at = _behind(":", text, _behind_space(text, at))
        found[name], at = value(name, text, at)
        at = _behind_space(text, at)
        if text[at : at + 1] == "}":
            return found, at + 1
        at = _behind(",", text, at)


def read_text(text: str, at: int) -> tuple[str, int]:
    """Reads a JSON string.

    Returns:
      It, and where it ends.

    Raises:
      ValueError: there is none.
      FileError: it has no encoding.
    """
    if text[at : at + 1] != '"':
        raise ValueError(f"{text[at : at + 1]!r} in place of a text at character {at}")
    found, end = DECODER.raw_decode(text, at)
    formats.check_text(found)
    return found, end


def _behind_space(text: str, at: int) -> int:
    space = _SPACE.match(text, at)
    return space.end() if space else at


def _behind(mark: str, text: str, at: int) -> int:
    """Where what follows a mark and space begins."""
    if text[at : at + 1] != mark:
        raise ValueError(f"{text[at : at + 1]!r} in place of {mark!r} at character {at}")
    return _behind_space(text, at + 1)


def _integer(digits: str) -> int:
    if len(digits) > _LONGEST_NUMBER:
        raise ValueError(f"a number of {len(digits)} digits")
    return int(digits)


def _no_integer(number: str) -> None:
    raise ValueError(f"{number[:20]} in place of an integer")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(found := dict(pairs)) != len(pairs):
        raise ValueError("a name that appears twice")
    return found


DECODER = json.JSONDecoder(
    object_pairs_hook=_unique, parse_int=_integer, parse_float=_no_integer, parse_constant=_no_integer
)
"""Of values without fractions, long numbers and names that appear twice."""
