import os
import shutil
import stat

import pytest

from tests.edge.running import NOBODY, after, assert_fails, contents, run, unprivileged
from tests.wire import samples
from updcomp.edge import files, replacing
from updcomp.wire import container, errors, fingerprint, header

MODEL = samples.model()
UPDATE = container.encode(samples.packets()["raw"], MODEL)
KILLED = after("import os; os.fsync = lambda file: os.kill(os.getpid(), 9)")


@pytest.fixture
def folder(tmp_path):
    files.write_model(tmp_path / "old.npz", MODEL)
    (tmp_path / "update").write_bytes(UPDATE)
    tmp_path.chmod(0o755)
    return tmp_path


def locked(folder, mode):
    """A folder in it of this mode, which is not root's."""
    (folder / "locked").mkdir()
    if os.geteuid() == 0:
        os.chown(folder / "locked", NOBODY, NOBODY)
    (folder / "locked").chmod(mode)
    return folder / "locked"


def is_new(path):
    return fingerprint.of(files.read_model(path).model) == header.parse(UPDATE).result


def test_a_file_is_replaced_through_links_and_only_whole(tmp_path):
    (tmp_path / "target.npz").write_bytes(b"old")
    (tmp_path / "link.npz").symlink_to(tmp_path / "target.npz")

    def fail(file):
        file.write(b"partial")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        files.replace_file(tmp_path / "link.npz", fail)
    assert (tmp_path / "target.npz").read_bytes() == b"old"
    assert sorted(os.listdir(tmp_path)) == ["link.npz", "target.npz"]
    files.write_bytes(tmp_path / "link.npz", b"new")
    assert (tmp_path / "target.npz").read_bytes() == b"new"
    assert (tmp_path / "link.npz").is_symlink()


def test_a_link_itself_may_be_replaced(tmp_path):
    (tmp_path / "target").write_bytes(b"old")
    (tmp_path / "link").symlink_to("target")
    files.replace_file(tmp_path / "link", lambda file: file.write(b"new"), follow=False)
    assert contents(tmp_path) == {"link": b"new", "target": b"old"}
    assert not (tmp_path / "link").is_symlink()


def test_a_link_to_nothing_makes_what_it_names(tmp_path):
    (tmp_path / "link").symlink_to("target")
    files.write_bytes(tmp_path / "link", b"new")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "target").read_bytes() == b"new"


def test_a_link_in_a_circle_is_an_error(tmp_path):
    (tmp_path / "link").symlink_to("link")
    with pytest.raises(errors.FileError, match="link: "):
        files.write_bytes(tmp_path / "link", b"new")
    assert os.listdir(tmp_path) == ["link"]


def test_only_files_are_replaced(tmp_path):
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "folder").mkdir()
    for path, kind in (("/dev/null", "device"), (tmp_path / "fifo", "FIFO"), (tmp_path / "folder", "folder")):
        with pytest.raises(errors.FileError, match=f"{path}: expected a file to write, found a {kind}"):
            files.write_bytes(path, b"new")
        with pytest.raises(errors.FileError, match=f"{path}: expected a file to write, found a {kind}"):
            replacing.check_output(path)


@pytest.mark.parametrize("mode", [0o600, 0o640, 0o444])
def test_a_file_hands_on_its_mode_and_owner(tmp_path, mode):
    path = tmp_path / "file"
    path.write_bytes(b"old")
    path.chmod(mode)
    if os.geteuid() == 0:
        os.chown(path, NOBODY, NOBODY)
    before = path.stat()

    def write(file):
        assert stat.S_IMODE(os.fstat(file.fileno()).st_mode) == 0o600
        file.write(b"new")

    files.replace_file(path, write)
    after = path.stat()
    assert path.read_bytes() == b"new"
    assert (after.st_mode, after.st_uid, after.st_gid) == (before.st_mode, before.st_uid, before.st_gid)


def test_a_new_file_has_the_mode_that_the_process_gives(tmp_path):
    mask = os.umask(0o027)
    try:
        files.write_bytes(tmp_path / "file", b"new")
    finally:
        os.umask(mask)
    assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == 0o640


def test_what_a_killed_process_left_is_swept_by_the_next(folder):
    arguments = ("apply", "old.npz", "update", "-o", "new.npz")
    for left in (1, 1):  # the second sweeps what the first left
        assert run(*arguments, cwd=folder, start=KILLED).returncode == -9
        assert len([name for name in os.listdir(folder) if name.startswith(".updcomp-")]) == left
    assert run(*arguments, cwd=folder).returncode == 0
    assert sorted(os.listdir(folder)) == ["new.npz", "old.npz", "update"]


