import json
import os
import re
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from tests.edge import store_kit as kit
from updcomp.edge import files, state, store
from updcomp.wire import container, dtypes, errors, fingerprint, inspection, packet, structure
from updcomp.wire.kinds.raw import Raw


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "store"


def content(folder):
    return {name: Path(folder, name).read_bytes() for name in kit.listing(folder)}


def test_updates_are_installed_one_after_another_and_old_versions_removed(folder):
    opened = kit.make(folder, metadata={"labels": "cat dog"}, keep=2)
    for seed in (1, 2, 3):
        assert opened.install(kit.update(seed - 1, seed)) == opened.version() == seed + 1
        assert kit.seed_of(opened.current()) == seed
    assert kit.listing(folder) == kit.expected_listing([1, 3, 4])
    assert opened.path() == folder / "versions" / "00000004.safetensors"
    assert files.read_model(opened.path()).metadata == {"labels": "cat dog"}


def test_an_update_may_start_from_any_version_that_is_kept(folder):
    opened = kit.make(folder, keep=2)
    for seed in (1, 2, 3):
        opened.install(kit.update(seed - 1, seed))
    opened.install(kit.update(0, 10))  # the first one, long before the current one
    opened.install(kit.update(3, 11))  # the one before the current one
    assert kit.seed_of(opened.current()) == 11
    with pytest.raises(errors.WrongBaseError, match="one of the 3 versions .* version 6, which is"):
        opened.install(kit.update(1, 12))
    assert opened.version() == 6


def test_each_rollback_goes_one_version_back_down_to_the_first_and_numbers_only_go_up(folder):
    opened = kit.make(folder, keep=3)
    for seed in (1, 2, 3, 4):
        opened.install(kit.update(seed - 1, seed))
    assert [opened.rollback() for _ in range(3)] == [4, 3, 1]
    assert kit.seed_of(opened.current()) == 0
    assert kit.listing(folder) == kit.expected_listing([1])
    with pytest.raises(errors.FileError, match="a whole version before 1, found none"):
        opened.rollback()
    assert opened.install(kit.update(0, 9)) == 6
    assert opened.rollback() == 1
    assert opened.install(kit.update(0, 8)) == 7


def test_an_update_is_installed_once(folder):
    opened = kit.make(folder, keep=2)
    updates = [kit.update(seed, seed + 1) for seed in range(4)]
    for update in updates:
        opened.install(update)
    before = content(folder)
    # The first one starts from the first version, which is kept; another not even from one that is kept.
    with pytest.raises(state.RepeatError, match=r"it was installed \(version 2, 20..-.*again=True"):
        opened.install(updates[0])
    with pytest.raises(errors.WrongBaseError):
        opened.install(updates[1])
    assert content(folder) == before
    assert opened.install(updates[0], again=True) == 6
    assert kit.seed_of(opened.current()) == 1
    # Sent once more, since nobody has heard of it, it is there.
    assert opened.install(updates[0]) == opened.install(updates[0], again=True) == opened.version() == 6


def test_an_update_that_was_rolled_back_is_refused(folder):
    opened = kit.make(folder)
    bad = kit.update(0, 1)
    opened.install(bad)
    opened.rollback()
    with pytest.raises(state.RepeatError, match=r"found that it was rolled back \(version 2, "):
        opened.install(bad)
    assert opened.version() == 1
    assert opened.install(bad, again=True) == 3


def test_an_update_that_changes_nothing_makes_no_version(folder):
    opened = kit.make(folder)
    idle = container.encode(packet.Packet({}), kit.model(0))
    assert opened.install(idle) == opened.install(idle) == opened.version() == 1
    opened.install(kit.update(0, 1))
    with pytest.raises(state.RepeatError, match="it was installed"):
        opened.install(idle)  # it would bring the first model back
    assert opened.install(idle, again=True) == 3
    assert kit.seed_of(opened.current()) == 0


def test_an_update_is_the_same_whatever_it_says_of_metadata_that_stay(folder):
    opened = kit.make(folder, metadata={"labels": "cat"})
    sent = packet.Packet({name: Raw(leaf) for name, leaf in kit.model(1).items()})
    same = ({"labels": "cat"}, {"labels": "cat"})
    assert opened.install(container.encode(sent, kit.model(0))) == 2
    opened.rollback()
    with pytest.raises(state.RepeatError, match="rolled back"):
        opened.install(container.encode(sent, kit.model(0), metadata=same))


