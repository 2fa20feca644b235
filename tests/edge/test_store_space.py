"""A full disk, a folder that cannot be written, and one that goes away."""

import collections
import errno
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from tests.edge import store_kit as kit
from updcomp.edge import files, health, ledger, store, versions
from updcomp.wire import errors

SIZE = 1 << 14  # weights of a model
NAMES = [path for number in (1, 2, 3) for path in kit.expected_listing([number])[2:]]
Usage = collections.namedtuple("Usage", "total used free")


@pytest.fixture
def folder(tmp_path):
    """Of a store that keeps versions 1 to 4."""
    opened = kit.make(tmp_path / "store", size=SIZE)
    for seed in (1, 2, 3):
        opened.install(update(seed - 1, seed))
    return tmp_path / "store"


def update(old, new):
    return kit.update(kit.model(old, SIZE), kit.model(new, SIZE))


def content(folder):
    return {name: (folder / name).read_bytes() for name in kit.listing(folder)}


def numbers(folder):
    return [version["number"] for version in store.Store(folder).status()["versions"]]


@pytest.mark.parametrize(
    ("given_up", "kept"), [(0, [1, 2, 3, 4, 5]), (1, [1, 3, 4, 5]), (2, [1, 4, 5]), (3, [4, 5]), (4, None)]
)
def test_versions_are_given_up_for_space_oldest_first_the_first_one_last_and_no_more_than_needed(
    folder, monkeypatch, given_up, kept
):
    sizes, before = [versions.path(folder, number).stat().st_size for number in (2, 3, 1, 4)], content(folder)
    wanted = (1 << 20) + sizes[-1] + len(update(3, 4))
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(0, 0, wanted - sum(sizes[:given_up])))
    opened = store.Store(folder, keep=10)
    if kept is None:
        with pytest.raises(errors.FileError, match=r"store: expected space for \d+ bytes, found \d+, and .* free some"):
            opened.install(update(3, 4))
        assert content(folder) == before
    else:
        assert opened.install(update(3, 4)) == 5
        assert numbers(folder) == kept
        assert kit.seed_of(opened.current()) == 4
        assert kit.listing(folder) == sorted({*kit.expected_listing(kept)})


def test_the_version_that_an_update_starts_from_is_not_given_up(folder, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(0, 0, 1 << 20))
    assert store.Store(folder, keep=10).install(update(1, 9)) == 5
    assert numbers(folder) == [2, 4, 5]


def fail_at(call, number, monkeypatch, after):
    """Lets a system call fail from the n-th on."""
    real, done = getattr(os, call), 0

    def fail(*args, **kwargs):
        nonlocal done
        done += 1
        if done > after:
            raise OSError(number, os.strerror(number))
        return real(*args, **kwargs)

    monkeypatch.setattr(os, call, fail)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS])
@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_an_install_that_cannot_write_leaves_the_store_as_it_was(folder, monkeypatch, call, number):
    """At each of the files that it writes."""
    opened, before = store.Store(folder), content(folder)
    for after in range(20):
        with monkeypatch.context() as patch:
            fail_at(call, number, patch, after)
            try:
                opened.install(update(3, 4))
            except errors.FileError as error:
                assert os.strerror(number) in str(error)
            else:
                break
        if opened.version() == 5:
            # The state was replaced, and only the folder could not be synced: the version is there, and whole.
            assert call == "fsync"
            break
        assert content(folder) == before
    assert 3 < after < 20
    assert kit.seed_of(opened.current()) == 4


LIMITED = """
import resource, sys
from tests.edge import store_kit as kit
from updcomp.edge import store
from updcomp.wire import errors
folder, before = sys.argv[1], kit.model(3, 1 << 14)
update = kit.update(before, kit.model(4, 1 << 14))
for limit in map(int, sys.argv[2:]):
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
    try:
        print(store.Store(folder).install(update))
    except errors.FileError as error:
        print(error)
"""


