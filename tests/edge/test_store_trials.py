"""A new version is current only after its health check; nothing else ever gets there."""

import subprocess
import sys
import threading
import time

import pytest

from tests.edge import store_kit as kit
from updcomp.edge import files, health, state, store
from updcomp.wire import errors


@pytest.fixture
def opened(tmp_path):
    return kit.make(tmp_path / "store")


@pytest.fixture
def folder(opened, tmp_path):
    return tmp_path / "store"


@pytest.mark.parametrize(
    "check", [["test", "-s"], ["sh", "-c", 'test -s "$0"'], lambda path: True, lambda path: None, lambda path: 1]
)
def test_a_healthy_version_becomes_current(opened, folder, check):
    assert opened.install(kit.update(0, 1), check=check) == 2
    assert kit.seed_of(opened.current()) == 1
    assert kit.listing(folder) == kit.expected_listing([1, 2])


def fails(path):
    raise KeyError("a\nb")


def leaves(path):
    raise SystemExit(0)


@pytest.mark.parametrize(
    ("check", "message"),
    [
        (["false"], "check 'false': expected it to end with status 0, found status 1"),
        (["sh", "-c", "kill -9 $$"], "found signal 9"),
        (lambda path: False, "check: expected it to return true or None, found False"),
        (fails, r"check: KeyError: 'a\\nb'"),
        (leaves, "check: SystemExit: 0"),
    ],
)
def test_an_unhealthy_version_is_removed_and_its_update_refused_from_then_on(opened, folder, check, message):
    update = kit.update(0, 1)
    with pytest.raises(health.TrialError, match=rf"^version 2: .*{message}.*; version 1 stays$") as caught:
        opened.install(update, check=check)
    assert "\n" not in str(caught.value)
    assert kit.seed_of(opened.current()) == 0
    assert kit.listing(folder) == kit.expected_listing([1])
    with pytest.raises(state.RepeatError, match=r"found that it was unhealthy in its trial \(version 2, "):
        opened.install(update)
    assert opened.install(update, again=True) == 3


def test_a_command_that_takes_too_long_is_killed_with_all_that_it_started(opened, folder, tmp_path):
    script = f"sleep 20 & echo $! $$ > {tmp_path}/pids; wait"
    with pytest.raises(health.TrialError, match=r"within 0.3 s; version 1 stays"):
        opened.install(kit.update(0, 1), check=["sh", "-c", script], timeout=0.3)
    assert kit.listing(folder) == kit.expected_listing([1])
    for pid in map(int, (tmp_path / "pids").read_text().split()):
        assert is_gone(pid)


def test_what_a_command_leaves_running_is_killed_too(opened, tmp_path):
    opened.install(kit.update(0, 1), check=["sh", "-c", f"sleep 20 & echo $! > {tmp_path}/pid"])
    assert is_gone(int((tmp_path / "pid").read_text()))


def is_gone(pid):
    """Whether a process has ended, or is about to: nothing may reap orphans here, and a kill takes its moment."""
    for _ in range(500):
        try:
            with open(f"/proc/{pid}/stat") as file:
                if file.read().rpartition(")")[2].split()[0] in "ZX":
                    return True
        except OSError:
            return True
        time.sleep(0.01)
    return False


@pytest.mark.parametrize("command", ["/nowhere/check", "nowhere-check", "a\0b", "/"])
def test_a_check_that_cannot_be_run_is_said_so_and_condemns_no_update(opened, folder, command):
    with pytest.raises(errors.Error, match="check: expected a command that can be run, found .*nothing was installed"):
        opened.install(kit.update(0, 1), check=[command])
    assert kit.listing(folder) == kit.expected_listing([1])
    assert opened.install(kit.update(0, 1), check=["true"]) == 2


def test_a_function_that_takes_too_long_is_left_behind(opened, folder):
    release, ended = threading.Event(), threading.Event()

    def hangs(path):
        release.wait(60)
        ended.set()

    with pytest.raises(health.TrialError, match="within 0.05 s"):
        opened.install(kit.update(0, 1), check=hangs, timeout=0.05)
    release.set()
    assert ended.wait(60)
    assert opened.version() == 1
    assert kit.listing(folder) == kit.expected_listing([1])


