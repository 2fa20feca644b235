"""`python -m updcomp` on .safetensors, .npz and Orbax folders."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

import updcomp
from updcomp.__main__ import main
from updcomp.edge import __main__ as edge
from updcomp.training.checkpoints import load_model, save_model
from updcomp.wire import container, packet

OLD = {"layer/bias": np.zeros(3, np.float32), "layer/kernel": np.linspace(-1, 1, 12, dtype=np.float32).reshape(4, 3)}
NEW = {"layer/bias": np.float32([0, 0.5, 0]), "layer/kernel": OLD["layer/kernel"] * np.float32(1.25)}


def nested(model):
    return {"layer": {name.split("/")[1]: leaf for name, leaf in model.items()}}


def write(model, path):
    if path.suffix == ".safetensors":
        save_file(model, path)
    elif path.suffix == ".npz":
        np.savez(path, **model)
    else:
        save_model(path, nested(model))
    return path


def read(path):
    if path.suffix == ".safetensors":
        return load_file(path)
    if path.suffix == ".npz":
        with np.load(path) as file:
            return dict(file)
    return {f"layer/{name}": leaf for name, leaf in load_model(path)["layer"].items()}


@pytest.mark.parametrize("suffix", [".safetensors", ".npz", ""])
def test_a_model_is_updated_in_every_format(suffix, tmp_path, capsys):
    old, new = write(OLD, tmp_path / f"old{suffix}"), write(NEW, tmp_path / f"new{suffix}")
    update, out = tmp_path / "update", tmp_path / f"out{suffix}"
    assert main(["diff", str(old), str(new), "-o", str(update)]) == 0
    assert f"{update.stat().st_size:,} bytes" in capsys.readouterr().out
    assert main(["apply", str(old), str(update), "-o", str(out)]) == 0
    found = read(out)
    assert found.keys() == NEW.keys()
    assert all(found[name].tobytes() == NEW[name].tobytes() for name in NEW)
    assert main(["inspect", str(update)]) == 0
    assert '"blocks"' in capsys.readouterr().out


def test_the_device_applies_what_the_server_made_from_other_formats(tmp_path):
    update, out = tmp_path / "update", tmp_path / "out.npz"
    old, new = write(OLD, tmp_path / "old"), write(NEW, tmp_path / "new.safetensors")
    assert main(["diff", str(old), str(new), "-o", str(update), "--step", "0.001"]) == 0
    held = write(OLD, tmp_path / "held.npz")
    assert edge.main(["apply", str(held), str(update), "-o", str(out)]) == 0
    for name, leaf in read(out).items():
        np.testing.assert_allclose(leaf, NEW[name], atol=6e-4)


def run(*arguments):
    """Exit status 0 is expected."""
    assert main(list(map(str, arguments))) == 0


def assert_holds(path, model):
    found = read(path)
    assert found.keys() == model.keys()
    assert all(found[name].tobytes() == model[name].tobytes() for name in model)


@pytest.mark.parametrize("suffix", [".safetensors", ".npz"])
def test_an_orbax_folder_becomes_a_file_where_the_output_is_named_as_one(suffix, tmp_path, capsys):
    old, new = write(OLD, tmp_path / "old"), write(NEW, tmp_path / "new")
    run("diff", old, new, "-o", tmp_path / "update")
    run("apply", old, tmp_path / "update", "-o", tmp_path / f"out{suffix}")
    assert (tmp_path / f"out{suffix}").is_file()
    assert_holds(tmp_path / f"out{suffix}", NEW)
    assert capsys.readouterr().err == ""
    assert main(["apply", str(old), str(tmp_path / "update"), "-o", "-"]) == 2
    assert "an Orbax model is no file" in capsys.readouterr().err


def labelled(path, model, labels):
    save_file(model, path, metadata=labels)
    return path


def labels_of(path):
    with safe_open(path, "numpy") as file:
        return file.metadata()


LABELS = {"format": "pt", "labels": "a,b", "note": "old"}, {"format": "pt", "labels": "b,a", "of": "new"}


def test_metadata_travel_and_are_checked(tmp_path, capsys):
    old = labelled(tmp_path / "old.safetensors", OLD, LABELS[0])
    new = labelled(tmp_path / "new.safetensors", NEW, LABELS[1])
    update, out = tmp_path / "update", tmp_path / "out.safetensors"
    run("diff", old, new, "-o", update)
    assert capsys.readouterr().out.endswith("update: metadata: sets labels, of; removes note\n")
    run("apply", old, update, "-o", out)
    assert (labels_of(out), capsys.readouterr().err) == (LABELS[1], "")
    other = labelled(tmp_path / "other.safetensors", OLD, LABELS[0] | {"labels": "c"})
    assert main(["apply", str(other), str(update), "-o", str(out)]) == 2
    assert f"{update}: metadata: expected the texts that the update was made from" in capsys.readouterr().err


def test_what_is_said_of_metadata(tmp_path, capsys):
    old = labelled(tmp_path / "old.safetensors", OLD, LABELS[0])
    same = labelled(tmp_path / "same.safetensors", NEW, LABELS[0])
    run("diff", old, same, "-o", tmp_path / "update")
    assert "metadata: the same in OLD and NEW\n" in capsys.readouterr().out
    plain, folder = write(NEW, tmp_path / "new.npz"), write(OLD, tmp_path / "folder")
    for arguments in ((old, plain), (folder, same)):
        run("diff", *arguments, "-o", tmp_path / "update")
        assert "metadata: none travels; it does between .safetensors files\n" in capsys.readouterr().out
    # What says nothing of metadata keeps them.
    run("apply", old, tmp_path / "update", "-o", tmp_path / "out.safetensors")
    assert labels_of(tmp_path / "out.safetensors") == LABELS[0]


def test_metadata_that_a_folder_does_not_keep_are_said_to_be_lost(tmp_path, capsys):
    old = labelled(tmp_path / "old.safetensors", OLD, LABELS[0])
    new = labelled(tmp_path / "new.safetensors", NEW, LABELS[1])
    folder = write(OLD, tmp_path / "folder")
    run("diff", old, new, "-o", tmp_path / "update")
    for name in ("out", "out.npz", "out.safetensors"):
        run("apply", folder, tmp_path / "update", "-o", tmp_path / name)
        assert "note: the new model's metadata are left out" in capsys.readouterr().err
        assert_holds(tmp_path / name, NEW)
    unlabelled = write(OLD, tmp_path / "unlabelled.safetensors")
    run("diff", unlabelled, new, "-o", tmp_path / "update")
    run("apply", folder, tmp_path / "update", "-o", tmp_path / "labelled.safetensors")
    assert labels_of(tmp_path / "labelled.safetensors") == LABELS[1]


def test_metadata_are_part_of_the_bytes_that_are_allowed(tmp_path, capsys):
    rng = np.random.default_rng(0)
    model = {"w": rng.normal(size=(64, 64)).astype(np.float32)}
    noise = {"labels": rng.bytes(300).hex()}
    old = labelled(tmp_path / "old.safetensors", model, {"labels": "none"})
    new = labelled(
        tmp_path / "new.safetensors",
        {"w": model["w"] + np.float32(0.01) * rng.normal(size=(64, 64)).astype("f4")},
        noise,
    )
    run("diff", old, new, "-o", tmp_path / "update", "--max-bytes", 1500)
    assert 1200 < (tmp_path / "update").stat().st_size <= 1500
    run("apply", old, tmp_path / "update", "-o", tmp_path / "out.safetensors")
    assert labels_of(tmp_path / "out.safetensors") == noise
    assert main(["diff", str(old), str(new), "-o", str(tmp_path / "update"), "--max-bytes", "300"]) == 2
    assert "the metadata take" in capsys.readouterr().err


def test_an_update_and_a_model_may_go_to_standard_output(tmp_path, capfdbinary, monkeypatch):
    old, new = write(OLD, tmp_path / "old.safetensors"), write(NEW, tmp_path / "new.safetensors")
    run("diff", old, new, "-o", tmp_path / "update")
    capfdbinary.readouterr()
    run("diff", old, new, "-o", "-")
    done = capfdbinary.readouterr()
    assert done.out == (tmp_path / "update").read_bytes()
    assert done.err.startswith(b"standard output: ")
    run("apply", old, tmp_path / "update", "-o", "-")
    (tmp_path / "out.safetensors").write_bytes(capfdbinary.readouterr().out)
    assert_holds(tmp_path / "out.safetensors", NEW)
    with (tmp_path / "update").open() as file:
        monkeypatch.setattr("sys.stdin", file)
        run("apply", old, "-", "-o", tmp_path / "again.safetensors")
    assert (tmp_path / "again.safetensors").read_bytes() == (tmp_path / "out.safetensors").read_bytes()


def test_a_signal_leaves_no_part_of_an_orbax_folder(tmp_path):
    large = {"layer/kernel": np.zeros((1 << 23,), np.float32)}
    write(large, tmp_path / "old")
    (tmp_path / "update").write_bytes(container.encode(packet.Packet({}), large))
    command = [sys.executable, "-m", "updcomp", "apply", "old", "update", "-o", "out"]
    environment = {**os.environ, "PYTHONPATH": str(Path(updcomp.__file__).parents[1])}
    with subprocess.Popen(command, cwd=tmp_path, env=environment, stderr=subprocess.PIPE, text=True) as process:
        while process.poll() is None and not list(tmp_path.glob("out*")):
            pass
        process.terminate()
        _, error = process.communicate()
    assert (process.returncode, error) in [(143, "updcomp: ended by SIGTERM\n"), (0, "")]
    assert {path.name for path in tmp_path.iterdir()} == {"old", "update", "out"}
    assert_holds(tmp_path / "out", large)


def test_a_budget_is_for_both_sides(tmp_path, capsys):
    old, new = write(OLD, tmp_path / "old.npz"), write(NEW, tmp_path / "new.npz")
    folder = write(OLD, tmp_path / "folder")
    run("diff", old, new, "-o", tmp_path / "update", "--budget=inf")
    for held in (old, folder):
        assert (
            main(["apply", str(held), str(tmp_path / "update"), "-o", str(tmp_path / "out.npz"), "--budget=1e-9"]) == 2
        )
        assert "update: cost: " in capsys.readouterr().err
        run("apply", held, tmp_path / "update", "-o", tmp_path / "out.npz", "--budget=inf")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["diff", "{missing}", "{new}", "-o", "{out}"], "missing.npz"),
        (["diff", "{old}", "{new}", "-o", "{out}", "--step", "0"], "step: expected a positive finite number"),
        (["diff", "{old}", "{new}", "-o", "{out}", "--max-bytes", "3"], "max_bytes: expected at least"),
        (
            ["diff", "{old}", "{other}", "-o", "{out}"],
            "found 'layer/bias', 'layer/kernel' in the old one only; 'other' in the new one only; common_only",
        ),
        (["diff", "{empty}", "{new}", "-o", "{out}"], "Orbax"),
        (["apply", "{old}", "{old}", "-o", "{out}"], "update"),
        (["apply", "{old}", "{missing}", "-o", "{out}"], "missing.npz"),
        (["apply", "{old}", "{new}", "-o", "{old}"], "never changed"),
        (["apply", "{old}", "{missing}", "-o", "{empty}"], "expected a file to write, found a folder"),
        (["apply", "{old}", "{missing}", "-o", "{folder}"], "expected a model file"),
        (["diff", "{old}", "{new}", "-o", "{old}"], "never changed"),
        (["diff", "{old}", "{new}", "-o", "{out}", "--step", "inf"], "step: expected a positive finite number"),
        (["inspect", "{new}"], "update"),
    ],
    ids=lambda value: None if isinstance(value, str) else " ".join(value),
)
def test_bad_input_is_one_line_and_exit_status_2(arguments, message, tmp_path, capsys):
    names = {"old": "old.npz", "new": "new.npz", "other": "other.npz"}
    paths = {name: tmp_path / file for name, file in names.items()}
    write(OLD, paths["old"]), write(NEW, paths["new"]), write({"other": np.ones(1)}, paths["other"])
    paths |= {"missing": tmp_path / "missing.npz", "empty": tmp_path / "empty", "out": tmp_path / "out.npz"}
    paths |= {"folder": tmp_path / "folder"}
    paths["empty"].mkdir()
    before = {path: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()}
    assert main([argument.format(**paths) for argument in arguments]) == 2
    error = capsys.readouterr().err
    assert error.startswith("updcomp: error: ")
    assert error.count("\n") == 1
    assert message in error
    assert {path: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()} == before