def test_an_install_that_may_not_write_so_large_a_file_leaves_the_store_as_it_was(folder):
    before = content(folder)
    size = versions.path(folder, 4).stat().st_size
    limits = [0, 1, 1000, 4096, size // 2, size - 1]
    found = subprocess.run(
        [sys.executable, "-c", LIMITED, str(folder), *map(str, limits)], check=True, capture_output=True, text=True
    )
    assert [line.endswith("cannot write: File too large") for line in found.stdout.splitlines()] == [True] * len(limits)
    assert content(folder) == before


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
@pytest.mark.parametrize("files_left", range(11))
def test_a_full_disk_blocks_no_rollback(folder, monkeypatch, number, files_left):
    """Nothing can be written before so many files are there and no more."""
    real = files.replace_file

    def full(path, write, **options):
        if len(list((folder / "versions").iterdir())) > max(files_left, 3):
            try:
                raise OSError(number, os.strerror(number))
            except OSError as error:
                raise errors.FileError(f"{path}: cannot write: {error.strerror}") from None
        real(path, write, **options)

    with monkeypatch.context() as patch:
        patch.setattr(files, "replace_file", full)
        assert store.Store(folder).rollback() == 3
    assert kit.seed_of(store.Store(folder).current()) == 2
    # What goes first is what is rolled back; then the oldest, and the first one last.
    kept = [1, 2, 3] if files_left >= 8 else [1, 3] if files_left >= 5 else [3]
    assert numbers(folder) == kept
    assert kit.listing(folder) == kit.expected_listing(kept)


def test_other_errors_give_nothing_up(folder, monkeypatch):
    before = content(folder)
    for number in (errno.EIO, errno.EROFS, errno.EFBIG):
        with monkeypatch.context() as patch:
            fail_at("fsync", number, patch, 0)
            with pytest.raises(errors.FileError, match=os.strerror(number)):
                store.Store(folder).rollback()
        assert content(folder) == before


def test_a_failed_trial_is_noted_on_a_full_disk_in_the_space_of_its_version(folder, monkeypatch):
    real, broken = files.replace_file, []

    def full(path, write, **options):
        if broken and versions.path(folder, 5).exists():
            try:
                raise OSError(errno.ENOSPC, "full")
            except OSError:
                raise errors.FileError("full") from None
        real(path, write, **options)

    monkeypatch.setattr(files, "replace_file", full)
    with pytest.raises(health.TrialError):
        store.Store(folder).install(update(3, 4), check=lambda path: broken.append(path) or False)
    assert [seen["outcome"] for seen in store.Store(folder).status()["updates"]][-1] == "unhealthy in its trial"


READ_ONLY = """
import os, sys
from tests.edge import store_kit as kit
from updcomp.edge import store
from updcomp.wire import errors
kit.update(1, 2)  # has loaded all that is needed
os.setgid(65534), os.setuid(65534)
opened = store.Store(sys.argv[1])
print(kit.seed_of(opened.current()))
for call in (lambda: opened.install(kit.update(1, 2)), opened.rollback, opened.verify):
    try:
        print(call())
    except errors.FileError as error:
        print(error)
print(kit.seed_of(opened.current()))
"""


@pytest.mark.skipif(os.getuid() != 0, reason="only root can become somebody else")
@pytest.mark.parametrize("rotten", [False, True])
def test_who_may_only_read_is_served_and_changes_nothing(rotten):
    with tempfile.TemporaryDirectory() as place:  # pytest's own folders are root's alone
        os.chmod(place, 0o755)
        folder = Path(place, "store")
        opened = kit.make(folder)
        opened.install(kit.update(0, 1))
        if rotten:
            opened.path().write_bytes(b"")
        before = content(folder)
        found = subprocess.run(
            [sys.executable, "-c", READ_ONLY, str(folder)], check=True, capture_output=True, text=True, cwd=os.getcwd()
        )
        seed, *said, again = found.stdout.splitlines()
        assert seed == again == ("0" if rotten else "1")
        assert [line.split(": ", 1)[0].startswith(str(folder)) for line in said] == [True, True] + [rotten] * (
            len(said) - 2
        )
        assert content(folder) == before


def test_a_folder_that_goes_away_is_an_error_of_one_line(folder):
    opened = store.Store(folder)

    def vanish(path):
        shutil.rmtree(folder)

    with pytest.raises(errors.FileError) as caught:
        opened.install(update(3, 4), check=vanish)
    assert "\n" not in str(caught.value)
    for call in (opened.path, opened.current, opened.rollback, opened.verify, opened.status, opened.version):
        with pytest.raises(errors.FileError, match="expected a store"):
            call()
    assert not folder.exists()


def test_versions_that_go_away_are_an_error_of_one_line_too(folder):
    shutil.rmtree(folder / "versions")
    opened = store.Store(folder)
    assert ledger.load(folder) is not None
    for call in (opened.path, opened.current, opened.rollback, lambda: opened.install(update(3, 4)), opened.verify):
        with pytest.raises(errors.FileError, match="whole|beyond healing"):
            call()
