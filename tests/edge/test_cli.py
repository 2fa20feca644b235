import itertools
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.edge.running import after, assert_fails, contents, run
from tests.wire import fuzz, samples
from updcomp import edge
from updcomp.edge import __main__ as cli
from updcomp.edge import files
from updcomp.wire import apply, container, fingerprint

MODEL = {name: leaf for name, leaf in samples.model().items() if leaf.size}
PACKET = samples.packets()["dense"]
UPDATE = container.encode(PACKET, MODEL)


@pytest.fixture
def folder(tmp_path):
    files.write_model(tmp_path / "old.safetensors", MODEL, {"note": "kept"})
    files.write_model(tmp_path / "old.npz", MODEL)
    (tmp_path / "update").write_bytes(UPDATE)
    return tmp_path


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
    assert json.loads(done.stdout) == edge.inspect(UPDATE)
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
            fuzz.with_checksum(UPDATE[:4] + b"\xff" + UPDATE[5:-4]),
            "found 255; install a newer updcomp",
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
        (
            ("apply", "update", "update", "-o", "new.npz"),
            "update: expected a model file ending in .safetensors or .npz",
        ),
        (("apply", "folder.npz", "update", "-o", "new.npz"), "folder.npz: expected a file, found a folder"),
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
        file.write(b"updc")
        file.truncate(1 << 30)
    limited = after("import resource; resource.setrlimit(resource.RLIMIT_AS, (1 << 30, 1 << 30))")
    done = run("inspect", "large", cwd=folder, start=limited)
    (folder / "large").unlink()
    assert done.returncode == 2
    assert done.stderr == "updcomp: error: large: the file does not fit into memory\n"


@pytest.mark.parametrize("suffix", files.SUFFIXES)
def test_a_full_disk_leaves_nothing(folder, suffix):
    """A limit on the size of files fails a write half-way, as a full disk does."""
    limited = after("import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))")
    arguments = ("apply", "old.npz", "update", "-o", f"new{suffix}")
    assert_fails(folder, *arguments, message=f"new{suffix}: cannot write: File too large", start=limited)


@pytest.mark.parametrize(
    "arguments", [(), ("apply",), ("apply", "old.npz", "update"), ("mend",), ("inspect", "u", "--loud")]
)
def test_wrong_usage_has_exit_status_2(folder, arguments):
    done = run(*arguments, cwd=folder)
    assert done.returncode == 2
    assert done.stderr.startswith("usage: python -m updcomp.edge")


@pytest.mark.parametrize("factor", ["0", "-1", "nan", "much", ""])
def test_a_budget_is_a_positive_factor(folder, factor):
    done = run("apply", "old.npz", "update", "-o", "new.npz", f"--budget={factor}", cwd=folder)
    assert done.returncode == 2
    assert done.stderr.endswith(f"argument --budget: expected a positive number or inf, found {factor!r}\n")


def test_an_update_beyond_the_budget_is_refused(folder):
    for command in (("apply", "old.npz", "update", "-o", "new.npz"), ("verify", "old.npz", "update")):
        assert_fails(folder, *command, "--budget=1e-9", message="update: ")
        assert run(*command, "--budget=inf", cwd=folder).returncode == 0
        assert run(*command, "--budget", "2.5", cwd=folder).returncode == 0


@pytest.mark.parametrize("suffix", files.SUFFIXES)
def test_an_update_may_come_from_standard_input_and_the_model_go_to_standard_output(folder, suffix):
    assert run("apply", f"old{suffix}", "update", "-o", f"new{suffix}", cwd=folder).returncode == 0
    new, before = (folder / f"new{suffix}").read_bytes(), contents(folder)
    with (folder / "update").open("rb") as update:
        done = run("apply", f"old{suffix}", "-", "-o", "-", cwd=folder, text=False, stdin=update)
    assert (done.returncode, done.stdout, done.stderr) == (0, new, b"")
    done = run("apply", f"old{suffix}", "-", "-o", "-", cwd=folder, text=False, input=UPDATE)
    assert (done.returncode, done.stdout, done.stderr) == (0, new, b"")
    assert contents(folder) == before
    done = run("verify", f"old{suffix}", "-", cwd=folder, text=False, input=UPDATE)
    assert (done.returncode, done.stdout) == (0, f"standard input applies to old{suffix}\n".encode())
    done = run("inspect", "-", cwd=folder, text=False, input=UPDATE)
    assert json.loads(done.stdout) == edge.inspect(UPDATE)


