"""`python -m updcomp` on models of shards; squash; sizes; what is said while it works."""

import io
import itertools
import json
import sys
import threading
import types

import numpy as np
import pytest
import safetensors.numpy

import updcomp
from tests.edge.running import run as start
from tests.edge.test_shards import FIRST, HOMES, INDEX, NEW, OLD, SECOND, tree, write
from updcomp import __main__ as server
from updcomp.edge import __main__ as device
from updcomp.edge import command_line, files, opening, progress
from updcomp.training import checkpoints
from updcomp.wire import container, fingerprint, header

MODELS = OLD, NEW, NEW | {"b": OLD["b"] + np.int16(1)}
OTHER_HOMES = {"a": "x.safetensors", "b": "y.safetensors", "c": "z.safetensors"}


def run(*arguments, main=server.main):
    assert main(list(map(str, arguments))) == 0


def refused(capsys, *arguments):
    """The one line of an error."""
    assert server.main(list(map(str, arguments))) == 2
    output, error = capsys.readouterr()
    assert (output, error.count("\n")) == ("", 1)
    return error.removeprefix("updcomp: error: ")


def held(path):
    return fingerprint.of(files.read_model(path).model)


@pytest.mark.parametrize("homes", [HOMES, OTHER_HOMES], ids=["same shards", "other shards"])
def test_one_update_is_for_all_shards_and_keeps_the_files_of_the_old_model(homes, tmp_path, capsys):
    old, new, update = write(tmp_path / "old"), write(tmp_path / "new", NEW, homes, said={"other": 1}), tmp_path / "upd"
    run("diff", old, new / INDEX, "-o", update)
    run("apply", old, update, "-o", tmp_path / "out")
    assert held(tmp_path / "out") == fingerprint.of(NEW)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == sorted([FIRST, SECOND, INDEX])
    assert (tmp_path / "out" / INDEX).read_bytes() == (old / INDEX).read_bytes()
    run("inspect", update, old)
    assert '"a"' in capsys.readouterr().out
    run("apply", old, update, "-o", tmp_path / "again", main=device.main)
    assert tree(tmp_path / "again") == tree(tmp_path / "out")


def test_shards_files_and_orbax_folders_meet(tmp_path, capsys):
    texts = {home: {"format": "pt"} for home in (FIRST, SECOND)}
    old, one = write(tmp_path / "old", texts=texts), tmp_path / "old.safetensors"
    safetensors.numpy.save_file(OLD, one, metadata={"format": "pt"})
    new = write(tmp_path / "new", NEW, texts=texts)
    run("diff", one, new, "-o", tmp_path / "upd")
    assert "metadata: the same in OLD and NEW" in capsys.readouterr().out
    for path in (old, one):
        run("apply", path, tmp_path / "upd", "-o", tmp_path / "out.safetensors")
        assert held(tmp_path / "out.safetensors") == fingerprint.of(NEW)
    checkpoints.save_model(tmp_path / "orbax", NEW)
    run("diff", old, tmp_path / "orbax", "-o", tmp_path / "upd")
    assert "metadata: none travels" in capsys.readouterr().out
    run("apply", old, tmp_path / "upd", "-o", tmp_path / "out")
    assert held(tmp_path / "out") == fingerprint.of(NEW)


def test_files_need_numpy_alone_and_orbax_says_what_it_needs(tmp_path, capsys, monkeypatch):
    write(tmp_path / "old"), write(tmp_path / "new", NEW), (tmp_path / "orbax").mkdir()
    code = "import sys; sys.modules['jax'] = None; from updcomp.__main__ import main; sys.exit(main())"
    arguments = ("diff", "old", "new", "-o", "upd")
    assert start(*arguments, cwd=tmp_path, start=("-c", code)).returncode == 0
    monkeypatch.setitem(sys.modules, "updcomp.training.checkpoints", None)
    monkeypatch.delattr(updcomp.training, "checkpoints")
    error = refused(capsys, "diff", tmp_path / "old", tmp_path / "orbax", "-o", tmp_path / "upd")
    assert error == "an Orbax folder needs updcomp.training.checkpoints: install updcomp[server]\n"


def test_an_update_replaces_no_shard(tmp_path, capsys):
    old, new = write(tmp_path / "old"), write(tmp_path / "new", NEW)
    before = tree(tmp_path)
    for path in (old / FIRST, new / SECOND, old / INDEX):
        assert "expected another file than the input" in refused(capsys, "diff", old, new, "-o", path)
    (new / SECOND).unlink()
    assert f"{new / SECOND}: No such file or directory" in refused(capsys, "diff", old, new, "-o", tmp_path / "upd")
    assert tree(tmp_path) == {name: content for name, content in before.items() if name != f"new/{SECOND}"}


def test_both_models_are_read_leaf_by_leaf_and_once(tmp_path, monkeypatch):
    old, new = write(tmp_path / "old"), write(tmp_path / "new", NEW)
    read, get = [], opening._OpenShards.__getitem__
    monkeypatch.setattr(opening._OpenShards, "__getitem__", lambda model, name: read.append(name) or get(model, name))
    for options in ((), ("--step=0.1",)):
        run("diff", old, new, "-o", tmp_path / "upd", *options)
        assert read == ["a", "a", "b", "b", "c", "c"]
        read.clear()


