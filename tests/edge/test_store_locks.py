"""One writer at a time, and a lock that never outlives its holder."""

import os
import signal
import subprocess
import sys
import threading

import pytest

from tests.edge import store_kit as kit
from updcomp.edge import locks, store
from updcomp.wire import errors

HOLD = """
import os, sys, time
from updcomp.edge import locks
with locks.held(sys.argv[1], 10):
    child = os.fork() if "fork" in sys.argv[2:] else -1
    if child:
        print(child, flush=True)
    time.sleep(60)
"""

INSTALL = """
import sys
from tests.edge import store_kit as kit
from updcomp.edge import store
opened = store.Store(sys.argv[1], keep=20)
for seed in map(int, sys.argv[2:]):
    print(seed, opened.install(kit.update(0, seed)))
"""


def hold(path, *options):
    return subprocess.Popen([sys.executable, "-c", HOLD, path, *options], stdout=subprocess.PIPE)


def test_two_processes_that_install_at_once_lose_no_update(tmp_path):
    opened = kit.make(tmp_path / "store", keep=20)
    seeds = (range(1, 9), range(11, 19))
    writers = [
        subprocess.Popen([sys.executable, "-c", INSTALL, opened._folder, *map(str, some)], stdout=subprocess.PIPE)
        for some in seeds
    ]
    said = [list(map(int, line.split())) for writer in writers for line in writer.communicate()[0].splitlines()]
    assert [writer.returncode for writer in writers] == [0, 0]
    assert sorted(number for _, number in said) == list(range(2, 18))
    assert sorted(seed for seed, _ in said) == [*seeds[0], *seeds[1]]
    assert kit.listing(tmp_path / "store") == kit.expected_listing(range(1, 18))
    for seed, number in sorted(said, key=lambda pair: -pair[1]):
        assert (opened.version(), kit.seed_of(opened.current())) == (number, seed)
        opened.rollback()


def test_a_lock_is_waited_for_no_longer_than_asked_and_freed_when_its_holder_dies(tmp_path):
    kit.make(tmp_path / "store")
    opened, lock = store.Store(tmp_path / "store", lock_timeout=0.05), tmp_path / "store" / "lock"
    holder = hold(lock)
    try:
        holder.stdout.readline()
        with pytest.raises(locks.LockError, match=rf"{lock}: expected to get the lock within 0.05 s, found it held"):
            opened.install(kit.update(0, 1))
        with pytest.raises(locks.LockError):
            opened.rollback()
        assert kit.seed_of(opened.current()) == 0
    finally:
        holder.kill()
        holder.communicate()
    assert opened.install(kit.update(0, 1)) == 2


def test_a_forked_child_does_not_keep_its_parents_lock(tmp_path):
    holder = hold(tmp_path / "lock", "fork")
    child = int(holder.stdout.readline())
    try:
        with pytest.raises(locks.LockError), locks.held(tmp_path / "lock", 0):
            pass
        holder.kill()
        holder.wait()
        with locks.held(tmp_path / "lock", 10):
            os.kill(child, 0)  # it lives
    finally:
        os.kill(child, signal.SIGKILL)
        holder.kill()
        holder.communicate()


def test_threads_exclude_each_other_and_the_lock_is_that_of_the_file_with_the_name(tmp_path):
    path, order = tmp_path / "lock", []

    def other():
        with locks.held(path, 60):
            order.append("other")

    thread = threading.Thread(target=other)
    with locks.held(path, 0):
        thread.start()
        with pytest.raises(locks.LockError), locks.held(path, 0.01):
            pass
        order.append("first")
    thread.join()
    assert order == ["first", "other"]
    with locks.held(path, 0):
        path.unlink()
        with locks.held(path, 0), pytest.raises(locks.LockError), locks.held(path, 0):
            pass


@pytest.mark.parametrize("odd", ["link", "folder"])
def test_a_lock_that_is_no_file_is_said_so(tmp_path, odd):
    kit.make(tmp_path / "store")
    lock = tmp_path / "store" / "lock"
    lock.unlink()
    if odd == "link":
        lock.symlink_to(tmp_path / "elsewhere")
        with pytest.raises(errors.FileError, match="lock: cannot lock: Too many levels of symbolic links"):
            store.Store(tmp_path / "store").rollback()
        assert not (tmp_path / "elsewhere").exists()
    else:
        lock.mkdir()
        with pytest.raises(errors.FileError, match="lock"):
            store.Store(tmp_path / "store").rollback()
    assert kit.seed_of(store.Store(tmp_path / "store").current()) == 0
