"""Models in folders: shards with an index, and a single file."""

import io
import json
import os
import stat
import sys

import numpy as np
import pytest
import safetensors.numpy

from tests.edge.running import after, peak, run
from updcomp.edge import __main__ as cli
from updcomp.edge import applying, files, folders, store
from updcomp.wire import container, dtypes, errors, fingerprint, packet
from updcomp.wire.kinds.raw import Raw

INDEX = "model.safetensors.index.json"
FIRST, SECOND = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
OLD = {"a": np.float32([1, 2]), "b": np.arange(6, dtype=np.int16).reshape(2, 3), "c": np.ones((), np.float16)}
NEW = OLD | {"a": np.float32([1, 3]), "c": np.zeros((), np.float16)}
HOMES = {"a": SECOND, "b": FIRST, "c": SECOND}
TEXTS = {FIRST: {"format": "pt", "part": "1"}, SECOND: {"format": "pt", "part": "2"}}
SAID = {"metadata": {"total_size": 22, "note": [1.5, None]}, "weight_map": HOMES, "version": {"of": "the index"}}
UPDATE = container.encode(packet.Packet({name: Raw(NEW[name]) for name in ("a", "c")}), OLD)


def write(folder, model=OLD, homes=HOMES, said=SAID, texts=TEXTS):
    """A model as Hugging Face has it, by the safetensors package."""
    folder.mkdir()
    for home in sorted(set(homes.values())):
        part = {name: model[name] for name in model if homes[name] == home}
        safetensors.numpy.save_file(part, folder / home, metadata=texts.get(home))
    (folder / INDEX).write_text(json.dumps(said | {"weight_map": homes}, indent=2))
    return folder


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "update").write_bytes(UPDATE)
    write(tmp_path / "old")
    return tmp_path


def done(folder, *arguments):
    """Exit status of a command in a folder."""
    before = os.getcwd()
    os.chdir(folder)
    try:
        return cli.main(list(arguments))
    finally:
        os.chdir(before)


def tree(folder):
    """Every file and folder below one, by path."""
    return {str(path.relative_to(folder)): path.is_file() and path.read_bytes() for path in folder.rglob("*")}


def assert_refused(folder, capsys, *arguments, message):
    """One line, status 2, nothing written."""
    before = tree(folder)
    assert done(folder, *arguments) == 2
    output, error = capsys.readouterr()
    assert output == ""
    assert error.startswith("updcomp: error: ")
    assert error.count("\n") == 1
    assert message in error
    assert tree(folder) == before


@pytest.mark.parametrize("old", ["old", f"old/{INDEX}", "old/"])
def test_a_model_of_shards_is_updated_into_a_folder_of_the_same_files(folder, old, capsys):
    assert done(folder, "apply", old, "update", "-o", "new") == 0
    assert capsys.readouterr() == ("", "")
    assert sorted(os.listdir(folder / "new")) == sorted(os.listdir(folder / "old"))
    assert (folder / "new" / INDEX).read_bytes() == (folder / "old" / INDEX).read_bytes()
    for home in (FIRST, SECOND):
        found = safetensors.numpy.load_file(folder / "new" / home)
        assert found.keys() == {name for name in HOMES if HOMES[name] == home}
        assert all(found[name].tobytes() == NEW[name].tobytes() for name in found)
        with safetensors.safe_open(folder / "new" / home, "numpy") as file:
            assert file.metadata() == TEXTS[home]
    assert sorted(os.listdir(folder)) == ["new", "old", "update"]


def test_a_model_of_shards_is_verified_inspected_and_read(folder, capsys):
    assert done(folder, "verify", "old", "update") == 0
    assert capsys.readouterr().out == "update applies to old\n"
    assert done(folder, "inspect", "update", "old") == 0
    assert [block["leaf"] for block in json.loads(capsys.readouterr().out)["blocks"]] == ["a", "c"]
    read = files.read_model(folder / "old")
    assert (fingerprint.of(read.model), read.metadata) == (fingerprint.of(OLD), {"format": "pt"})
    with files.open_model(folder / "old") as (model, _):
        assert (list(model), len(model)) == (["a", "b", "c"], 3)
        with pytest.raises(KeyError):
            model["d"]


