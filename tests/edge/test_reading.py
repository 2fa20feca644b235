import io
import os
import socket
import sys

import numpy as np
import pytest

from tests.edge.running import after, peak, run
from updcomp.edge import files
from updcomp.wire import container, costs, dtypes, errors, packet

SPECS = dtypes.specs({"w": np.zeros(3, np.float32)})
MOST = costs.largest_update(SPECS)


@pytest.mark.parametrize("suffix", files.SUFFIXES)
@pytest.mark.parametrize("place", ["old", "update", "new"])
def test_a_fifo_is_refused_and_nobody_waits(tmp_path, suffix, place):
    model = {"w": np.zeros(3, np.float32)}
    files.write_model(tmp_path / f"old{suffix}", model)
    (tmp_path / "update").write_bytes(container.encode(packet.Packet({}), model))
    os.mkfifo(tmp_path / f"fifo{suffix}")
    paths = {"old": f"old{suffix}", "update": "update", "new": f"new{suffix}", place: f"fifo{suffix}"}
    done = run("apply", paths["old"], paths["update"], "-o", paths["new"], cwd=tmp_path)
    wanted = "a file to write" if place == "new" else "a file"
    assert (done.returncode, done.stderr) == (2, f"updcomp: error: fifo{suffix}: expected {wanted}, found a FIFO\n")
    assert not (tmp_path / f"new{suffix}").exists()


def test_a_file_that_becomes_a_fifo_before_it_is_opened_is_refused(tmp_path):
    (tmp_path / "update").write_bytes(b"updc")
    os.mkfifo(tmp_path / "fifo")
    late = after("import os; stat = os.stat; os.stat = lambda path, **_: stat('update' if path == 'fifo' else path)")
    done = run("inspect", "fifo", cwd=tmp_path, start=late)
    assert (done.returncode, done.stderr) == (2, "updcomp: error: fifo: expected a file, found a FIFO\n")


@pytest.mark.parametrize("read", [files.read_bytes, files.read_update, files.read_model])
def test_only_files_are_read(tmp_path, monkeypatch, read):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder.npz").mkdir()
    (tmp_path / "device.npz").symlink_to("/dev/zero")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("socket.npz")
        for kind in ("folder", "device", "socket"):
            with pytest.raises(errors.FileError, match=f"^{kind}.npz: expected a file, found a {kind}( without .*)?$"):
                read(f"{kind}.npz")


def test_links_to_files_are_followed(tmp_path):
    (tmp_path / "file").write_bytes(b"content")
    (tmp_path / "link").symlink_to("file")
    assert files.read_bytes(tmp_path / "link") == b"content"


def test_a_file_that_is_too_large_is_not_read(tmp_path):
    with (tmp_path / "large").open("wb") as file:
        file.truncate(4 << 30)

    def read():
        with pytest.raises(errors.FileError, match="large: expected at most 1,000 bytes, found 4,294,967,296"):
            files.read_bytes(tmp_path / "large", most=1000)

    assert peak(read) < 1 << 20
    (tmp_path / "right").write_bytes(bytes(1000))
    assert files.read_bytes(tmp_path / "right", most=1000) == bytes(1000)


@pytest.mark.parametrize(
    ("start", "specs", "message"),
    [
        (b"PK\3\4", None, r"not an update: expected it to begin with b'updc', found b'PK\\x03\\x04'"),
        (b"updc", None, "not an update: expected at most 1,073,741,824 bytes, found 4,294,967,296"),
        (b"updc", SPECS, f"not an update of this model: expected at most {MOST:,} bytes, found 4,294,967,296"),
    ],
)
def test_what_cannot_be_an_update_is_not_read(tmp_path, start, specs, message):
    with (tmp_path / "large").open("wb") as file:
        file.write(start)
        file.truncate(4 << 30)

    def read():
        with pytest.raises(errors.CorruptUpdateError, match=f"large: {message}"):
            files.read_update(tmp_path / "large", specs)

    assert peak(read) < 1 << 20


class Endless(io.RawIOBase):
    """Standard input that ends long after anybody should have left it."""

    def __init__(self, start):
        self.given, self.left = start, 64 << 20

    def readable(self):
        return True

    def readinto(self, buffer):
        buffer[: len(self.given)] = self.given
        self.given, self.left = b"", self.left - len(buffer)
        return len(buffer) if self.left > 0 else 0


@pytest.mark.parametrize(("start", "message"), [(b"", "begin with b'updc'"), (b"updc", f"at most {MOST - 6:,} bytes")])
def test_standard_input_that_never_ends_is_left(monkeypatch, start, message):
    class Input:
        buffer = io.BufferedReader(Endless(start))

    monkeypatch.setattr(sys, "stdin", Input)
    with pytest.raises(errors.CorruptUpdateError, match=f"standard input: .*{message}"):
        files.read_update("-", SPECS)


def test_standard_input_may_be_closed(monkeypatch):
    monkeypatch.setattr(sys, "stdin", None)
    with pytest.raises(errors.FileError, match="standard input: it is closed"):
        files.read_update("-")


def test_an_update_of_the_largest_size_is_read(tmp_path):
    for size in (4, 5, MOST):
        (tmp_path / "update").write_bytes(b"updc" + bytes(size - 4))
        assert len(files.read_update(tmp_path / "update", SPECS)) == size
    (tmp_path / "update").write_bytes(b"updc" + bytes(MOST - 3))
    with pytest.raises(errors.CorruptUpdateError, match=f"expected at most {MOST:,} bytes, found {MOST + 1:,}"):
        files.read_update(tmp_path / "update", SPECS)
