"""How every command of the project ends: with status 0, or with one line on stderr and status 2."""

import argparse
import sys
from collections.abc import Sequence

from updcomp.wire import errors


def run(parser: argparse.ArgumentParser, arguments: Sequence[str] | None) -> int:
    """Runs the command that the arguments name: its parser's default `run`, called with the options.

    Args:
      parser: of the command line.
      arguments: those of the process if None.

    Returns:
      The exit status: 0, or 2 after an `updcomp.Error`.
    """
    options = parser.parse_args(arguments)
    try:
        options.run(options)
    except errors.Error as error:
        print(f"updcomp: error: {error}", file=sys.stderr)
        return 2
    return 0
