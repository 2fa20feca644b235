"""The commands on a model file and an update file: apply, verify, inspect."""

import argparse
import contextlib
from pathlib import Path
from typing import TypeAlias

from updcomp.edge import applying, files, progress
from updcomp.edge.command_line import about, add_budget, say, say_json
from updcomp.edge.reading import is_standard
from updcomp.wire import dtypes, inspection

Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"


def add_apply(commands: Commands, formats: str) -> argparse.ArgumentParser:
    """Adds `apply OLD UPDATE -o NEW`.

    Args:
      commands: of the command line.
      formats: those of OLD, in words.

    Returns:
      The command's parser; its `run` is for model files.
    """
    command = _add(commands, "apply", "make NEW from OLD and UPDATE, verified")
    _add_models(command, formats)
    text = "new model: a model file; - for standard output, in OLD's format; of a model in a folder, a new folder"
    command.add_argument("-o", "--output", metavar="NEW", required=True, help=text)
    command.set_defaults(run=apply)
    return command


def add_verify(commands: Commands, formats: str) -> None:
    """Adds `verify OLD UPDATE`; the arguments are those of `add_apply`."""
    command = _add(commands, "verify", "check that UPDATE fits OLD and gives what it promises; writes nothing")
    _add_models(command, formats)
    command.set_defaults(run=_verify)


def add_inspect(commands: Commands) -> None:
    """Adds `inspect UPDATE [MODEL]`."""
    command = _add(commands, "inspect", "print what UPDATE says of itself, and of the leaves of MODEL")
    _add_update(command)
    command.add_argument("model", metavar="MODEL", nargs="?", type=Path, help="model that UPDATE starts from")
    command.set_defaults(run=_inspect)


def apply(options: argparse.Namespace) -> None:
    """Runs `apply` on model files."""
    files.check_output(options.output, options.old, options.update)
    update = _update_for(options)
    with about(options.update), progress.shown("apply", 2 * _size(options.old)):
        is_whole = applying.apply_file(options.old, update, options.output, budget=options.budget)
    if not is_whole:
        note_lost_metadata()


def note_lost_metadata() -> None:
    """Says on stderr that a model was written without its metadata."""
    say("updcomp: note: the new model's metadata are left out; only .safetensors files keep them", to_stderr=True)


def _verify(options: argparse.Namespace) -> None:
    update = _update_for(options)
    with about(options.update), progress.shown("verify", 2 * _size(options.old)):
        is_whole = applying.verify_file(options.old, update, budget=options.budget)
    say(f"{'standard input' if is_standard(options.update) else options.update} applies to {options.old}")
    if not is_whole:
        say("updcomp: note: metadata are not checked; only .safetensors files keep them", to_stderr=True)


def _inspect(options: argparse.Namespace) -> None:
    update = files.read_update(options.update)
    with contextlib.ExitStack() as stack:
        model = None if options.model is None else stack.enter_context(files.open_model(options.model)).model
        with about(options.update), progress.shown("inspect"):
            told = inspection.inspect(update, model)
    say_json(told)


def _update_for(options: argparse.Namespace) -> bytes:
    with files.open_model(options.old) as (model, _):
        return files.read_update(options.update, dtypes.specs(model))


def _size(path: Path) -> int:
    """Bytes of a model's leaves; an update is applied in two readings of them."""
    with files.open_model(path) as (model, _):
        return sum(spec.nbytes for spec in dtypes.specs(model).values())


def _add(commands: Commands, name: str, text: str) -> argparse.ArgumentParser:
    return commands.add_parser(name, help=text, description=f"{text[0].upper()}{text[1:]}.")


def _add_models(command: argparse.ArgumentParser, formats: str) -> None:
    command.add_argument("old", metavar="OLD", type=Path, help=f"model that UPDATE starts from, {formats}")
    _add_update(command)
    add_budget(command)


def _add_update(command: argparse.ArgumentParser) -> None:
    command.add_argument("update", metavar="UPDATE", help="update file; - for standard input")