def test_who_may_not_read_the_source_may_not_read_the_store(tmp_path):
    for mode, expected in ((0o600, 0o700), (0o640, 0o750), (0o644, 0o755)):
        source = tmp_path / f"{mode:o}.safetensors"
        files.write_model(source, kit.model(0))
        source.chmod(mode)
        store.Store(tmp_path / f"{mode:o}").initialise(source)
        assert (tmp_path / f"{mode:o}" / "versions").stat().st_mode & 0o777 == expected


@pytest.mark.parametrize("name", ["a\0b", "\ud800"])
def test_a_folder_that_has_no_name_is_an_error(name):
    with pytest.raises(errors.FileError, match="expected the name of a folder"):
        store.Store(name).version()


def test_metadata_change_with_an_update_and_belong_to_what_it_starts_from(folder):
    opened = kit.make(folder, metadata={"labels": "cat dog"})

    def relabel(old, new):
        return container.encode(packet.Packet({}), kit.model(0), metadata=({"labels": old}, {"labels": new}))

    assert opened.install(relabel("cat dog", "dog cat")) == 2
    assert opened.install(relabel("dog cat", "dog cow")) == 3
    assert files.read_model(opened.path()).metadata == {"labels": "dog cow"}
    # All three models have the same leaves; which one an update starts from is said by the labels.
    assert opened.install(relabel("cat dog", "cow")) == 4
    with pytest.raises(errors.WrongBaseError, match="metadata"):
        opened.install(relabel("pig", "cow"))
    with pytest.raises(state.RepeatError, match="version 2"):
        opened.install(relabel("cat dog", "dog cat"))
    opened.path().unlink()
    assert files.read_model(opened.path()).metadata == {"labels": "cow"}


def test_a_wrong_or_damaged_update_changes_nothing(folder):
    opened = kit.make(folder)
    before = content(folder)
    for update in (b"", kit.update(1, 2), kit.update(0, 1)[:-1]):
        with pytest.raises(errors.Error):
            opened.install(update)
        assert content(folder) == before


def test_the_source_and_all_other_files_are_left_alone(folder):
    others = ["model.safetensors", "00000002.safetensors", "00000003.upd", ".model.0123abcd.tmp", "current"]
    folder.mkdir()
    for name in others:
        files.write_model(folder / "model.safetensors", kit.model(0))
        (folder / name).write_bytes((folder / "model.safetensors").read_bytes())
    before = content(folder)
    opened = store.Store(folder, keep=1)
    opened.initialise(folder / "model.safetensors")
    foreign = ["notes.txt", "2.safetensors", "000000002.safetensors", "00000002.npz", "٠٠٠٠٠٠٠٢.upd", "x00000002.upd"]
    for name in foreign:
        (folder / "versions" / name).write_bytes(b"mine")
    for seed in (1, 2, 3):
        opened.install(kit.update(seed - 1, seed))
    opened.rollback()
    opened.verify()
    assert {name: content(folder)[name] for name in others} == before
    assert all((folder / "versions" / name).read_bytes() == b"mine" for name in foreign)


def test_a_folder_with_the_name_of_the_next_version_is_passed_over(folder):
    opened = kit.make(folder)
    (folder / "versions" / "00000002.safetensors").mkdir()
    assert opened.install(kit.update(0, 1)) == 3
    assert kit.seed_of(opened.current()) == 1


def test_a_store_begins_where_nothing_is(folder, tmp_path):
    source = tmp_path / "model.safetensors"
    files.write_model(source, kit.model(0))
    for name in ("versions/00000001.safetensors", "versions/notes.txt", "state"):
        place = tmp_path / name.replace("/", "-")
        (place / name).parent.mkdir(parents=True)
        (place / name).write_bytes(b"mine")
        with pytest.raises(errors.FileError, match="others' files"):
            store.Store(place).initialise(source)
        assert (place / name).read_bytes() == b"mine"
    linked = tmp_path / "linked"
    linked.mkdir()
    (linked / "versions").symlink_to(tmp_path / "empty")
    (tmp_path / "empty").mkdir()
    with pytest.raises(errors.FileError, match="others' files"):
        store.Store(linked).initialise(source)
    store.Store(folder).initialise(source)
    with pytest.raises(errors.FileError, match="expected no store, found one at version 1"):
        store.Store(folder).initialise(source)
    with pytest.raises(errors.FileError, match="Not a directory"):
        store.Store(source / "store").initialise(source)


def test_npz_files_become_a_first_version_too(folder, tmp_path):
    files.write_model(tmp_path / "model.npz", kit.model(5))
    store.Store(folder).initialise(tmp_path / "model.npz")
    assert kit.seed_of(store.Store(folder).current()) == 5


