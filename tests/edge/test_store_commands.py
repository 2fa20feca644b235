import io
import json
import sys

import pytest

from tests.edge import store_kit as kit
from updcomp.edge import __main__ as cli
from updcomp.edge import files, store, versions


@pytest.fixture
def run(tmp_path, capfd, monkeypatch):
    """Runs a command in a folder with a model and updates; (status, output, what was said)."""
    monkeypatch.chdir(tmp_path)
    files.write_model("model.safetensors", kit.model(0))
    for seed in range(3):
        (tmp_path / f"{seed}.upd").write_bytes(kit.update(seed, seed + 1))

    def run(*arguments):
        status = cli.main(arguments)
        return status, *capfd.readouterr()

    return run


def test_a_store_is_made_updated_rolled_back_and_verified(run, tmp_path, monkeypatch):
    assert run("init", "store", "model.safetensors") == (0, "store: version 1 is current\n", "")
    assert run("install", "store", "0.upd", "--keep=2") == (0, "store: version 2 is current\n", "")
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO((tmp_path / "1.upd").read_bytes())))
    assert run("install", "store", "-") == (0, "store: version 3 is current\n", "")
    assert run("rollback", "store") == (0, "store: version 2 is current\n", "")
    status, printed, said = run("status", "store")
    assert (status, said) == (0, "")
    assert json.loads(printed) == store.Store("store").status() | {"free_bytes": json.loads(printed)["free_bytes"]}
    status, printed, said = run("verify-store", "store")
    assert (status, said) == (0, "")
    assert json.loads(printed) == {"version": 2, "whole": [1, 2], "healed": [], "lost": [], "updates_lost": []}
    assert kit.seed_of(store.Store("store").current()) == 1


def test_errors_are_one_line_and_name_the_update(run):
    assert run("init", "store", "model.safetensors")[0] == 0
    run("install", "store", "0.upd")
    assert run("install", "store", "0.upd")[:2] == (0, "store: version 2 is current\n")
    assert run("path", "store")[:2] == (0, "store/versions/00000002.safetensors\n")
    run("rollback", "store")
    status, printed, said = run("install", "store", "0.upd")
    assert (status, printed) == (2, "")
    expected = "updcomp: error: 0.upd: update: expected one that is new to the store, found that it was rolled back"
    assert said.startswith(expected)
    assert said.count("\n") == 1
    assert "--again" in said
    assert run("install", "store", "0.upd", "--again")[:2] == (0, "store: version 3 is current\n")
    for arguments, message in (
        (("install", "store", "model.safetensors"), "model.safetensors: not an update"),
        (("install", "store", "nowhere.upd"), "nowhere.upd: No such file"),
        (("install", "nowhere", "0.upd"), "nowhere: expected a store"),
        (("install", "store", "2.upd"), "2.upd: base model"),
        (("install", "store", "1.upd", "--keep=0"), "keep: expected 1 to 256 versions, found 0"),
        (("install", "store", "1.upd", "--check", ""), "check: expected a function, or a command"),
        (("init", "store", "model.safetensors"), "store: expected no store"),
        (("rollback", "model.safetensors"), "model.safetensors: expected a store"),
    ):
        status, printed, said = run(*arguments)
        assert (status, printed) == (2, "")
        assert message in said
        assert said.count("\n") == 1


def test_a_trial_is_a_command_line(run):
    run("init", "store", "model.safetensors")
    command = """sh -c 'echo checking; test "$(basename "$0")" = 00000002.safetensors'"""
    status, printed, said = run("install", "store", "0.upd", "--check", command)
    assert (status, printed, said) == (0, "store: version 2 is current\n", "checking\n")
    status, printed, said = run("install", "store", "1.upd", "--check", "sh -c 'sleep 60'", "--timeout=0.05")
    assert (status, printed) == (2, "")
    assert said == "updcomp: error: 1.upd: version 3: check: expected it to end within 0.05 s; version 2 stays\n"
    with pytest.raises(SystemExit):
        run("install", "store", "1.upd", "--check", "sh -c 'unbalanced")


def test_what_is_lost_is_said(run, caplog):
    run("init", "store", "model.safetensors")
    run("install", "store", "0.upd")
    folder = store.Store("store").path().parent.parent
    versions.path(folder, 2).write_bytes(b"")
    versions.path(folder, 2, "upd").unlink()
    status, printed, said = run("verify-store", "store")
    assert status == 2
    assert json.loads(printed)["lost"] == [2]
    assert "damaged beyond healing: versions [2]" in said
    assert "version 1 is current and whole" in said
