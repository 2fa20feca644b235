"""The device's command line: `python -m updcomp.edge apply | verify | inspect`."""

import argparse
import contextlib
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from updcomp.edge import command_line, files
from updcomp.wire import container, errors


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command.

    Args:
      arguments: those of the command line if not given.

    Returns:
      The exit status: 0, or 2 after one line on stderr.
    """
    return command_line.run(_parser(), arguments)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m updcomp.edge", description="Updates for models on a device.")
    commands = parser.add_subparsers(title="commands", required=True)
    for name, run, text in (
        ("apply", _apply, "make NEW from OLD and UPDATE, verified"),
        ("verify", _verify, "check that UPDATE fits OLD and gives what it promises; writes nothing"),
        ("inspect", _inspect, "print what UPDATE says of itself"),
    ):
        command = commands.add_parser(name, help=text, description=text)
        command.set_defaults(run=run)
        if name != "inspect":
            command.add_argument("old", metavar="OLD", type=Path, help="deployed model, .safetensors or .npz")
        command.add_argument("update", metavar="UPDATE", type=Path, help="update file")
        if name == "apply":
            command.add_argument("-o", "--output", metavar="NEW", type=Path, required=True, help="new model")
    return parser


def _apply(options: argparse.Namespace) -> None:
    if options.output.is_dir():
        raise errors.FileError(f"{options.output}: expected a file to write, found a folder")
    files.check_suffix(options.output)
    files.check_distinct(options.output, options.old, options.update)
    files.write_model(options.output, *_updated(options))


def _verify(options: argparse.Namespace) -> None:
    _updated(options)
    print(f"{options.update} applies to {options.old}")


def _updated(options: argparse.Namespace) -> files.ModelFile:
    """OLD with UPDATE applied."""
    old, update = files.read_model(options.old), files.read_bytes(options.update)
    with _about(options.update):
        return old._replace(model=container.apply_update(update, old.model))


def _inspect(options: argparse.Namespace) -> None:
    update = files.read_bytes(options.update)
    with _about(options.update):
        print(json.dumps(container.inspect(update), indent=2))


@contextlib.contextmanager
def _about(path: Path) -> Iterator[None]:
    """Names the file in errors about its content."""
    try:
        yield
    except errors.Error as error:
        raise type(error)(f"{path}: {error}") from None


if __name__ == "__main__":
    sys.exit(main())