def test_leaves_that_one_model_lacks_are_named_or_left_out(tmp_path, capsys):
    old = write(tmp_path / "old", {"a": OLD["a"], "gone": OLD["b"]}, {"a": FIRST, "gone": SECOND})
    new = write(tmp_path / "new", {"a": NEW["a"], "more": OLD["b"]}, {"a": FIRST, "more": SECOND})
    error = refused(capsys, "diff", old, new, "-o", tmp_path / "upd")
    assert "found 'gone' in the old one only; 'more' in the new one only; common_only=True (--common-only)" in error
    run("diff", old, new, "-o", tmp_path / "upd", "--common-only")
    told = capsys.readouterr().out
    assert "upd: keeps leaves that only OLD has: 'gone'\n" in told
    assert "upd: leaves out leaves that only NEW has: 'more'\n" in told
    run("apply", old, tmp_path / "upd", "-o", tmp_path / "out")
    assert held(tmp_path / "out") == fingerprint.of({"a": NEW["a"], "gone": OLD["b"]})


@pytest.fixture
def row(tmp_path):
    """Updates between three models of shards, whose texts change at the first."""
    folders = [
        write(tmp_path / str(number), model, texts={home: {"of": str(min(number, 1))} for home in (FIRST, SECOND)})
        for number, model in enumerate(MODELS)
    ]
    for number, (old, new) in enumerate(itertools.pairwise(folders)):
        run("diff", old, new, "-o", tmp_path / f"{number}.upd")
    return tmp_path


def test_updates_in_a_row_become_one(row, capsys):
    capsys.readouterr()
    run("squash", row / "0.upd", row / "1.upd", row / "0", "-o", row / "both.upd")
    sizes = [(row / f"{name}.upd").stat().st_size for name in ("both", "0", "1")]
    assert capsys.readouterr().out == f"{row / 'both.upd'}: {sizes[0]} bytes in place of {sizes[1]} + {sizes[2]}\n"
    run("diff", row / "0", row / "2", "-o", row / "direct.upd")
    assert (row / "both.upd").read_bytes() == (row / "direct.upd").read_bytes()
    run("apply", row / "0", row / "both.upd", "-o", row / "out")
    assert tree(row / "out") == tree(row / "2")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{row}/1.upd", "{row}/0.upd", "{row}/0", "-o", "{row}/both.upd"], "base model: expected the one with"),
        (["{row}/0.upd", "{row}/0.upd", "{row}/0", "-o", "{row}/both.upd"], "update 2 of 2: expected one from"),
        (["{row}/0.upd", "{row}/1.upd", "{row}/0", "-o", "{row}/1.upd"], "expected another file than the input"),
        (["{row}/0.upd", "{row}/1.upd", "{row}/0", "-o", f"{{row}}/0/{FIRST}"], "expected another file than the input"),
        (["{row}/0.upd", "{row}/1.upd", "{row}/plain.npz", "-o", "{row}/both.upd"], "metadata: expected those of"),
        (["{row}/0.upd", "{row}/0", "{row}/0", "-o", "{row}/both.upd"], "0: expected a file, found a folder"),
    ],
)
def test_updates_that_cannot_become_one_are_one_line(row, arguments, message, capsys):
    capsys.readouterr()
    files.write_model(row / "plain.npz", OLD)
    before = tree(row)
    assert message in refused(capsys, "squash", *(argument.format(row=row) for argument in arguments))
    assert tree(row) == before


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("20000", 20_000),
        ("500kB", 500_000),
        ("500k", 500_000),
        ("1MB", 1_000_000),
        ("1.5 MB", 1_500_000),
        ("1MiB", 1 << 20),
        ("0.5GiB", 1 << 29),
        ("3B", 3),
        ("2mb", 2_000_000),
        ("1.001kB", 1001),
    ],
)
def test_a_size_may_have_a_unit(text, expected):
    assert command_line.byte_count(text) == expected
    assert server._parser().parse_args(["diff", "a", "b", "-o", "c", "--max-bytes", text]).max_bytes == expected


@pytest.mark.parametrize("text", ["", "MB", "1XB", "-1", "1e6", "1iB", "nan", "1M B", "1,000", "٣"])
def test_a_size_that_is_none_is_wrong_usage(text, capsys):
    with pytest.raises(SystemExit) as ended:
        server.main(["diff", "a", "b", "-o", "c", f"--max-bytes={text}"])
    assert ended.value.code == 2
    assert f"expected bytes such as 20000, 500kB, 1.5MB or 1MiB, found {text!r}" in capsys.readouterr().err


@pytest.mark.parametrize("main", [server.main, device.main])
def test_both_command_lines_say_their_version(main, capsys):
    with pytest.raises(SystemExit) as ended:
        main(["--version"])
    assert ended.value.code == 0
    newest = max(header.versions.VERSIONS)
    assert capsys.readouterr().out == f"updcomp {updcomp.__version__}, format versions 1 to {newest}\n"


