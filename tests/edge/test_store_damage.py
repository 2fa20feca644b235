"""Whatever happens to one file of a store, the current model is served, and the store heals."""

import errno
import hashlib
import json
import logging
import os
import shutil
from pathlib import Path

import pytest

from tests.edge import store_kit as kit
from updcomp.edge import applying, files, ledger, locks, state, store, versions
from updcomp.wire import errors

STATES = ("state", "versions/00000003.json")


@pytest.fixture
def folder(tmp_path):
    """Of a store at version 3, whose models are those of the seeds 0, 1 and 2."""
    opened = kit.make(tmp_path / "store", keep=2)
    opened.install(kit.update(0, 1))
    opened.install(kit.update(1, 2))
    versions._found.clear()  # as in a process that has read nothing
    return tmp_path / "store"


def check_heals(folder, *, seed=2, numbers=(1, 2, 3), **report):
    """The model of the seed is served at once, and after verification the store is as good as new."""
    assert kit.seed_of(store.Store(folder).current()) == seed
    expected = {"version": numbers[-1], "whole": list(numbers), "lost": [], "updates_lost": []} | report
    found = store.Store(folder).verify()
    assert {key: found[key] for key in expected} == expected
    assert kit.listing(folder) == kit.expected_listing(numbers)
    again = store.Store(folder).verify()
    assert again == found | {"healed": [], "lost": []}