@pytest.mark.parametrize("update", [b"", b"junk", UPDATE[:-1], UPDATE[:50] + b"?" + UPDATE[51:]])
def test_nothing_goes_to_standard_output_before_it_is_verified(folder, update):
    done = run("apply", "old.npz", "-", "-o", "-", cwd=folder, text=False, input=update)
    assert (done.returncode, done.stdout) == (2, b"")
    assert done.stderr.startswith(b"updcomp: error: standard input: ")
    assert done.stderr.count(b"\n") == 1


def test_a_result_that_is_not_as_promised_goes_nowhere(folder):
    """All leaves have been made when it shows."""
    wrong = fuzz.with_checksum(UPDATE[:22] + bytes(16) + UPDATE[38:-4])
    (folder / "wrong").write_bytes(wrong)
    assert_fails(folder, "apply", "old.npz", "wrong", "-o", "new.npz", message="wrong: result: expected the model 0000")
    assert_fails(folder, "verify", "old.npz", "wrong", message="wrong: result: expected the model 0000")
    done = run("apply", "old.npz", "-", "-o", "-", cwd=folder, text=False, input=wrong)
    assert (done.returncode, done.stdout) == (2, b"")


def test_a_file_of_the_name_of_standard_output(folder):
    assert run("apply", "old.npz", "update", "-o", "./-.npz", cwd=folder).returncode == 0
    (folder / "-").write_bytes(UPDATE)
    assert run("verify", "old.npz", "./-", cwd=folder).stdout == "./- applies to old.npz\n"


LABELS = {"note": "kept"}, {"format": "pt", "labels": "a,b"}


@pytest.fixture
def labelled(folder):
    (folder / "update").write_bytes(container.encode(PACKET, MODEL, metadata=LABELS))
    return folder


def test_metadata_travel(labelled):
    assert run("verify", "old.safetensors", "update", cwd=labelled).stderr == ""
    done = run("apply", "old.safetensors", "update", "-o", "new.safetensors", cwd=labelled)
    assert (done.returncode, done.stderr) == (0, "")
    assert files.read_model(labelled / "new.safetensors").metadata == LABELS[1]


@pytest.mark.parametrize("other", [{}, {"note": "other"}, {"note": "kept", "labels": "b,a"}])
def test_other_metadata_are_another_base(labelled, other):
    files.write_model(labelled / "other.safetensors", MODEL, other)
    assert_fails(labelled, "verify", "other.safetensors", "update", message="update: metadata: expected")
    arguments = ("apply", "other.safetensors", "update", "-o", "new.safetensors")
    assert_fails(labelled, *arguments, message="update: metadata: expected")


def test_metadata_that_a_format_does_not_keep_are_said_to_be_lost(labelled):
    lost = "updcomp: note: the new model's metadata are left out; only .safetensors files keep them\n"
    for old, new, kept in ((".npz", ".npz", {}), (".npz", ".safetensors", {}), (".safetensors", ".npz", {})):
        done = run("apply", f"old{old}", "update", "-o", f"new{new}", cwd=labelled)
        assert (done.returncode, done.stderr) == (0, lost)
        assert files.read_model(labelled / f"new{new}").metadata == kept
    done = run("verify", "old.npz", "update", cwd=labelled)
    assert done.stderr == "updcomp: note: metadata are not checked; only .safetensors files keep them\n"


def test_an_update_without_metadata_keeps_those_of_the_file(folder):
    assert run("apply", "old.safetensors", "update", "-o", "new.safetensors", cwd=folder).returncode == 0
    assert files.read_model(folder / "new.safetensors").metadata == {"note": "kept"}


@pytest.mark.parametrize("suffix", files.SUFFIXES)
def test_errors_about_files_do_not_name_the_update(folder, suffix):
    files.write_model(folder / f"bad{suffix}", MODEL | {"seen": np.full(9, 7, np.uint8).view(bool)})
    arguments = ("apply", f"bad{suffix}", "update", "-o", "new.npz")
    assert_fails(folder, *arguments, message=f"updcomp: error: bad{suffix}: leaf 'seen': expected bytes of 0 and 1")


def test_a_leaf_name_of_3_mb_makes_no_line_of_3_mb(folder):
    files.write_model(folder / "long.safetensors", {"x" * 3_000_000: np.uint8([7]).view(bool)})
    done = run("verify", "long.safetensors", "update", cwd=folder)
    assert done.returncode == 2
    assert len(done.stderr) < 5000
