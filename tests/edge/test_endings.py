"""Signals, closed pipes, full devices: an exit status, at most one line, nothing left behind."""

import math
import os
import signal

import numpy as np
import pytest

from tests.edge.running import after, assert_fails, contents, run
from tests.wire import samples
from updcomp.edge import command_line, files
from updcomp.wire import container, packet
from updcomp.wire.kinds import exact

MODEL = samples.model()
UPDATE = container.encode(samples.packets()["raw"], MODEL)
APPLY = ("apply", "old.npz", "update", "-o", "new.npz")


@pytest.fixture
def folder(tmp_path):
    files.write_model(tmp_path / "old.npz", MODEL)
    (tmp_path / "update").write_bytes(UPDATE)
    return tmp_path


def signalled(name, before=""):
    """A process that gets a signal when its temporary file is whole, and again when that is removed."""
    kill = f"kill = lambda *_: os.kill(os.getpid(), signal.{name}); os.fsync = kill; "
    again = "unlink = pathlib.Path.unlink; pathlib.Path.unlink = lambda path: (kill(), unlink(path))"
    return after(f"import os, pathlib, signal; {before}{kill}{again}")


@pytest.mark.parametrize(
    ("name", "message"),
    [("SIGINT", "interrupted"), ("SIGTERM", "ended by SIGTERM"), ("SIGHUP", "ended by SIGHUP")],
)
def test_a_signal_leaves_nothing_behind(folder, name, message):
    before = contents(folder)
    done = run(*APPLY, cwd=folder, start=signalled(name))
    assert (done.returncode, done.stdout) == (128 + getattr(signal, name), "")
    assert done.stderr == f"updcomp: {message}\n"
    assert contents(folder) == before


def test_a_signal_that_is_ignored_stays_so(folder):
    """As under nohup."""
    done = run(*APPLY, cwd=folder, start=signalled("SIGHUP", "signal.signal(signal.SIGHUP, signal.SIG_IGN); "))
    assert (done.returncode, done.stderr) == (0, "")
    assert (folder / "new.npz").exists()


def test_handlers_of_signals_are_restored(folder):
    class Parser:
        def parse_args(self, arguments):
            during.extend(map(signal.getsignal, numbers))
            return self

        def run(self, options):
            return 0

    numbers, during = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP), []
    before = [signal.getsignal(number) for number in numbers]
    assert command_line.run(Parser(), None) == 0
    assert [signal.getsignal(number) for number in numbers] == before
    assert during != before


def test_signals_wait_until_what_cannot_be_stopped_is_done():
    done = []

    def work():
        with command_line.undisturbed():
            for number in (signal.SIGTERM, signal.SIGINT):
                os.kill(os.getpid(), number)
            done.append("whole")

    with pytest.raises(KeyboardInterrupt) as stopped:
        work()
    assert (done, stopped.value.args) == (["whole"], (signal.SIGTERM,))
    with command_line.undisturbed():
        pass


def closed_pipe():
    """The end of a pipe that nobody reads."""
    read, write = os.pipe()
    os.close(read)
    return write


@pytest.mark.parametrize(
    "arguments", [("inspect", "update"), ("inspect", "long"), ("verify", "old.npz", "update"), (*APPLY[:-1], "-")]
)
def test_output_that_nobody_reads_ends_silently(folder, arguments):
    """Some of it is still to be written when the process ends."""
    old, new = ({str(i): np.full(1, i + step, np.int16) for i in range(999)} for step in (0, 1))
    changes = packet.Packet({name: exact.Exact(leaf) for name, leaf in new.items()})
    (folder / "long").write_bytes(container.encode(changes, old, budget=math.inf))
    output = closed_pipe()
    try:
        done = run(*arguments, cwd=folder, stdout=output)
    finally:
        os.close(output)
    assert (done.returncode, done.stderr) == (128 + signal.SIGPIPE, "")


@pytest.mark.parametrize("arguments", [("inspect", "update"), (*APPLY[:-1], "-")])
def test_output_onto_a_full_device_is_one_line(folder, arguments):
    with open("/dev/full", "wb") as full:
        message = "updcomp: error: standard output: cannot write: No space left on device\n"
        assert_fails(folder, *arguments, message=message, stdout=full)


def test_standard_output_may_be_closed(folder):
    closed = after("import os, sys; os.close(1); sys.stdout = None")
    assert_fails(folder, *APPLY[:-1], "-", message="standard output: cannot write: it is closed", start=closed)
    assert run("inspect", "update", cwd=folder, start=closed).returncode == 0


def test_names_that_no_terminal_shows_are_escaped(folder):
    os.rename(folder / "update", os.fsencode(folder) + b"/up\xff\n\x1bdate")
    done = run("verify", "old.npz", b"up\xff\n\x1bdate".decode(errors="surrogateescape"), cwd=folder)
    assert (done.returncode, done.stdout) == (0, "up\\udcff\\n\\x1bdate applies to old.npz\n")
    assert_fails(folder, "inspect", "missing\n\x1b[31m", message="missing\\n\\x1b[31m: No such file")


def test_memory_that_is_used_up_in_between_is_one_line(capsys):
    class Parser:
        def parse_args(self, arguments):
            return self

        def run(self, options):
            return np.empty(1 << 62, np.uint8)

    assert command_line.run(Parser(), None) == 2
    assert capsys.readouterr().err.startswith("updcomp: error: expected more memory to work in")


def test_too_little_memory_is_one_line(folder):
    """Virtual memory of which NumPy alone takes more than half."""
    files.write_model(folder / "large.npz", {"w": np.zeros(1 << 28, np.uint8)})
    limited = after("import resource; resource.setrlimit(resource.RLIMIT_AS, (1 << 28, 1 << 28))")
    assert_fails(folder, "verify", "large.npz", "update", message="does not fit into memory", start=limited)
