"""How every command of the project ends: with status 0, or with one line on stderr and another status."""

import argparse
import contextlib
import json
import math
import os
import re
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from types import FrameType
from typing import Any, TypeAlias

from updcomp.edge.reading import AnyPath, is_standard
from updcomp.wire import errors, release, versions

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_BYTES = re.compile(r"([0-9]{1,15}(?:\.[0-9]{1,15})?) ?(?:([kmgt])(i?))?b?", re.IGNORECASE)
_Handler: TypeAlias = Callable[[int, FrameType | None], object]


def run(parser: argparse.ArgumentParser, arguments: Sequence[str] | None) -> int:
    """Runs the command that the arguments name: its parser's default `run`, called with the options.

    Args:
      parser: of the command line.
      arguments: those of the process if None.

    Returns:
      The exit status: 0; 2 after an `updcomp.Error`; 128 + its number after a signal, a closed pipe among them.
    """
    try:
        with _stopped_by_signals():
            options = parser.parse_args(arguments)
            options.run(options)
        return 0
    except errors.Error as error:
        return _ended(2, f"error: {error}")
    except MemoryError:
        return _ended(2, "error: expected more memory to work in; use a larger machine or a smaller model")
    except BrokenPipeError:
        _discard_output()
        return 128 + signal.SIGPIPE
    except KeyboardInterrupt as stopped:
        number = stopped.args[0] if stopped.args else signal.SIGINT
        message = "interrupted" if number == signal.SIGINT else f"ended by {signal.Signals(number).name}"
        return _ended(128 + number, message)


def say(*lines: str, to_stderr: bool = False) -> None:
    """Prints lines for people.

    Args:
      lines: of text; what a terminal cannot show is escaped.
      to_stderr: where standard output carries a file.

    Raises:
      FileError: standard output cannot be written.
      BrokenPipeError: nobody reads it.
    """
    try:
        print(*map(_shown, lines), sep="\n", file=sys.stderr if to_stderr else sys.stdout, flush=True)
    except BrokenPipeError:
        raise
    except OSError as error:
        _discard_output()
        raise errors.FileError(f"standard output: cannot write: {error.strerror or error}") from None


def say_json(told: dict[str, Any]) -> None:
    """Prints an object as JSON of many lines, in ASCII; raises as `say`."""
    say(*json.dumps(told, indent=2).split("\n"))


@contextlib.contextmanager
def about(path: AnyPath) -> Iterator[None]:
    """Names the file in errors about its content; errors about other files name those themselves."""
    try:
        yield
    except errors.FileError:
        raise
    except errors.Error as error:
        raise type(error)(f"{'standard input' if is_standard(path) else os.fspath(path)}: {error}") from None


def add_budget(parser: argparse.ArgumentParser) -> None:
    """Adds `--budget=FACTOR`."""
    text = "what the update may cost, as a multiple of what a model of this size allows; inf for anything (default: 1)"
    parser.add_argument("--budget", metavar="FACTOR", type=_factor, default=1.0, help=text)


def add_version(parser: argparse.ArgumentParser) -> None:
    """Adds `--version`."""
    formats = sorted(versions.VERSIONS)
    said = f"updcomp {release.VERSION}, format versions {formats[0]} to {formats[-1]}"
    parser.add_argument("--version", action="version", version=said, help="print the version, and exit")


def byte_count(text: str) -> int:
    """A number of bytes as people write it, for `type=` of an argument.

    Args:
      text: digits, with or without a unit: `kB`, `MB`, `GB` are powers of 1,000, `KiB`, `MiB`, `GiB` of 1,024.

    Returns:
      Whole bytes.

    Raises:
      argparse.ArgumentTypeError: it is something else.

    >>> byte_count("20000"), byte_count("1.5MB"), byte_count("2KiB")
    (20000, 1500000, 2048)
    """
    match = _BYTES.fullmatch(text.strip())
    if match is None:
        raise argparse.ArgumentTypeError(f"expected bytes such as 20000, 500kB, 1.5MB or 1MiB, found {text!r}")
    number, prefix, binary = match.groups()
    power = " kmgt".index(prefix.lower()) if prefix else 0
    return round(float(number) * (1024 if binary else 1000) ** power)


def _factor(text: str) -> float:
    try:
        factor = float(text)
    except ValueError:
        factor = math.nan
    if not factor > 0:
        raise argparse.ArgumentTypeError(f"expected a positive number or inf, found {text!r}")
    return factor


@contextlib.contextmanager
def undisturbed() -> Iterator[None]:
    """Signals that would end the process wait until what is within, which cannot be stopped half-way, is done."""
    came: list[int] = []
    with _handled(lambda number, frame: came.append(number), lambda present: present not in (signal.SIG_IGN, None)):
        yield
    if came:
        raise KeyboardInterrupt(came[0])


@contextlib.contextmanager
def _stopped_by_signals() -> Iterator[None]:
    """Signals that would end the process raise `KeyboardInterrupt(number)`, so that what was begun is cleaned up."""

    def stop(number: int, frame: FrameType | None) -> None:
        for other in _SIGNALS:
            if signal.getsignal(other) is stop:
                signal.signal(other, signal.SIG_IGN)  # the clean-up has its time
        raise KeyboardInterrupt(number)

    # What is ignored, as by nohup, or handled by the program around, stays so.
    with _handled(stop, lambda present: present in (signal.SIG_DFL, signal.default_int_handler)):
        yield


@contextlib.contextmanager
def _handled(handler: _Handler, replaces: Callable[[Any], bool]) -> Iterator[None]:
    """Handles the signals whose present handlers are to be replaced."""
    replaced = {number: present for number in _SIGNALS if replaces(present := signal.getsignal(number))}
    if threading.current_thread() is not threading.main_thread():
        replaced = {}  # Python handles signals in the main thread alone
    try:
        for number in replaced:
            signal.signal(number, handler)
        yield
    finally:
        for number, present in replaced.items():
            signal.signal(number, present)


def _ended(status: int, message: str) -> int:
    # A terminal that hung up cannot be told.
    with contextlib.suppress(OSError):
        print(f"updcomp: {_shown(message)}", file=sys.stderr, flush=True)
    return status


def _shown(line: str) -> str:
    r"""A line without control characters and lone surrogates, which names of files and leaves may have.

    >>> _shown("a\nb\x1b")
    'a\\nb\\x1b'
    """
    if line.isprintable():
        return line
    return "".join(character if character.isprintable() else ascii(character)[1:-1] for character in line)


def _discard_output() -> None:
    """What standard output still holds goes nowhere, instead of into an error when the process ends."""
    with contextlib.suppress(OSError, AttributeError):
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, sys.stdout.fileno())
        os.close(null)