def test_every_folder_that_is_made_is_synced_and_the_one_that_it_is_made_in(tmp_path, monkeypatch):
    synced, real = set(), os.fsync

    def record(descriptor):
        synced.add(os.fstat(descriptor).st_ino)
        real(descriptor)

    files.write_model(tmp_path / "model.safetensors", kit.model(0))
    monkeypatch.setattr(os, "fsync", record)
    store.Store(tmp_path / "a" / "b" / "store").initialise(tmp_path / "model.safetensors")
    folders = [tmp_path, *(tmp_path / name for name in ("a", "a/b", "a/b/store", "a/b/store/versions"))]
    assert {place.stat().st_ino for place in folders} <= synced


def test_what_is_not_a_store_is_said_so_and_nothing_is_put_there(tmp_path):
    for call in ("version", "path", "current", "rollback", "status", "verify"):
        with pytest.raises(errors.FileError, match="expected a store, .*python -m updcomp.edge init"):
            getattr(store.Store(tmp_path), call)()
    with pytest.raises(errors.FileError, match="expected a store"):
        store.Store(tmp_path / "nowhere").install(kit.update(0, 1))
    assert kit.listing(tmp_path) == []
    for options in ({"keep": 0}, {"lock_timeout": -1}, {"lock_timeout": float("nan")}):
        with pytest.raises(errors.Error, match=next(iter(options))):
            store.Store(tmp_path, **options)


def test_the_status_says_what_each_version_is_and_where_it_came_from(folder):
    opened = kit.make(folder)
    update = kit.update(0, 1)
    opened.install(update)
    opened.rollback()
    opened.install(kit.update(0, 2))
    status = json.loads(json.dumps(opened.status()))
    assert (status["version"], status["last"], status["lost"]) == (3, 3, [])
    assert [seen["outcome"] for seen in status["updates"]] == ["rolled back", "installed"]
    first, second = status["versions"]
    assert first["update"] is None
    assert second["update"]["base"] == first["fingerprint"] == inspection.inspect(update)["base"]
    assert second["size"] == opened.path().stat().st_size
    assert all(re.fullmatch(r"20\d\d-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00", version["time"]) for version in (first, second))


def test_memory_for_updates_is_bounded():
    """The least recent of many updates are forgotten, and numbers of versions go on."""
    many = {f"{number:032x}": state.Seen(number, state.now(), state.INSTALLED, 0) for number in range(1, 5000)}
    full = state.State(last=1, seen=many).noted(f"{5000:032x}", state.Seen(5000, state.now(), state.FAILED, 3))
    assert len(full.seen) == 4096
    assert f"{5000:032x}" in full.seen
    assert f"{1:032x}" not in full.seen
    assert len(state.pack(full)) < 1 << 20
    assert state.parse(state.pack(full)) == full


def test_large_models_are_not_held_in_memory(folder):
    """Leaves are written and verified one at a time."""
    model = {f"w{index}": np.full(1 << 18, index, np.float32) for index in range(16)}  # 16 MiB
    source = folder.with_name("large.safetensors")
    files.write_model(source, model)
    opened = store.Store(folder)
    update = container.encode(packet.Packet({"w3": Raw(model["w4"])}), model)
    del model
    tracemalloc.start()
    try:
        opened.initialise(source)
        opened.path()
        assert opened.install(update) == 2
        opened.path()
        opened.verify()
        assert tracemalloc.get_traced_memory()[1] < 8 << 20
    finally:
        tracemalloc.stop()


def test_a_compact_update_is_installed_and_is_the_same_as_a_long_one(folder):
    opened, old, new = kit.make(folder), kit.model(0), kit.model(1)
    sent = packet.Packet({name: Raw(leaf) for name, leaf in new.items()})
    assert opened.install(container.encode(sent, old, compact=True)) == 2
    assert opened.status()["versions"][-1]["fingerprint"] == fingerprint.of(new).hex()
    assert opened.install(container.encode(sent, old)) == 2
    assert opened.install(container.encode(packet.Packet({"weights": Raw(old["weights"])}), new, compact=True)) == 3
    opened.rollback()
    with pytest.raises(state.RepeatError, match="rolled back"):
        opened.install(container.encode(packet.Packet({"weights": Raw(old["weights"])}), new))


def test_leaves_come_and_go_with_an_update(folder):
    opened, old = kit.make(folder), kit.model(0)
    new = {"more": np.arange(5.0), "weights": old["weights"][:10]}
    changed = structure.between(dtypes.specs(old), dtypes.specs(new))
    sent = packet.Packet({name: Raw(leaf) for name, leaf in new.items()}, structure=changed)
    assert opened.install(container.encode(sent, old)) == 2
    assert fingerprint.of(opened.current()) == fingerprint.of(new)
