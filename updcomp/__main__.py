"""The server's command line: `python -m updcomp diff | apply | inspect` on `.safetensors`, `.npz` and Orbax folders."""

import argparse
import math
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from updcomp.edge import applying, command_line, files, model_commands, replacing
from updcomp.edge.reading import is_standard
from updcomp.wire import container, dtypes
from updcomp.wire.errors import BudgetError, Error, FileError
from updcomp.wire.packet import Packet

try:
    from updcomp import api, trees
    from updcomp.training.checkpoints import load_model, save_model
except ModuleNotFoundError as missing:
    message = f"python -m updcomp needs {missing.name}: install updcomp[server]; a device has python -m updcomp.edge"
    print(f"updcomp: error: {message}", file=sys.stderr)
    sys.exit(2)

_Metadata = tuple[dict[str, str], dict[str, str]] | None
_FORMATS = ".safetensors or .npz files, or folders of Orbax checkpoints"


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command.

    Args:
      arguments: those of the command line if not given.

    Returns:
      The exit status, as `command_line.run` says.
    """
    return command_line.run(_parser(), arguments)


def _parser() -> argparse.ArgumentParser:
    about = f"Updates between models: {_FORMATS}."
    parser = argparse.ArgumentParser(prog="python -m updcomp", description=about)
    commands = parser.add_subparsers(title="commands", required=True)

    diff = commands.add_parser("diff", help="make the update from OLD to NEW", description=about)
    diff.add_argument("old", metavar="OLD", type=Path, help="model that the devices hold")
    diff.add_argument("new", metavar="NEW", type=Path, help="model that they should hold")
    diff.add_argument("-o", "--output", metavar="UPDATE", required=True, help="update file; - for standard output")
    size = diff.add_mutually_exclusive_group()
    size.add_argument("--step", type=float, help="lossy: no weight is further than about step / 2 from the new one")
    size.add_argument("--max-bytes", type=int, help="lossy: the update is at most this long")
    command_line.add_budget(diff)
    diff.set_defaults(run=_diff)

    model_commands.add_apply(commands, _FORMATS).set_defaults(run=_apply)
    model_commands.add_inspect(commands)
    return parser


def _diff(options: argparse.Namespace) -> None:
    if options.step is not None and not 0 < options.step < float("inf"):
        raise Error(f"--step: expected a positive number, found {options.step}")
    replacing.check_output(options.output, options.old, options.new)
    old, new = _read(options.old), _read(options.new)
    travels = all(files.keeps_metadata(path) and not os.path.isdir(path) for path in (options.old, options.new))
    metadata = (old.metadata, new.metadata) if travels else None
    packet = _packet(old.model, new.model, metadata, options)
    update = container.encode(packet, old.model, metadata=metadata, budget=options.budget)
    files.write_bytes(options.output, update)
    whole = sum(leaf.nbytes for leaf in new.model.values())
    name, to_stderr = ("standard output", True) if is_standard(options.output) else (options.output, False)
    size = f"{len(update):,} bytes in place of {whole:,} ({whole / len(update):,.1f} times smaller)"
    command_line.say(f"{name}: {size}", f"{name}: metadata: {_told(metadata)}", to_stderr=to_stderr)


def _packet(old: dtypes.Model, new: dtypes.Model, metadata: _Metadata, options: argparse.Namespace) -> Packet:
    """The difference of the leaves, in the bytes that the metadata leave."""
    if options.max_bytes is None or not any(metadata or ()):
        return api.diff(old, new, step=options.step, max_bytes=options.max_bytes, budget=options.budget)
    taken, without = (
        len(container.encode(Packet({}), old, metadata=texts, budget=math.inf)) for texts in (metadata, None)
    )
    try:
        return api.diff(old, new, max_bytes=options.max_bytes - (taken - without), budget=options.budget)
    except BudgetError as error:
        raise BudgetError(f"{error}, beside {taken - without} of metadata") from None


def _told(metadata: _Metadata) -> str:
    """What an update does to the metadata of a model file."""
    if metadata is None:
        return "none travels; it does between .safetensors files"
    old, new = metadata
    sets = [name for name in sorted(new) if new[name] != old.get(name)]
    removes = sorted(old.keys() - new.keys())
    told = [f"{verb} {', '.join(names)}" for verb, names in (("sets", sets), ("removes", removes)) if names]
    return "; ".join(told) or "the same in OLD and NEW"


def _apply(options: argparse.Namespace) -> None:
    if not os.path.isdir(options.old):
        model_commands.apply(options)
        return
    if is_standard(options.output):
        raise FileError("-o: expected the name of a folder or model file, found -; an Orbax model is no file")
    replacing.check_output(options.output, options.old, options.update)
    tree = load_model(options.old)
    old = trees.to_model(tree)
    update = files.read_update(options.update, dtypes.specs(old))
    with command_line.about(options.update):
        metadata, is_whole = applying.new_metadata(update, None)
        new = container.apply_update(update, old, budget=options.budget)
    if Path(options.output).suffix in files.SUFFIXES:
        files.write_model(options.output, new, metadata)
    else:
        with command_line.undisturbed():  # Orbax leaves what it had begun
            save_model(options.output, trees.from_model(new, tree))
    if not (is_whole and (not metadata or files.keeps_metadata(options.output))):
        model_commands.note_lost_metadata()


def _read(path: Path) -> files.ModelFile:
    """A model file, or an Orbax folder as one: its leaves by path."""
    return files.ModelFile(trees.to_model(load_model(path)), {}) if os.path.isdir(path) else files.read_model(path)


if __name__ == "__main__":
    sys.exit(main())
