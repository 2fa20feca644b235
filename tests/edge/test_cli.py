import itertools
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.wire import fuzz, samples
from updcomp.edge import __main__ as cli
from updcomp.edge import files
from updcomp.wire import apply, container, fingerprint, header

MODEL = {name: leaf for name, leaf in samples.model().items() if leaf.size}
PACKET = samples.packets()["dense"]
UPDATE = container.encode(PACKET, MODEL)


@pytest.fixture
def folder(tmp_path):
    files.write_model(tmp_path / "old.safetensors", MODEL, {"note": "kept"})
    files.write_model(tmp_path / "old.npz", MODEL)
    (tmp_path / "update").write_bytes(UPDATE)
    return tmp_path


def run(*arguments, cwd, start=("-m", "updcomp.edge")):
    """Runs the command line in a process of its own."""
    command = [sys.executable, "-W", "error", *start, *map(str, arguments)]
    root = str(Path(cli.__file__).parents[2])
    environment = {**os.environ, "PYTHONPATH": root}
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, check=False)


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def assert_fails(folder, *arguments, message, **options):
    """One line, exit status 2, every file as it was, no new one."""
    before = contents(folder)
    done = run(*arguments, cwd=folder, **options)
    assert done.returncode == 2, done
    assert done.stdout == ""
    assert done.stderr.startswith("updcomp: error: ")
    assert done.stderr.count("\n") == 1
    assert message in done.stderr
    assert contents(folder) == before


@pytest.mark.parametrize("suffix", files.SUFFIXES)
def test_apply_verify_and_inspect(folder, suffix):
    done = run("apply", f"old{suffix}", "update", "-o", "new.safetensors", cwd=folder)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    new = files.read_model(folder / "new.safetensors")
    assert fingerprint.of(new.model) == fingerprint.of(apply.apply(PACKET, MODEL))
    assert new.metadata == ({"note": "kept"} if suffix == ".safetensors" else {})
    done = run("verify", f"old{suffix}", "update", cwd=folder)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == f"update applies to old{suffix}\n"
    done = run("inspect", "update", cwd=folder)
    assert json.loads(done.stdout) == container.inspect(UPDATE)
    assert sorted(path.name for path in folder.iterdir()) == ["new.safetensors", "old.npz", "old.safetensors", "update"]


def test_a_process_that_imports_the_edge_loads_numpy_alone(folder):
    code = (
        "import sys; from updcomp import edge; "
        "edge.apply(open('update', 'rb').read(), edge.read_model('old.npz').model); "
        "print(sorted({'jax', 'jaxlib', 'flax', 'optax', 'scipy', 'ml_dtypes', 'safetensors'} & set(sys.modules)))"
    )
    root = str(Path(cli.__file__).parents[2])
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=folder, env={**os.environ, "PYTHONPATH": root}, capture_output=True, text=True
    )
    assert done.stdout == "[]\n", done.stderr


def one_bit(model):
    flipped = model["conv"].copy()
    flipped.view(np.uint16)[0, 0, 0, 0] ^= 1
    return {**model, "conv": flipped}


@pytest.mark.parametrize(
    "wrong",
    [
        pytest.param({"other": np.zeros(3, np.float32)}, id="another model"),
        pytest.param(one_bit(MODEL), id="one bit changed"),
        pytest.param({name.replace("conv", "convolution"): leaf for name, leaf in MODEL.items()}, id="renamed leaf"),
        pytest.param({**MODEL, "conv": MODEL["conv"].reshape(6, 12)}, id="another shape"),
        pytest.param({**MODEL, "conv": MODEL["conv"].view(np.int16)}, id="another dtype"),
    ],
)
def test_a_wrong_base(folder, wrong):
    files.write_model(folder / "wrong.safetensors", wrong)
    message = f"update: base model: expected the one with fingerprint {fingerprint.of(MODEL).hex()}, found "
    assert_fails(folder, "apply", "wrong.safetensors", "update", "-o", "new.safetensors", message=message)
    assert_fails(folder, "verify", "wrong.safetensors", "update", message=message)


@pytest.mark.parametrize(
    ("update", "message"),
    [
        pytest.param(b"", "update: not an update: expected it to begin with b'updc', found b''", id="empty"),
        pytest.param(UPDATE[:30], "checksum: the 30 bytes are damaged or truncated", id="truncated"),
        pytest.param(UPDATE[:-20] + b"?" + UPDATE[-19:], "are damaged or truncated; fetch them again", id="bit flips"),
        pytest.param(
            fuzz.with_checksum(UPDATE[:4] + bytes([header.VERSION + 1]) + UPDATE[5:-4]),
            "format version: expected 1 to 2, found 3; install a newer updcomp",
            id="future version",
        ),
        pytest.param(
            fuzz.with_checksum(UPDATE[:39] + b"\xff" * 4 + b"\x0f" + UPDATE[40:-4]), "blocks", id="absurd size"
        ),
    ],
)
def test_a_damaged_update(folder, update, message):
    (folder / "bad").write_bytes(update)
    assert_fails(folder, "apply", "old.npz", "bad", "-o", "new.npz", message=message.replace("update: not", "bad: not"))
    assert_fails(folder, "inspect", "bad", message=message.replace("update: not", "bad: not"))