@pytest.mark.parametrize("name", kit.expected_listing([1, 2, 3])[1:])
def test_rot_in_any_byte_of_any_file_is_harmless(folder, name):
    path = folder / name
    whole = path.read_bytes()
    first = name == "versions/00000001.safetensors"
    for index in {*range(0, len(whole), len(whole) // 24 + 1), len(whole) - 1}:
        rotten = bytearray(whole)
        rotten[index] ^= 1 << index % 8
        path.write_bytes(rotten)
        assert kit.seed_of(store.Store(folder).current()) == 2
        report = store.Store(folder).verify()
        assert report["version"] == 3
        if name.endswith(".upd"):
            # It made its version, which is whole, and could not make it again.
            assert report["updates_lost"] == [int(path.stem)]
            path.write_bytes(whole)
        elif first:
            # Nothing else says what it was. A byte that means nothing, as a space in its header, may change.
            assert report["lost"] in ([1], [])
            shutil.rmtree(folder)
            break
        else:
            assert ledger.load(folder) == state.parse((folder / STATES[1]).read_bytes())
            assert kit.listing(folder) == kit.expected_listing([1, 2, 3])
            assert kit.seed_of(files.read_model(versions.path(folder, 2)).model) == 1
            whole = path.read_bytes()


@pytest.mark.parametrize("damage", ["empty", "odd", "cut", "gone", "digits", "link", "folder", "fifo"])
@pytest.mark.parametrize("name", [*STATES, "versions/00000003.safetensors", "versions/00000002.safetensors"])
def test_no_file_is_trusted(folder, name, damage):
    path = folder / name
    content = path.read_bytes()
    path.unlink()
    if damage == "link":
        path.symlink_to("../../../etc/nowhere")
    elif damage == "folder":
        path.mkdir()
    elif damage == "fifo":
        os.mkfifo(path)
    elif damage != "gone":
        odd = {"empty": b"", "odd": b"../../etc", "cut": content[: len(content) // 2], "digits": b"9" * 5000}
        path.write_bytes(odd[damage])
    if damage == "folder":
        # It cannot be replaced by a file; readers are served all the same.
        served = store.Store(folder).current()
        assert kit.seed_of(served) == (1 if name.endswith("3.safetensors") else 2)
        assert path.is_dir()
    else:
        # What is current is healed when it is read, before verification.
        check_heals(folder, healed=[2] if name == "versions/00000002.safetensors" else [])
        assert not path.is_symlink()


def test_a_state_with_a_right_checksum_is_not_trusted_either(folder):
    good = state.told(state.parse((folder / "state").read_bytes()))
    for change in (
        {"serial": "9" * 5000},
        {"serial": 1.5},
        {"serial": True},
        {"last": 1},
        {"last": -1},
        {"versions": []},
        {"versions": good["versions"][::-1]},
        {"versions": [{**good["versions"][0], "number": 0}]},
        {"versions": [{**good["versions"][0], "number": "../../x"}]},
        {"versions": [{**good["versions"][0], "update": []}]},
        {"versions": [[]]},
        {"versions": {}},
        {"seen": []},
        {"seen": {"x": {}}},
        {"seen": {"\ud800": good["seen"].popitem()[1]}},
        {"lost": ["x"]},
        {"more": 1},
    ):
        text = json.dumps(good | change).encode()
        content = hashlib.sha256(text).hexdigest().encode() + b"\n" + text
        if change == {"versions": []}:
            assert state.parse(content).current == 0
            continue
        with pytest.raises(errors.FileError, match="state: expected what a store writes down"):
            state.parse(content)
    for text in (b"", b"\n", b"{}", b"[" * 100_000, b"\xff", b'{"a":' + b"9" * 5000 + b"}"):
        with pytest.raises(errors.FileError, match="state: expected"):
            state.parse(hashlib.sha256(text).hexdigest().encode() + b"\n" + text)


def test_both_copies_of_the_state_may_be_lost(folder):
    """The version before keeps the state of its time; what came later is given up."""
    for name in STATES:
        (folder / name).write_bytes(b"")
    check_heals(folder, seed=1, numbers=(1, 2))
    assert store.Store(folder, keep=2).install(kit.update(1, 2)) == 3
    for name in ("state", *(f"versions/{one.name}" for one in (folder / "versions").glob("*.json"))):
        (folder / name).unlink()
    with pytest.raises(errors.FileError, match="found no state that is whole; make one in a folder .* init"):
        store.Store(folder).current()


def test_damaged_versions_heal_one_after_another(folder, caplog):
    for number in (2, 3):
        versions.path(folder, number).write_bytes(b"")
    check_heals(folder, healed=[])  # they were, when the current one was served
    assert [record.getMessage().partition(": ")[2] for record in caplog.records] == [
        "was damaged; made anew from version 1",
        "was damaged; made anew from version 2",
    ]


def test_what_cannot_heal_gives_way_to_the_latest_version_that_is_whole(folder, caplog):
    versions.path(folder, 3).unlink()
    versions.path(folder, 3, "upd").unlink()
    before = ledger.load(folder)
    check_heals(folder, seed=1, numbers=(1, 2), version=2)
    assert "lost [3], damaged beyond healing; version 2 is current" in caplog.text
    assert store.Store(folder).status()["lost"] == [3]
    assert ledger.load(folder).last == before.last == 3
    assert store.Store(folder).install(kit.update(1, 2)) == 4  # the update is welcome again


def test_rollback_passes_over_what_is_damaged(folder):
    versions.path(folder, 2).unlink()
    versions.path(folder, 2, "upd").unlink()
    opened = store.Store(folder)
    assert opened.rollback() == 1
    assert opened.install(kit.update(0, 1)) == 4  # lost and not bad, unlike the one that was rolled back
    with pytest.raises(state.RepeatError, match="rolled back"):
        opened.install(kit.update(1, 2))


def test_a_store_without_any_whole_version_says_what_to_do(folder):
    for path in (folder / "versions").glob("*.safetensors"):
        path.write_bytes(b"")
    for _ in range(2):
        with pytest.raises(errors.FileError, match=r"expected a version that is whole, found none of 3; .* init"):
            store.Store(folder).path()
    with pytest.raises(errors.FileError, match="beyond healing"):
        store.Store(folder).install(kit.update(0, 1), again=True)
    assert len(list((folder / "versions").iterdir())) == 8


@pytest.mark.parametrize("number", [2, 3])
def test_a_damaged_version_blocks_no_install_that_does_not_need_it(folder, number, monkeypatch):
    versions.path(folder, number).write_bytes(b"")
    versions.path(folder, number, "upd").unlink()
    opened = store.Store(folder)
    assert opened.install(kit.update(0, 9)) == 4
    assert kit.seed_of(opened.current()) == 9


def test_an_update_of_a_damaged_version_says_so(folder):
    versions.path(folder, 2).write_bytes(b"")
    versions.path(folder, 2, "upd").unlink()
    with pytest.raises(errors.FileError, match=r"00000002.safetensors: the update starts from this version"):
        store.Store(folder).install(kit.update(1, 9))
    assert kit.seed_of(store.Store(folder).current()) == 2


def test_metadata_that_rot_are_noticed(tmp_path):
    opened = kit.make(tmp_path / "store", metadata={"labels": "cat dog"})
    opened.install(kit.update(0, 1))
    path = opened.path()
    rotten = path.read_bytes().replace(b"cat dog", b"dog cat")
    path.write_bytes(rotten)
    assert files.read_model(path).metadata == {"labels": "dog cat"}
    assert files.read_model(opened.path()).metadata == {"labels": "cat dog"}


def test_a_file_is_verified_once_per_process_and_again_if_it_changes(folder, monkeypatch):
    read, real = [], files.open_model

    def record(path):
        read.append(Path(path).name)
        return real(path)

    monkeypatch.setattr(files, "open_model", record)
    opened = store.Store(folder)
    for _ in range(3):
        store.Store(folder).path()
    assert read == ["00000003.safetensors"]
    whole = opened.path().read_bytes()
    opened.path().write_bytes(whole)
    opened.path()
    assert read == ["00000003.safetensors"] * 2
    opened.verify()
    assert sorted(read[2:]) == [f"0000000{number}.safetensors" for number in (1, 2, 3)]


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENOMEM, errno.EACCES])
def test_no_version_is_given_up_for_what_may_pass(folder, monkeypatch, number):
    before = {name: (folder / name).read_bytes() for name in kit.listing(folder)}

    def fail(*args, **kwargs):
        try:
            raise OSError(number, os.strerror(number))
        except OSError as error:
            raise errors.FileError(f"{args[0]}: {error.strerror}") from None

    real = files.open_model
    with monkeypatch.context() as patch:
        patch.setattr(files, "open_model", lambda path: (fail if "3.safe" in str(path) else real)(path))
        assert kit.seed_of(store.Store(folder).current()) == 1  # meanwhile
        patch.setattr(files, "open_model", fail)
        versions._found.clear()
        for call in ("path", "verify"):
            with pytest.raises(errors.FileError, match=os.strerror(number)):
                getattr(store.Store(folder), call)()
    versions.path(folder, 3).write_bytes(b"")
    with monkeypatch.context() as patch:
        patch.setattr(applying, "apply_file", fail)
        assert kit.seed_of(store.Store(folder).current()) == 1  # meanwhile
    check_heals(folder, healed=[])
    versions_before = {name: content for name, content in before.items() if name.endswith(("safetensors", "upd"))}
    assert {name: (folder / name).read_bytes() for name in versions_before} == versions_before


def test_readers_do_not_wait_for_a_writer(folder):
    opened = store.Store(folder)
    with locks.held(folder / "lock", timeout=0):
        assert kit.seed_of(opened.current()) == 2
        versions.path(folder, 3).write_bytes(b"")
        # It cannot be made anew now; the version before serves meanwhile.
        assert kit.seed_of(opened.current()) == 1
        (folder / "state").write_bytes(b"")
        assert kit.seed_of(opened.current()) == 1
        assert opened.status()["version"] == opened.version() == 3
    check_heals(folder, healed=[])


@pytest.mark.parametrize("suffix", ["safetensors", "upd", "json"])
@pytest.mark.parametrize("target", ["victim", "nowhere"])
def test_links_at_the_next_versions_names_are_not_followed(folder, tmp_path, suffix, target):
    victim = tmp_path / "victim"
    victim.write_bytes(b"precious")
    versions.path(folder, 4, suffix).symlink_to(tmp_path / target)
    number = store.Store(folder, keep=2).install(kit.update(2, 3))
    assert victim.read_bytes() == b"precious"
    assert not (tmp_path / "nowhere").exists()
    assert kit.seed_of(store.Store(folder).current()) == 3
    assert kit.listing(folder) == kit.expected_listing([1, 3, number])


def test_a_linked_version_or_state_is_replaced_and_the_target_left(folder, tmp_path):
    for name in ("state", "versions/00000003.safetensors", "versions/00000003.json"):
        elsewhere = tmp_path / name.replace("/", "-")
        shutil.move(folder / name, elsewhere)
        (folder / name).symlink_to(elsewhere)
    before = {path: path.read_bytes() for path in tmp_path.glob("versions-*")}
    assert kit.seed_of(store.Store(folder).current()) in (1, 2)
    store.Store(folder).verify()
    assert not any(path.is_symlink() for path in [folder / "state", *(folder / "versions").iterdir()])
    assert {path: path.read_bytes() for path in before} == before


def test_what_killed_processes_left_is_swept(folder):
    left = [
        folder / ".updcomp-0123abcd.tmp",
        folder / "versions" / ".updcomp-89abcdef.tmp",
        *(versions.path(folder, 9, suffix) for suffix in ("safetensors", "upd", "json")),
    ]
    for path in left:
        path.write_bytes(b"left")
    store.Store(folder).rollback()
    assert kit.listing(folder) == kit.expected_listing([1, 2])


def test_warnings_are_logged_under_one_name(folder, caplog):
    (folder / "state").write_bytes(b"")
    store.Store(folder).rollback()
    assert [(record.name, record.levelno) for record in caplog.records] == [("updcomp.edge.ledger", logging.WARNING)]
