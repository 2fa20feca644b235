"""The command line in a process of its own, and what it leaves behind."""

import os
import subprocess
import sys
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pytest

from updcomp.edge import __main__ as cli
from updcomp.edge import files
from updcomp.wire import errors

RUN = "import sys; from updcomp.edge import __main__ as cli; "
"""Begins Python code for `start`, which ends in `EXIT`."""
EXIT = "; sys.exit(cli.main())"
NOBODY = 65534


def run(*arguments, cwd, start=("-m", "updcomp.edge"), text=True, **options):
    """Runs the command line; one that hangs is an error."""
    command = [sys.executable, "-W", "error", *start, *map(str, arguments)]
    environment = {**os.environ, "PYTHONPATH": str(Path(cli.__file__).parents[2])}
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **options}
    if "input" not in options:
        streams.setdefault("stdin", subprocess.DEVNULL)
    return subprocess.run(command, cwd=cwd, env=environment, text=text, check=False, timeout=300, **streams)


def after(code: str) -> tuple[str, str]:
    """The `start` of a command line that runs behind this code."""
    return "-c", f"{RUN}{code}{EXIT}"


def unprivileged() -> tuple[str, str]:
    """The `start` of a command line that is not root's, so that permissions bind it."""
    drop = f"os.setgroups([]); os.setgid({NOBODY}); os.setuid({NOBODY})" if os.geteuid() == 0 else "pass"
    return after(f"import encodings.cp437, os; {drop}")  # no import is sure to succeed later


def contents(folder: Path) -> dict[str, bytes]:
    """Every file by name."""
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def assert_fails(folder, *arguments, message, **options):
    """One line, exit status 2, every file as it was, no new one."""
    before = contents(folder)
    done = run(*arguments, cwd=folder, **options)
    assert done.returncode == 2, done
    assert not done.stdout
    assert done.stderr.startswith("updcomp: error: ")
    assert done.stderr.count("\n") == 1
    assert message in done.stderr
    assert contents(folder) == before


def assert_refused(path: Path, message: str) -> None:
    """As a model file."""
    with pytest.raises(errors.FileError, match=message):
        files.read_model(path)


def peak(work: Callable[[], object]) -> int:
    """The most bytes that are allocated at once."""
    tracemalloc.start()
    try:
        work()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