def test_every_truncation_and_flipped_bit_on_the_command_line(folder, capsys):
    """The same entry point, in this process: a new one for each would take minutes."""
    mutations = [*fuzz.truncations(UPDATE), *itertools.islice(fuzz.bit_flips(UPDATE), 8 * len(UPDATE))]
    before = contents(folder)
    for mutated in mutations[::7]:  # no divisor of 8: every bit of a byte has its turn
        (folder / "update").write_bytes(mutated)
        status = cli.main(["apply", str(folder / "old.npz"), str(folder / "update"), "-o", str(folder / "new.npz")])
        captured = capsys.readouterr()
        assert status == 2
        assert captured.err.startswith("updcomp: error: ")
        assert captured.err.count("\n") == 1
        assert contents(folder) == {**before, "update": mutated}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("apply", ".", "update", "-o", "new.npz"), ".: expected a model file ending in .safetensors or .npz"),
        (("apply", "folder.npz", "update", "-o", "new.npz"), "folder.npz: Is a directory"),
        (("apply", "old.npz", "folder.npz", "-o", "new.npz"), "folder.npz: expected a file"),
        (("apply", "old.npz", "update", "-o", "folder.npz"), "folder.npz: expected a file to write, found a folder"),
        (("apply", "old.npz", "update", "-o", "."), ".: expected a file to write, found a folder"),
        (("apply", "missing.npz", "update", "-o", "new.npz"), "missing.npz: No such file or directory"),
        (("apply", "old.npz", "missing", "-o", "new.npz"), "missing: No such file or directory"),
        (("apply", "old.npz", "update", "-o", "new.bin"), "new.bin: expected a model file ending in"),
        (("apply", "old.npz", "update", "-o", "nowhere/new.npz"), "new.npz: cannot write: No such file or directory"),
        (("apply", "old.npz", "update", "-o", "update/new.npz"), "update/new.npz: cannot write: Not a directory"),
        (("apply", "old.npz", "update", "-o", "/proc/new.npz"), "/proc/new.npz: cannot write: "),
        (("apply", "old.npz", "update", "-o", "old.npz"), "old.npz: expected another file than the input"),
        (("apply", "old.npz", "update", "-o", "./folder.npz/../old.npz"), "expected another file than the input"),
        (("apply", "update", "update", "-o", "new.npz"), "update: expected a model file"),
        (("verify", "junk.npz", "update"), "junk.npz: not a model file: File is not a zip file"),
        (("inspect", "old.npz"), "old.npz: not an update"),
        (("inspect", "."), ".: expected a file"),
    ],
)
def test_wrong_paths(folder, arguments, message):
    (folder / "folder.npz").mkdir()
    (folder / "junk.npz").write_bytes(b"junk")
    assert_fails(folder, *arguments, message=message)


def test_a_device_in_place_of_an_update(folder):
    assert_fails(folder, "apply", "old.npz", "/dev/zero", "-o", "new.npz", message="expected a file")


def test_an_update_that_does_not_fit_into_memory(folder):
    with (folder / "large").open("wb") as file:
        file.truncate(20 << 30)
    limited = "import resource, runpy; resource.setrlimit(resource.RLIMIT_AS, (4 << 30, 4 << 30)); "
    limited += "runpy.run_module('updcomp.edge', run_name='__main__', alter_sys=True)"
    done = run("inspect", "large", cwd=folder, start=("-c", limited))
    (folder / "large").unlink()
    assert done.returncode == 2
    assert done.stderr == "updcomp: error: large: the file does not fit into memory\n"


@pytest.mark.parametrize("suffix", files.SUFFIXES)
def test_a_full_disk_leaves_nothing(folder, suffix):
    """A limit on the size of files fails a write half-way, as a full disk does."""
    limited = "import resource, runpy; resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000)); "
    limited += "runpy.run_module('updcomp.edge', run_name='__main__', alter_sys=True)"
    arguments = ("apply", "old.npz", "update", "-o", f"new{suffix}")
    assert_fails(folder, *arguments, message=f"new{suffix}: cannot write: File too large", start=("-c", limited))


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_read_only_folder(folder):
    (folder / "locked").mkdir(mode=0o500)
    assert_fails(
        folder, "apply", "old.npz", "update", "-o", "locked/new.npz", message="cannot write: Permission denied"
    )


@pytest.mark.parametrize(
    "arguments", [(), ("apply",), ("apply", "old.npz", "update"), ("mend",), ("inspect", "u", "--loud")]
)
def test_wrong_usage_has_exit_status_2(folder, arguments):
    done = run(*arguments, cwd=folder)
    assert done.returncode == 2
    assert done.stderr.startswith("usage: python -m updcomp.edge")
