"""The commands of the device's command line about a store: `init | install | rollback | status | verify-store`."""

import argparse
import shlex
from pathlib import Path

from updcomp.edge import command_line, files, progress, store
from updcomp.wire import dtypes, errors


def add_commands(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Adds the commands, each with its function as the default `run`.

    Args:
      subparsers: what `add_subparsers` of the command line's parser returned.
    """
    for name, run, text in (
        ("init", _init, "make STORE, its first version a copy of MODEL"),
        ("install", _install, "apply UPDATE to the version in STORE that it starts from, and make that current"),
        ("rollback", _rollback, "make the version in STORE before the current one current again"),
        ("path", _path, "print the file of the current version, verified"),
        ("status", _status, "print what STORE holds"),
        ("verify-store", _verify, "read every byte in STORE, and make anew what is damaged"),
    ):
        command = subparsers.add_parser(name, help=text, description=text)
        command.set_defaults(run=run)
        command.add_argument("store", metavar="STORE", type=Path, help="folder of the store")
        if name == "init":
            command.add_argument(
                "model", metavar="MODEL", type=Path, help="deployed model, a file or a folder of shards"
            )
        elif name == "install":
            _add_install_options(command)


def _add_install_options(command: argparse.ArgumentParser) -> None:
    command.add_argument("update", metavar="UPDATE", help="update file; - is standard input")
    check = "run COMMAND with the path of the new model added; only if it ends with status 0 is that current"
    command.add_argument("--check", metavar="COMMAND", type=shlex.split, help=check)
    timeout = "stop the check after so many seconds, as failed (default: 60)"
    command.add_argument("--timeout", metavar="SECONDS", type=float, default=60.0, help=timeout)
    again = "take an update that was installed, rolled back or found unhealthy before"
    command.add_argument("--again", action="store_true", help=again)
    command.add_argument("--keep", metavar="N", type=int, default=3, help="latest versions to keep (default: 3)")
    command_line.add_budget(command)


def _init(options: argparse.Namespace) -> None:
    opened = store.Store(options.store)
    with progress.shown("init"):
        opened.initialise(options.model)
    command_line.say(f"{options.store}: version {opened.version()} is current")


def _install(options: argparse.Namespace) -> None:
    opened = store.Store(options.store, keep=options.keep)
    with files.open_model(opened.path()) as file:
        specs = dtypes.specs(file.model)
    update = files.read_update(options.update, specs)
    with command_line.about(options.update), progress.shown("install"):
        version = opened.install(
            update, check=options.check, timeout=options.timeout, again=options.again, budget=options.budget
        )
    command_line.say(f"{options.store}: version {version} is current")


def _rollback(options: argparse.Namespace) -> None:
    command_line.say(f"{options.store}: version {store.Store(options.store).rollback()} is current")


def _path(options: argparse.Namespace) -> None:
    command_line.say(str(store.Store(options.store).path()))


def _status(options: argparse.Namespace) -> None:
    command_line.say_json(store.Store(options.store).status())


def _verify(options: argparse.Namespace) -> None:
    with progress.shown("verify-store"):
        report = store.Store(options.store).verify()
    command_line.say_json(report)
    if report["lost"] or report["updates_lost"]:
        raise errors.FileError(
            f"{options.store}: damaged beyond healing: versions {report['lost']}, updates of {report['updates_lost']}; "
            f"version {report['version']} is current and whole"
        )
