"""The server's command line: `python -m updcomp diff | apply | inspect` on `.safetensors`, `.npz` and Orbax folders."""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from updcomp.edge import command_line, files
from updcomp.wire import container
from updcomp.wire.errors import Error, FileError

try:
    from updcomp import api, trees
    from updcomp.training.checkpoints import load_model, save_model
except ModuleNotFoundError as missing:
    message = f"python -m updcomp needs {missing.name}: install updcomp[server]; a device has python -m updcomp.edge"
    print(f"updcomp: error: {message}", file=sys.stderr)
    sys.exit(2)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command.

    Args:
      arguments: those of the command line if not given.

    Returns:
      The exit status: 0, or 2 after one line on stderr.
    """
    return command_line.run(_parser(), arguments)


def _parser() -> argparse.ArgumentParser:
    about = "Models are .safetensors or .npz files, or folders of Orbax checkpoints."
    parser = argparse.ArgumentParser(prog="python -m updcomp", description=f"Updates between models. {about}")
    commands = parser.add_subparsers(title="commands", required=True)

    diff = commands.add_parser("diff", help="make the update from OLD to NEW", description=about)
    diff.add_argument("old", metavar="OLD", type=Path, help="model that the devices hold")
    diff.add_argument("new", metavar="NEW", type=Path, help="model that they should hold")
    diff.add_argument("-o", "--output", metavar="UPDATE", type=Path, required=True, help="update file to write")
    size = diff.add_mutually_exclusive_group()
    size.add_argument("--step", type=float, help="lossy: no weight is further than about step / 2 from the new one")
    size.add_argument("--max-bytes", type=int, help="lossy: the update is at most this long")
    diff.set_defaults(run=_diff)

    apply = commands.add_parser("apply", help="make NEW from OLD and UPDATE, verified", description=about)
    apply.add_argument("old", metavar="OLD", type=Path, help="model that UPDATE starts from")
    apply.add_argument("update", metavar="UPDATE", type=Path, help="update file")
    apply.add_argument("-o", "--output", metavar="NEW", type=Path, required=True, help="new model, in OLD's format")
    apply.set_defaults(run=_apply)

    inspect = commands.add_parser("inspect", help="print what UPDATE says of itself")
    inspect.add_argument("update", metavar="UPDATE", type=Path, help="update file")
    inspect.set_defaults(run=_inspect)
    return parser


def _diff(options: argparse.Namespace) -> None:
    if options.step is not None and not 0 < options.step < float("inf"):
        raise Error(f"--step: expected a positive number, found {options.step}")
    files.check_distinct(options.output, options.old, options.new)
    old, new = _read(options.old).model, _read(options.new).model
    update = api.encode(api.diff(old, new, step=options.step, max_bytes=options.max_bytes), old)
    files.write_bytes(options.output, update)
    whole = sum(leaf.nbytes for leaf in new.values())
    print(f"{options.output}: {len(update):,} bytes in place of {whole:,} ({whole / len(update):,.1f} times smaller)")


def _apply(options: argparse.Namespace) -> None:
    is_folder = options.old.is_dir()
    if not is_folder:
        files.check_suffix(options.output)
    if options.output.is_dir():
        raise FileError(f"{options.output}: expected a name that is free, found a folder")
    files.check_distinct(options.output, options.old, options.update)
    update = files.read_bytes(options.update)
    if is_folder:
        save_model(options.output, api.apply(update, load_model(options.old)))
        return
    old = files.read_model(options.old)
    files.write_model(options.output, container.apply_update(update, old.model), old.metadata)


def _inspect(options: argparse.Namespace) -> None:
    print(json.dumps(api.inspect(files.read_bytes(options.update)), indent=2))


def _read(path: Path) -> files.ModelFile:
    """A model file, or an Orbax folder as one: its leaves by path."""
    return files.ModelFile(trees.to_model(load_model(path)), {}) if path.is_dir() else files.read_model(path)


if __name__ == "__main__":
    sys.exit(main())