@pytest.mark.parametrize("new", ["new.safetensors", "new.npz"])
def test_a_model_of_shards_becomes_a_file_where_the_output_is_named_as_one(folder, new, capsys):
    assert done(folder, "apply", "old", "update", "-o", new) == 0
    read = files.read_model(folder / new)
    assert fingerprint.of(read.model) == fingerprint.of(NEW)
    assert read.metadata == ({"format": "pt"} if new.endswith(".safetensors") else {})
    assert ("metadata are left out" in capsys.readouterr().err) == new.endswith(".npz")


def test_a_folder_with_one_file_needs_no_index(folder, capsys, monkeypatch):
    (folder / "one").mkdir()
    (folder / "one" / "config.json").write_text("{}")
    files.write_model(folder / "one" / "model.safetensors", OLD, {"format": "pt"})
    assert done(folder, "apply", "one", "update", "-o", "new") == 0
    assert os.listdir(folder / "new") == ["model.safetensors"]
    assert fingerprint.of(files.read_model(folder / "new").model) == fingerprint.of(NEW)
    assert files.read_model(folder / "new").metadata == {"format": "pt"}
    output = io.TextIOWrapper(io.BytesIO())
    monkeypatch.setattr(sys, "stdout", output)
    assert done(folder, "apply", "one", "update", "-o", "-") == 0
    assert output.buffer.getvalue() == (folder / "new" / "model.safetensors").read_bytes()


def test_metadata_that_all_shards_have_travel(folder):
    (folder / "update").write_bytes(container.encode(packet.Packet({}), OLD, metadata=({"format": "pt"}, {"by": "us"})))
    assert done(folder, "apply", "old", "update", "-o", "new") == 0
    for part, home in enumerate((FIRST, SECOND), 1):
        assert files.read_model(folder / "new" / home).metadata == {"by": "us", "part": str(part)}


def rewritten(folder, **fields):
    said = json.loads((folder / "old" / INDEX).read_text())
    (folder / "old" / INDEX).write_text(json.dumps(said | fields))


def mapped(folder, **homes):
    rewritten(folder, weight_map=HOMES | homes)


def unmapped(folder):
    rewritten(folder, weight_map={name: HOMES[name] for name in ("a", "b")})


def twice(folder):
    files.write_model(folder / "old" / FIRST, {"a": OLD["a"], "b": OLD["b"]})


def cut(folder):
    (folder / "old" / SECOND).write_bytes((folder / "old" / SECOND).read_bytes()[:-1])


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: (folder / "old" / SECOND).unlink(), f"old/{SECOND}: No such file"),
        (cut, f"old/{SECOND}: safetensors"),
        (
            lambda folder: mapped(folder, a=FIRST),
            f"old/{INDEX}: leaf 'a': expected in {FIRST} as weight_map says, found",
        ),
        (lambda folder: mapped(folder, d=FIRST), f"leaf 'd': expected in {FIRST} as weight_map says, found in none"),
        (unmapped, f"leaf 'c': expected in no shard as weight_map says, found in {SECOND}"),
        (twice, f"leaf 'a': expected in one shard, found in {FIRST} and in {SECOND}"),
        (
            lambda folder: mapped(folder, a=f"../old/{SECOND}"),
            "'a': expected the name of a .safetensors file in the same",
        ),
        (lambda folder: mapped(folder, a="model.bin"), "'a': expected the name of a .safetensors file in the same"),
        (lambda folder: mapped(folder, a=3), "weight_map: leaf 'a': expected the name of a file"),
        (lambda folder: rewritten(folder, weight_map=[]), "index: expected weight_map, an object of leaf names"),
        (lambda folder: (folder / "old" / INDEX).write_text("{}"), "index: expected weight_map"),
        (lambda folder: (folder / "old" / INDEX).write_text("["), "index: expected a JSON object"),
        (
            lambda folder: (folder / "old" / INDEX).write_text('{"weight_map": {"a": "x.safetensors", "a": 1}}'),
            "weight_map: the name 'a' appears twice",
        ),
        (lambda folder: files.write_model(folder / "old" / "model.safetensors", OLD), f"{INDEX}; name one of them"),
    ],
)
def test_shards_that_do_not_fit_the_index_are_refused(folder, damage, message, capsys):
    damage(folder)
    assert_refused(folder, capsys, "apply", "old", "update", "-o", "new", message=message)
    assert_refused(folder, capsys, "verify", "old", "update", message=message)


