"""The device's command line: `python -m updcomp.edge apply | verify | inspect`, and those of the store."""

import argparse
import sys
from collections.abc import Sequence

from updcomp.edge import command_line, model_commands, store_commands

_FORMATS = ".safetensors or .npz, or a folder of .safetensors shards"


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command.

    Args:
      arguments: those of the command line if not given.

    Returns:
      The exit status, as `command_line.run` says.
    """
    return command_line.run(_parser(), arguments)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m updcomp.edge", description="Updates for models on a device.")
    command_line.add_version(parser)
    commands = parser.add_subparsers(title="commands", required=True)
    model_commands.add_apply(commands, _FORMATS)
    model_commands.add_verify(commands, _FORMATS)
    model_commands.add_inspect(commands)
    store_commands.add_commands(commands)
    return parser


if __name__ == "__main__":
    sys.exit(main())