class Terminal(io.StringIO):
    """That one can wait for."""

    def __init__(self):
        super().__init__()
        self._written = threading.Condition()

    def isatty(self):
        return True

    def write(self, text):
        with self._written:
            self._written.notify_all()
            return super().write(text)

    def wait_for(self, text):
        with self._written:
            assert self._written.wait_for(lambda: text in self.getvalue(), 60)


@pytest.fixture
def terminal(monkeypatch):
    found = Terminal()
    monkeypatch.setattr(progress, "sys", types.SimpleNamespace(stderr=found))
    monkeypatch.setattr(progress, "_BETWEEN", 0.001)
    return found


def test_a_terminal_shows_how_far_a_long_command_has_come(tmp_path, terminal, monkeypatch):
    old, new = write(tmp_path / "old"), write(tmp_path / "new", NEW)
    encode = container.encode

    def slow(*arguments, **options):
        update = encode(*arguments, **options)
        terminal.wait_for(f"diff [########################] 100% of {2 * 22} B")
        return update

    monkeypatch.setattr(progress, "DELAY", 0)
    monkeypatch.setattr(container, "encode", slow)
    run("diff", old, new, "-o", tmp_path / "upd")
    assert terminal.getvalue().endswith("\r\x1b[K")


def test_nothing_is_shown_of_short_work_or_where_there_is_no_terminal(tmp_path, terminal, monkeypatch, capsys):
    old, new = write(tmp_path / "old"), write(tmp_path / "new", NEW)
    run("diff", old, new, "-o", tmp_path / "upd")
    assert terminal.getvalue() == ""
    monkeypatch.setattr(progress, "DELAY", 0)
    monkeypatch.setattr(terminal, "isatty", lambda: False)
    run("diff", old, new, "-o", tmp_path / "upd")
    monkeypatch.setattr(progress.sys, "stderr", None)
    run("diff", old, new, "-o", tmp_path / "upd")
    assert terminal.getvalue() == ""
    assert progress._current is None


def test_a_line_says_what_is_known(monkeypatch):
    monkeypatch.setattr(progress.time, "monotonic", iter([0.0, 12.4, 0.0, 61.0]).__next__)
    work = progress._Work("apply", 4_000_000)
    work.done = 1_000_000
    assert work.line() == "apply [######------------------]  25% of 4.0 MB, 12 s"
    work = progress._Work("diff", None)
    work.done = 2_500_000_000
    assert work.line() == "diff: read 2.5 GB, 61 s"


def test_an_error_ends_the_line(terminal, monkeypatch):
    monkeypatch.setattr(progress, "DELAY", 0)

    def fail():
        terminal.wait_for("diff: read 0 B, 0 s")
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError), progress.shown("diff"):
        fail()
    assert terminal.getvalue().endswith("\r\x1b[K")
    assert progress._current is None


def test_the_index_says_what_it_said(tmp_path):
    """Fields of any kind, floats and long numbers among them."""
    said = {"metadata": {"total_size": 10**30, "share": 0.5}, "list": [1, {"a": None}]}
    old = write(tmp_path / "old", said=said)
    run("diff", old, write(tmp_path / "new", NEW), "-o", tmp_path / "upd")
    run("apply", old, tmp_path / "upd", "-o", tmp_path / "out")
    assert json.loads((tmp_path / "out" / INDEX).read_text()) == said | {"weight_map": HOMES}


def test_leaves_come_and_go_and_the_index_follows(tmp_path, capsys):
    old, new, update = write(tmp_path / "old", said={"other": 1}), tmp_path / "new.safetensors", tmp_path / "update"
    wanted = {"a": NEW["a"], "b": OLD["b"].reshape(1, -1), "more": np.arange(3.0)}
    files.write_model(new, wanted)
    assert "allow_new" in refused(capsys, "diff", old, new, "-o", update)
    run("diff", old, new, "-o", update, "--allow-new", "--compact")
    said = capsys.readouterr().out
    assert "adds 'b', 'more'" in said
    assert "removes 'c'" in said
    run("apply", old, update, "-o", tmp_path / "out")
    assert held(tmp_path / "out") == fingerprint.of(wanted)
    index = json.loads((tmp_path / "out" / INDEX).read_text())
    assert index["weight_map"].keys() == wanted.keys()
    assert index["other"] == 1
    assert {path.name for path in (tmp_path / "out").iterdir()} == {INDEX, *index["weight_map"].values()}
    run("apply", old, update, "-o", tmp_path / "out.safetensors", main=device.main)
    assert held(tmp_path / "out.safetensors") == fingerprint.of(wanted)
    checkpoints.save_model(tmp_path / "orbax", OLD)
    run("apply", tmp_path / "orbax", update, "-o", tmp_path / "other")
    assert fingerprint.of(checkpoints.load_model(tmp_path / "other")) == fingerprint.of(wanted)
