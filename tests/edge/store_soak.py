"""Kills processes that change a store, at random moments, and looks for anything that this could have broken.

    python -m tests.edge.store_soak --kills=1000 --seed=0

Two writers install, roll back, try and verify; a reader reads; one of the three is killed (-9) again and again. Always:
what is read is a whole model, whatever a writer said was installed is in the state and has a number of its own, the
versions' numbers grow, and after the next operation the folder holds nothing but the store's files. A model says in one
of its leaves what the other must hold, so the store's own checks are not trusted. At last, with `--mount` as root, the
store lies on a file system of a few pages that is filled up to the last byte, one page after another.
"""

import argparse
import collections
import contextlib
import json
import os
import random
import select
import signal
import subprocess
import sys
import tempfile
import time
import unittest.mock
from pathlib import Path

from tests.edge import store_kit
from updcomp.edge import files, health, ledger, making, state, store
from updcomp.wire import errors

SIZE = 1 << 14  # weights of a model
LONGEST_LIFE = 0.08  # seconds from an operation's beginning to the kill
OPERATIONS = ("install", "rollback", "trial", "failing trial", "verify")
WEIGHTS = (6, 2, 3, 1, 1)


class BrokenError(AssertionError):
    """Something that must never be."""


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--kills", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", help="where the store is made (default: a temporary folder)")
    parser.add_argument("--mount", action="store_true", help="fill up a small file system, too; needs root")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        print(json.dumps(soak(Path(folder, "store"), options.kills, options.seed), indent=1))
    if options.mount:
        print(json.dumps(fill_up(), indent=1))


def soak(folder, kills, seed):
    """Figures of as many kills; BrokenError if anything is."""
    chance, begun = random.Random(seed), time.monotonic()
    opened = store_kit.make(folder, size=SIZE)
    told = Told(folder)
    workers = [Worker(write, folder, chance.random()) for _ in range(2)] + [Worker(read, folder, chance.random())]
    figures = collections.Counter()
    try:
        for kill in range(kills):
            victim = chance.choices(range(3), (4, 4, 1))[0]
            workers[victim].wait_for_operation()
            time.sleep(chance.uniform(0, LONGEST_LIFE))
            figures[f"killed in {workers[victim].kill()}"] += 1
            for worker in workers:
                told.take(worker.lines())
            told.check()
            if kill % 20 == 19 or kill == kills - 1:
                for worker in workers:
                    worker.kill()
                    told.take(worker.lines())
                told.check()
                check_folder(folder, opened)
                figures["looked for leftovers"] += 1
            for index, worker in enumerate(workers):
                if not worker.alive:
                    workers[index] = Worker(worker.run, folder, chance.random())
    finally:
        for worker in workers:
            worker.kill()
    return {
        "kills": kills,
        "seconds": round(time.monotonic() - begun),
        **dict(sorted(figures.items())),
        **told.figures(),
    }


class Told:
    """What the workers said, held against the state."""

    def __init__(self, folder):
        self.folder, self.done, self.new, self.numbers = folder, collections.Counter(), [], {}

    def take(self, lines):
        for line in lines:
            kind, *rest = line.split("\t")
            if kind == "broken":
                raise BrokenError(rest[0])
            if kind in ("done", "refused"):
                self.done[f"{kind}: {rest[0]}"] += 1
            if kind == "done" and rest[0] in ("install", "trial"):
                self.new.append((int(rest[1]), rest[2]))

    def check(self):
        """What was installed is in the state, and no two versions had the same number."""
        found = ledger.load(self.folder)
        for number, identity in self.new:
            if self.numbers.setdefault(number, identity) != identity:
                raise BrokenError(f"two updates are version {number}")
            seen = found.seen.get(identity)
            if seen is None or seen.number != number or seen.outcome not in (state.INSTALLED, state.ROLLED_BACK):
                raise BrokenError(f"version {number} is lost: {seen}")
            if number > found.last:
                raise BrokenError(f"version {number} is beyond {found.last}")
        if found.lost:
            raise BrokenError(f"versions {found.lost} are lost")
        self.new = []

    def figures(self):
        return dict(sorted(self.done.items())) | {"updates found again in the state": len(self.numbers)}


def check_folder(folder, opened):
    """After one more operation, the folder is exactly the store, and whole."""
    report = opened.verify()
    if report["lost"] or report["healed"] or report["updates_lost"]:
        raise BrokenError(f"damaged: {report}")
    found, expected = store_kit.listing(folder), store_kit.expected_listing(report["whole"])
    if found != expected:
        raise BrokenError(f"expected {expected}, found {found}")


