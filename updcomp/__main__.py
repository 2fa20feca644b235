"""The server's command line: `python -m updcomp diff | apply | inspect` on model files and folders."""

import argparse
import contextlib
import math
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import ModuleType

from updcomp import differences
from updcomp.edge import applying, command_line, files, model_commands, progress, replacing, shards
from updcomp.edge.reading import is_standard
from updcomp.wire import container, dtypes, recent, squashing
from updcomp.wire.errors import BudgetError, Error, FileError
from updcomp.wire.packet import Packet
from updcomp.wire.structure import Structure

_Metadata = tuple[dict[str, str], dict[str, str]] | None
_FORMATS = ".safetensors or .npz, a folder of .safetensors shards, or an Orbax folder"

_SQUASHED = "Makes one update of several in a row: it makes the very model that they make, bit for bit."


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command.

    Args:
      arguments: those of the command line if not given.

    Returns:
      The exit status, as `command_line.run` says.
    """
    return command_line.run(_parser(), arguments)


def _parser() -> argparse.ArgumentParser:
    about = f"Updates between models, each of them {_FORMATS}."
    parser = argparse.ArgumentParser(prog="python -m updcomp", description=about)
    command_line.add_version(parser)
    commands = parser.add_subparsers(title="commands", required=True)

    diff = commands.add_parser("diff", help="make the update from OLD to NEW", description=about)
    diff.add_argument("old", metavar="OLD", type=Path, help="model that the devices hold")
    diff.add_argument("new", metavar="NEW", type=Path, help="model that they should hold")
    diff.add_argument("-o", "--output", metavar="UPDATE", required=True, help="update file; - for standard output")
    most = "lossy: the update is at most this long, in bytes or such as 500kB, 1MB or 1MiB"
    size = diff.add_mutually_exclusive_group()
    size.add_argument("--step", type=float, help="lossy: no weight is further than about step / 2 from the new one")
    error = "lossy: no weight of the result is further than this from the new one"
    size.add_argument("--max-error", metavar="ERROR", type=float, help=error)
    size.add_argument("--max-bytes", metavar="SIZE", type=command_line.byte_count, help=most)
    common = "leave out leaves that one of the models lacks: the device keeps its own, and gets no others"
    leaves = diff.add_mutually_exclusive_group()
    leaves.add_argument("--common-only", action="store_true", help=common)
    allow = (
        "the device gets leaves that only NEW has, or has in another shape or dtype, and gives up those of OLD alone"
    )
    leaves.add_argument("--allow-new", action="store_true", help=allow)
    _add_compact(diff)
    command_line.add_budget(diff)
    diff.set_defaults(run=_diff)

    squash = commands.add_parser("squash", help="make one update of several in a row", description=_SQUASHED)
    squash.add_argument(
        "updates", metavar="UPDATE", nargs="+", help="update files in their order; - for standard input"
    )
    squash.add_argument("old", metavar="OLD", type=Path, help="model that the first update starts from")
    squash.add_argument("-o", "--output", metavar="UPDATE", required=True, help="update file; - for standard output")
    _add_compact(squash)
    command_line.add_budget(squash)
    squash.set_defaults(run=_squash)

    model_commands.add_apply(commands, _FORMATS).set_defaults(run=_apply)
    model_commands.add_inspect(commands)
    return parser


def _add_compact(command: argparse.ArgumentParser) -> None:
    text = "fingerprints of 8 bytes each in place of 16 and a checksum: 20 bytes less"
    command.add_argument("--compact", action="store_true", help=text)


def _diff(options: argparse.Namespace) -> None:
    inputs = [file for path in (options.old, options.new) for file in _files(path)]
    replacing.check_output(options.output, *inputs)
    with _opened(options.old) as old, _opened(options.new) as new:
        travels = files.keeps_metadata(options.old) and files.keeps_metadata(options.new)
        metadata = (old.metadata, new.metadata) if travels else None
        base, whole = recent.Recent(old.model), _size(new.model)
        with progress.shown("diff", _readings(options) * (_size(old.model) + whole)):
            update = _made(base, new.model, metadata, options)
        changed = container.structure_of(update)
        left = _left_out(old.model, new.model) if changed is None else _changed(changed)
    files.write_bytes(options.output, update)
    name, to_stderr = ("standard output", True) if is_standard(options.output) else (options.output, False)
    size = f"{len(update):,} bytes in place of {whole:,} ({whole / len(update):,.1f} times smaller)"
    said = (size, f"metadata: {_told(metadata)}", *left)
    command_line.say(*(f"{name}: {line}" for line in said), to_stderr=to_stderr)


def _squash(options: argparse.Namespace) -> None:
    replacing.check_output(options.output, *options.updates, *_files(options.old))
    with _opened(options.old) as old:
        updates = [files.read_update(path, dtypes.specs(old.model)) for path in options.updates]
        metadata = old.metadata if files.keeps_metadata(options.old) else None
        with progress.shown("squash"):
            update = squashing.squash(
                updates, old.model, metadata=metadata, budget=options.budget, compact=options.compact
            )
    files.write_bytes(options.output, update)
    name, to_stderr = ("standard output", True) if is_standard(options.output) else (options.output, False)
    before = " + ".join(f"{len(one):,}" for one in updates)
    command_line.say(f"{name}: {len(update):,} bytes in place of {before}", to_stderr=to_stderr)


def _size(model: dtypes.Model) -> int:
    return sum(spec.nbytes for spec in dtypes.specs(model).values())


def _readings(options: argparse.Namespace) -> int:
    """How often a difference is read, as a rule: a bound on the bytes is met after a look and one or two attempts."""
    return 1 if options.max_bytes is None else 3


def _made(old: dtypes.Model, new: dtypes.Model, metadata: _Metadata, options: argparse.Namespace) -> bytes:
    """The update of the difference of the leaves, and of the metadata."""
    given = {name: getattr(options, name) for name in ("budget", "compact", "common_only", "allow_new")}
    if options.max_bytes is None:
        packet = differences.between(old, new, step=options.step, max_error=options.max_error, **given)
        return container.encode(packet, old, metadata=metadata, budget=options.budget, compact=options.compact)
    try:
        return differences.within_bytes(old, new, options.max_bytes, metadata=metadata, **given).update
    except BudgetError as error:
        if not any(metadata or ()):
            raise
        taken, without = (
            len(container.encode(Packet({}), old, metadata=texts, budget=math.inf)) for texts in (metadata, None)
        )
        raise BudgetError(f"{error}, of which the metadata take {taken - without}") from None


def _left_out(old: dtypes.Model, new: dtypes.Model) -> list[str]:
    """What `--common-only` left out."""
    names = dtypes.specs(old), dtypes.specs(new)
    told = [
        (verb, sorted(one - other))
        for verb, one, other in (
            ("keeps leaves that only OLD has", set(names[0]), set(names[1])),
            ("leaves out leaves that only NEW has", set(names[1]), set(names[0])),
        )
    ]
    return [f"{verb}: {differences.listed(leaves)}" for verb, leaves in told if leaves]


def _changed(structure: Structure) -> list[str]:
    """What `--allow-new` adds and removes."""
    told = [("adds", list(structure.added)), ("removes", list(structure.removed))]
    return [f"{verb} {differences.listed(leaves)}" for verb, leaves in told if leaves]


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
    if not _is_orbax(options.old):
        model_commands.apply(options)
        return
    if is_standard(options.output):
        raise FileError("-o: expected the name of a folder or model file, found -; an Orbax model is no file")
    replacing.check_output(options.output, options.old, options.update)
    trees, checkpoints = _orbax()
    tree = checkpoints.load_model(options.old)
    old = trees.to_model(tree)
    update = files.read_update(options.update, dtypes.specs(old))
    with command_line.about(options.update):
        metadata, is_whole = applying.new_metadata(update, None)
        new = container.apply_update(update, old, budget=options.budget)
    if Path(options.output).suffix in files.SUFFIXES:
        files.write_model(options.output, new, metadata)
    else:
        changed = container.structure_of(update)
        made = trees.from_model(new, tree) if changed is None else trees.rebuilt(tree, new.items(), changed)
        with command_line.undisturbed():  # Orbax leaves what it had begun
            checkpoints.save_model(options.output, made)
    if not (is_whole and (not metadata or files.keeps_metadata(options.output))):
        model_commands.note_lost_metadata()


def _is_orbax(path: Path) -> bool:
    return os.path.isdir(path) and not shards.is_folder(path)


def _orbax() -> tuple[ModuleType, ModuleType]:
    """The modules for pytrees and their folders; imported here, since they take seconds, and files do without."""
    try:
        from updcomp import trees
        from updcomp.training import checkpoints
    except ModuleNotFoundError as missing:
        raise Error(f"an Orbax folder needs {missing.name}: install updcomp[server]") from None
    return trees, checkpoints


def _files(path: Path) -> list[Path]:
    """What a model is read from."""
    return [path] if _is_orbax(path) else shards.files_of(path)


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[files.ModelFile]:
    """A model whose leaves are read when they are asked for; an Orbax folder's are all read, and named by path."""
    if _is_orbax(path):
        trees, checkpoints = _orbax()
        yield files.ModelFile(trees.to_model(checkpoints.load_model(path)), {})
        return
    with files.open_model(path) as opened:
        yield opened


if __name__ == "__main__":
    sys.exit(main())