def test_any_bytes_as_an_index_give_the_model_or_an_error(folder):
    content = (folder / "old" / INDEX).read_bytes()
    mutations = [content[:end] for end in range(0, len(content), 5)]
    mutations += [content[:at] + bytes([content[at] ^ 1 << at % 8]) + content[at + 1 :] for at in range(len(content))]
    read = 0
    for mutated in mutations:
        (folder / "old" / INDEX).write_bytes(mutated)
        try:
            assert fingerprint.of(files.read_model(folder / "old").model) == fingerprint.of(OLD)
            read += 1
        except errors.FileError:
            pass
    assert 0 < read < len(mutations) / 2


def test_an_index_is_not_read_beyond_its_largest_size(folder, capsys):
    with (folder / "old" / INDEX).open("a") as file:
        file.truncate((32 << 20) + 1)
    assert_refused(folder, capsys, "verify", "old", "update", message="expected at most 33,554,432 bytes")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{" + ",".join(f'"{i}":[]' for i in range(500_000)) + "}", "index: expected at most 64 fields, found more"),
        ('{"a":[' + "[]," * 2_000_000 + "[]]}", "index: 'a': expected JSON of at most 262144 characters"),
        ('{"a":' + "[" * 1_000_000 + "}", "index: expected a JSON object"),
        (
            '{"weight_map":{' + ",".join(f'"{i}":""' for i in range(500_000)) + "}}",
            "weight_map: leaf '0': expected the",
        ),
    ],
    ids=["fields", "a long field", "nested", "leaves"],
)
def test_an_index_takes_no_more_memory_than_a_few_times_its_size(folder, content, message):
    (folder / "old" / INDEX).write_text(content)

    def read():
        with pytest.raises(errors.FileError, match=message):
            files.read_model(folder / "old")

    assert peak(read) < 64 << 20


@pytest.mark.parametrize(
    ("output", "message"),
    [
        ("full", "full: expected a new or empty folder"),
        ("old", "old: expected a new or empty folder"),
        ("update", "update: expected a new or empty folder"),
        ("link", "link: expected a new or empty folder"),
        (f"old/{FIRST}", "expected another file than the input"),
        ("-", "a model of shards is no file"),
        ("missing/new", "missing/new: cannot write: No such file or directory"),
    ],
)
def test_an_output_that_would_replace_something_is_refused(folder, output, message, capsys):
    (folder / "full").mkdir()
    (folder / "full" / "file").write_bytes(b"kept")
    (folder / "empty").mkdir()
    (folder / "link").symlink_to("empty")
    assert_refused(folder, capsys, "apply", "old", "update", "-o", output, message=message)


def test_a_model_that_is_not_there_is_said_first(folder, capsys):
    message = "missing: expected a model file ending in .safetensors or .npz, or a folder, found nothing"
    assert_refused(folder, capsys, "apply", "missing", "update", "-o", "new", message=message)


def test_an_empty_folder_is_filled_and_keeps_its_mode(folder, monkeypatch):
    (folder / "new").mkdir(mode=0o700)
    modes = []
    apply_leaves = container.apply_leaves

    def watched(*arguments, **options):
        modes.extend(stat.S_IMODE(path.stat().st_mode) for path in folder.glob(".updcomp-*.new"))
        yield from apply_leaves(*arguments, **options)

    monkeypatch.setattr(container, "apply_leaves", watched)
    assert done(folder, "apply", "old", "update", "-o", "new") == 0
    assert modes == [0o700]
    assert stat.S_IMODE((folder / "new").stat().st_mode) == 0o700
    assert fingerprint.of(files.read_model(folder / "new").model) == fingerprint.of(NEW)