class Worker:
    """A forked process, and a pipe of what it says."""

    def __init__(self, run, folder, seed):
        self.run, self.alive, self._text, self._now, self._lines = run, True, b"", "start", []
        self._reader, writer = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            try:
                run(folder, random.Random(seed), lambda *parts: os.write(writer, ("\t".join(parts) + "\n").encode()))
            except BaseException as error:
                os.write(writer, f"broken\t{type(error).__name__}: {error}\n".encode())
            finally:
                os._exit(1)
        os.close(writer)
        os.set_blocking(self._reader, False)

    def wait_for_operation(self):
        """Until it says that one begins."""
        self._read()
        while True:
            select.select([self._reader], [], [], 60)
            before = len(self._lines)
            if not self._read():
                return
            if any(line.startswith(("begin", "broken")) for line in self._lines[before:]):
                return

    def lines(self):
        """What it said since."""
        self._read()
        lines, self._lines = self._lines, []
        return lines

    def kill(self):
        """Ends it, if it has not been; the operation that it was at."""
        if self.alive:
            os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)
            self._read()
            os.close(self._reader)
            self.alive = False
        return self._now

    def _read(self):
        while self.alive:
            try:
                piece = os.read(self._reader, 1 << 16)
            except BlockingIOError:
                return True
            if not piece:
                return False
            *lines, self._text = (self._text + piece).split(b"\n")
            for line in map(bytes.decode, lines):
                self._lines.append(line)
                kind, *rest = line.split("\t")
                self._now = rest[0] if kind == "begin" else "between" if kind != "broken" else self._now
        return False


def write(folder, chance, say):
    """Changes the store for ever."""
    opened = store.Store(folder, keep=2)
    while True:
        operation = chance.choices(OPERATIONS, WEIGHTS)[0]
        update = None
        if "trial" in operation or operation == "install":
            with contextlib.suppress(errors.FileError):
                base = store_kit.model(0, SIZE) if chance.random() < 0.1 else opened.current()
                update = store_kit.update(base, store_kit.model(chance.getrandbits(60), SIZE))
        say("begin", operation)
        try:
            if operation == "rollback":
                result = [str(opened.rollback())]
            elif operation == "verify":
                result = [str(opened.verify()["version"])]
            else:
                check = (
                    None if operation == "install" else healthy(chance) if operation == "trial" else unhealthy(chance)
                )
                result = [str(opened.install(update, check=check)), store_kit.identity(update)]
        except (errors.WrongBaseError, health.TrialError) as error:
            say("refused", operation, type(error).__name__)  # the other writer was faster, or the check found so
        except errors.FileError as error:
            if operation != "rollback" or "a whole version before" not in str(error):
                raise
            say("refused", operation, "no earlier version")
        else:
            say("done", operation, *result)


def healthy(chance):
    return chance.choice([["true"], lambda path: store_kit.is_whole(files.read_model(path).model)])


def unhealthy(chance):
    return chance.choice([["false"], lambda path: not store_kit.is_whole(files.read_model(path).model)])


def read(folder, chance, say):
    """Reads the current model for ever."""
    opened, last = store.Store(folder), 0
    while True:
        say("begin", "read")
        if not store_kit.is_whole(opened.current()):
            raise BrokenError("a model that is not whole was read")
        path = opened.path()
        with contextlib.suppress(errors.FileError):  # it may be given up before it is read
            if not store_kit.is_whole(files.read_model(path).model) and path.exists():
                raise BrokenError(f"{path} is not whole")
        found = ledger.load(folder)
        if found.last < last:
            raise BrokenError(f"numbers went down from {last} to {found.last}")
        last = found.last
        say("done", "read")


def fill_up(pages=48, size=4096):
    """Figures of installs and rollbacks on a file system with as few free pages as one likes."""
    figures = collections.Counter()
    with tempfile.TemporaryDirectory() as mounted:
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", mounted], check=True)
        try:
            opened, ballast = store_kit.make(Path(mounted, "store"), size=size, keep=2), Path(mounted, "ballast")
            for seed in (1, 2):
                opened.install(store_kit.update(opened.current(), store_kit.model(seed, size)))
            for free in range(pages):
                _fill(ballast, free)
                figures[_install_or_nothing(opened, mounted, store_kit.model(100 + free, size))] += 1
                ballast.unlink()
                opened.install(store_kit.update(opened.current(), store_kit.model(1000 + free, size)))
                _fill(ballast, 0)
                opened.rollback()
                if not store_kit.is_whole(opened.current()):
                    raise BrokenError("a model that is not whole was read")
                figures["rollbacks with no byte free"] += 1
                ballast.unlink()
        finally:
            subprocess.run(["umount", mounted], check=True)
    return figures


def _fill(ballast, free):
    """Takes all pages but some."""
    with ballast.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(os.sysconf("SC_PAGESIZE")))
    os.truncate(ballast, ballast.stat().st_size - free * os.sysconf("SC_PAGESIZE"))


def _install_or_nothing(opened, mounted, model):
    """Tries to install without asking for space before."""
    folder, update, before = Path(mounted, "store"), store_kit.update(opened.current(), model), opened.version()
    files_before = {name: Path(folder, name).read_bytes() for name in store_kit.listing(folder)}
    with unittest.mock.patch.object(making, "_SPARE", -(1 << 40)):
        try:
            opened.install(update)
        except errors.FileError:
            if {name: Path(folder, name).read_bytes() for name in store_kit.listing(folder)} != files_before:
                raise BrokenError("an install without space changed the store") from None
            return "installs without space, nothing changed"
    if opened.version() <= before or not store_kit.is_whole(opened.current()):
        raise BrokenError("an install with space did nothing")
    return "installs with just enough space"


if __name__ == "__main__":
    sys.exit(main())
