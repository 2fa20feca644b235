"""`python -m updcomp` on .safetensors, .npz and Orbax folders."""

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from updcomp.__main__ import main
from updcomp.edge import __main__ as edge
from updcomp.training.checkpoints import load_model, save_model

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


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["diff", "{missing}", "{new}", "-o", "{out}"], "missing.npz"),
        (["diff", "{old}", "{new}", "-o", "{out}", "--step", "0"], "--step: expected a positive number"),
        (["diff", "{old}", "{new}", "-o", "{out}", "--max-bytes", "3"], "max_bytes: expected at least"),
        (["diff", "{old}", "{other}", "-o", "{out}"], "'layer/bias': expected in both"),
        (["diff", "{empty}", "{new}", "-o", "{out}"], "Orbax"),
        (["apply", "{old}", "{old}", "-o", "{out}"], "update"),
        (["apply", "{old}", "{missing}", "-o", "{out}"], "missing.npz"),
        (["apply", "{old}", "{new}", "-o", "{old}"], "never changed"),
        (["apply", "{old}", "{missing}", "-o", "{empty}"], "expected a model file"),
        (["diff", "{old}", "{new}", "-o", "{old}"], "never changed"),
        (["diff", "{old}", "{new}", "-o", "{out}", "--step", "inf"], "--step: expected a positive number"),
        (["inspect", "{new}"], "update"),
    ],
    ids=lambda value: None if isinstance(value, str) else " ".join(value),
)
def test_bad_input_is_one_line_and_exit_status_2(arguments, message, tmp_path, capsys):
    names = {"old": "old.npz", "new": "new.npz", "other": "other.npz"}
    paths = {name: tmp_path / file for name, file in names.items()}
    write(OLD, paths["old"]), write(NEW, paths["new"]), write({"other": np.ones(1)}, paths["other"])
    paths |= {"missing": tmp_path / "missing.npz", "empty": tmp_path / "empty", "out": tmp_path / "out.npz"}
    paths["empty"].mkdir()
    before = {path: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()}
    assert main([argument.format(**paths) for argument in arguments]) == 2
    error = capsys.readouterr().err
    assert error.startswith("updcomp: error: ")
    assert error.count("\n") == 1
    assert message in error
    assert {path: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()} == before