def test_during_its_trial_a_version_is_whole_and_not_current(opened, folder):
    found = []

    def check(path):
        found.append((kit.seed_of(files.read_model(path).model), kit.seed_of(store.Store(folder).current())))

    opened.install(kit.update(0, 1), check=check)
    assert found == [(1, 0)]
    assert kit.seed_of(opened.current()) == 1


def test_a_check_that_changes_the_model_installs_nothing(opened, folder):
    with pytest.raises(errors.FileError, match="expected the model that was written"):
        opened.install(kit.update(0, 1), check=lambda path: path.write_bytes(b"other"))
    assert opened.version() == 1
    assert kit.listing(folder) == kit.expected_listing([1])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"check": "true"}, "check: expected a function, or a command as a list"),
        ({"check": []}, "check: expected a function, or a command as a list"),
        ({"check": ["true"], "timeout": 0}, "timeout: expected a number of seconds above 0"),
        ({"check": ["true"], "timeout": float("nan")}, "timeout: expected a number of seconds above 0"),
    ],
)
def test_a_check_that_is_none_is_said_before_anything_is_tried(opened, options, message):
    with pytest.raises(errors.Error, match=message):
        opened.install(kit.update(0, 1), **options)
    assert opened.status()["updates"] == []
    assert opened.install(kit.update(0, 1), check=["true"], timeout=float("inf")) == 2


def test_a_trial_that_is_killed_leaves_the_old_version_and_may_be_repeated_twice(opened, folder, tmp_path):
    update = tmp_path / "update.upd"
    update.write_bytes(kit.update(0, 1))
    command = [sys.executable, "-m", "updcomp.edge", "install", str(folder), str(update)]
    for attempt in (1, 2, 3):
        killed = subprocess.run([*command, "--check", "sh -c 'kill -9 $PPID'"], capture_output=True)
        assert killed.returncode == -9
        assert kit.seed_of(opened.current()) == 0
        assert [seen["attempts"] for seen in opened.status()["updates"]] == [attempt]
    with pytest.raises(state.RepeatError, match="3 trials of it were interrupted"):
        opened.install(update.read_bytes(), check=["true"])
    assert kit.listing(folder) == kit.expected_listing([1])
    assert opened.install(update.read_bytes(), check=["true"], again=True) == 5


def test_an_interrupted_trial_counts_and_a_later_one_may_succeed(opened, folder):
    update = kit.update(0, 1)
    with pytest.raises(KeyboardInterrupt):
        opened.install(update, check=["sh", "-c", "kill -INT $PPID; sleep 20"])
    assert kit.listing(folder) == kit.expected_listing([1])
    assert [(seen["outcome"], seen["attempts"]) for seen in opened.status()["updates"]] == [("on trial", 1)]
    assert opened.install(update, check=["true"]) == 3
    assert [seen["outcome"] for seen in opened.status()["updates"]] == ["installed"]


@pytest.mark.parametrize(("name", "status"), [("TERM", 143), ("HUP", 129), ("INT", 130)])
def test_a_signal_during_a_trial_ends_it_in_one_line_and_leaves_nothing(opened, folder, tmp_path, name, status):
    (tmp_path / "update.upd").write_bytes(kit.update(0, 1))
    command = [sys.executable, "-m", "updcomp.edge", "install", str(folder), str(tmp_path / "update.upd")]
    check = f"sh -c 'echo $$ > {tmp_path}/pid; kill -{name} $PPID; sleep 20'"
    ended = subprocess.run([*command, "--check", check], capture_output=True, text=True)
    assert ended.returncode == status
    assert ended.stderr.count("\n") == 1
    assert is_gone(int((tmp_path / "pid").read_text()))
    assert kit.listing(folder) == kit.expected_listing([1])
    assert kit.seed_of(opened.current()) == 0