def test_a_sweep_leaves_what_is_being_written_and_what_is_not_ours(tmp_path):
    others = [".updcomp-0123456.tmp", ".updcomp-0123456g.tmp", "updcomp-01234567.tmp", ".model.npz.01234567.tmp"]
    for name in others:
        (tmp_path / name).write_bytes(b"other")
    (tmp_path / ".updcomp-76543210.tmp").mkdir()
    (tmp_path / ".updcomp-01234567.tmp").write_bytes(b"left")

    def write(file):
        file.write(b"fir")
        files.write_bytes(tmp_path / "second", b"second")
        files.sweep(tmp_path)
        file.write(b"st")

    files.replace_file(tmp_path / "first", write)
    assert contents(tmp_path) == {"first": b"first", "second": b"second"} | dict.fromkeys(others, b"other")
    assert (tmp_path / ".updcomp-76543210.tmp").is_dir()
    files.sweep(tmp_path / "missing")


def test_a_sweep_follows_no_link(tmp_path):
    (tmp_path / "file").write_bytes(b"other")
    (tmp_path / ".updcomp-01234567.tmp").symlink_to("file")
    files.sweep(tmp_path)
    assert (tmp_path / "file").read_bytes() == b"other"


def test_a_file_that_is_swept_before_it_is_locked_is_made_again(tmp_path, monkeypatch):
    flock, swept = replacing.fcntl.flock, []

    def late(file, operation):
        if not swept:
            swept.extend(tmp_path.glob(".updcomp-*"))
            os.unlink(swept[0])
        return flock(file, operation)

    monkeypatch.setattr(replacing.fcntl, "flock", late)
    files.write_bytes(tmp_path / "file", b"new")
    assert swept
    assert contents(tmp_path) == {"file": b"new"}


def test_a_folder_that_vanishes_is_an_error(tmp_path):
    (tmp_path / "folder").mkdir()

    def write(file):
        file.write(b"new")
        shutil.rmtree(tmp_path / "folder")

    with pytest.raises(errors.FileError, match="folder/file: cannot write: No such file or directory"):
        files.replace_file(tmp_path / "folder" / "file", write)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("suffix", files.SUFFIXES)
def test_names_of_255_bytes_are_written_and_longer_ones_refused(folder, suffix):
    for stem in ("n" * (255 - len(suffix)), "ä" * ((255 - len(suffix)) // 2)):
        done = run("apply", "old.npz", "update", "-o", f"{stem}{suffix}", cwd=folder)
        assert (done.returncode, done.stderr) == (0, "")
        assert is_new(folder / f"{stem}{suffix}")
    name = f"{'n' * (256 - len(suffix))}{suffix}"
    assert_fails(folder, "apply", "old.npz", "update", "-o", name, message="cannot write: File name too long")
    assert_fails(folder, "apply", name, "update", "-o", "new.npz", message=f"{name}: File name too long")
    assert_fails(folder, "apply", "old.npz", "n" * 256, "-o", "new.npz", message="File name too long")


def test_a_folder_that_may_be_written_but_not_read(folder):
    place = locked(folder, 0o300)
    done = run("apply", "old.npz", "update", "-o", "locked/new.npz", cwd=folder, start=unprivileged())
    assert (done.returncode, done.stderr) == (0, "")
    place.chmod(0o700)
    assert os.listdir(place) == ["new.npz"]
    assert is_new(place / "new.npz")


@pytest.mark.parametrize("mode", [0o500, 0o600, 0o000])
def test_a_folder_that_may_not_be_written(folder, mode):
    place = locked(folder, mode)
    message = "locked/new.npz: cannot write: Permission denied"
    assert_fails(folder, "apply", "old.npz", "update", "-o", "locked/new.npz", message=message, start=unprivileged())
    place.chmod(0o700)
    assert os.listdir(place) == []


def test_files_that_may_not_be_read(folder):
    for name in ("old.npz", "update"):
        (folder / name).chmod(0)
        done = run("apply", "old.npz", "update", "-o", "new.npz", cwd=folder, start=unprivileged())
        assert (done.returncode, done.stderr) == (2, f"updcomp: error: {name}: Permission denied\n")
        (folder / name).chmod(0o644)


def test_an_output_is_none_of_the_inputs_by_any_name(folder):
    (folder / "link.npz").symlink_to("old.npz")
    os.link(folder / "old.npz", folder / "hard.npz")
    for name in ("old.npz", "link.npz", "hard.npz", "./old.npz"):
        with pytest.raises(errors.FileError, match="expected another file than the input"):
            replacing.check_output(folder / name, folder / "update", folder / "old.npz")
    replacing.check_output(folder / "new.npz", folder / "old.npz", folder / "missing")
    replacing.check_output("-", "-")