def test_a_result_that_is_not_as_promised_leaves_no_folder(folder, capsys, monkeypatch):
    def wrong(*arguments, **options):
        raise errors.CorruptUpdateError("result: expected the model 0000")
        yield

    monkeypatch.setattr(container, "apply_leaves", wrong)
    message = "update: result: expected the model 0000"
    assert_refused(folder, capsys, "apply", "old", "update", "-o", "new", message=message)


@pytest.mark.parametrize("at", range(6))
def test_a_signal_at_any_sync_leaves_a_whole_folder_or_none(folder, at, monkeypatch):
    """Of two shards, the index, the new folder, and the folder around it; the last one comes after the renaming."""
    syncs = []

    def fsync(descriptor):
        if len(syncs) == at:
            raise KeyboardInterrupt
        syncs.append(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    assert done(folder, "apply", "old", "update", "-o", "new") == (130 if at < 5 else 0)
    assert sorted(os.listdir(folder)) == ["old", "update"] if at < 4 else ["new", "old", "update"]
    if at >= 4:
        assert fingerprint.of(files.read_model(folder / "new").model) == fingerprint.of(NEW)


def test_what_a_killed_process_left_is_swept_by_the_next(folder):
    killed = after("import os; os.fsync = lambda file: os.kill(os.getpid(), 9)")
    assert run("apply", "old", "update", "-o", "new", cwd=folder, start=killed).returncode == -9
    left = [name for name in os.listdir(folder) if name.startswith(".updcomp-")]
    assert len(left) == 1
    assert len(os.listdir(folder / left[0])) == 3
    # Another's folder of such a name, with folders in it, stays.
    (folder / ".updcomp-01234567.new" / "within").mkdir(parents=True)
    assert done(folder, "apply", "old", "update", "-o", "new") == 0
    assert sorted(os.listdir(folder)) == [".updcomp-01234567.new", "new", "old", "update"]


def test_a_sweep_leaves_a_folder_that_is_being_written(folder):
    with files.open_model(folder / "old") as (model, _):

        def leaves():
            for name in model:
                files.sweep(folder)
                yield name, model[name]

        files.write_folder(folder / "new", model, dtypes.specs(model), leaves(), {})
    assert fingerprint.of(files.read_model(folder / "new").model) == fingerprint.of(OLD)


def test_a_folder_is_written_only_of_a_model_that_is_in_one(folder):
    files.write_model(folder / "old.npz", OLD)
    with (
        files.open_model(folder / "old.npz") as (model, _),
        pytest.raises(errors.FileError, match="new: expected a model"),
    ):
        files.write_folder(folder / "new", model, dtypes.specs(model), model.items())
    with pytest.raises(errors.FileError, match="expected a new or empty folder"):
        folders.check_new(folder / "old")


def test_shards_are_updated_leaf_by_leaf(tmp_path):
    leaf = 1 << 20
    large = {f"{i:02d}": np.full(leaf, i, np.uint8) for i in range(16)}
    homes = {name: f"{int(name) % 3}.safetensors" for name in large}
    write(tmp_path / "old", large, homes)
    update = container.encode(packet.Packet({}), large)
    assert peak(lambda: applying.apply_file(tmp_path / "old", update, tmp_path / "new")) < 8 * leaf
    assert fingerprint.of(files.read_model(tmp_path / "new").model) == fingerprint.of(large)


def test_a_store_begins_with_shards_and_holds_one_file(folder):
    kept = store.Store(folder / "store")
    kept.initialise(folder / "old")
    assert files.read_model(kept.path()).metadata == {"format": "pt"}
    assert kept.install(UPDATE) == 2
    assert fingerprint.of(kept.current()) == fingerprint.of(NEW)


def test_who_may_not_read_a_shard_may_not_read_its_copies(folder):
    (folder / "old" / SECOND).chmod(0o600)
    store.Store(folder / "store").initialise(folder / "old")
    assert stat.S_IMODE((folder / "store" / "versions").stat().st_mode) == 0o700
