import os

import numpy as np
import pytest

from updcomp.edge import files, store
from updcomp.wire import container, errors, fingerprint, packet


@pytest.fixture
def model():
    return {"w": np.arange(6, dtype=np.float32)}


@pytest.fixture
def opened(tmp_path, model):
    files.write_model(tmp_path / "first.safetensors", model, {"note": "kept"})
    opened = store.Store(tmp_path / "versions", keep=2)
    opened.initialise(tmp_path / "first.safetensors")
    return opened


def update_of(model, integer=1):
    return container.encode(packet.Packet({"w": packet.Dense(np.full(6, integer, np.int32), 0.5)}), model)


def values(opened):
    return opened.current()["w"].tolist()


def test_updates_are_installed_one_after_another_and_old_versions_removed(opened, model):
    for installed in range(1, 4):
        opened.install(update_of(opened.current()))
        assert values(opened) == [w + 0.5 * installed for w in model["w"].tolist()]
    assert opened.version() == 4
    assert sorted(os.listdir(opened.path().parent)) == [
        "00000001.safetensors",
        "00000003.safetensors",
        "00000004.safetensors",
        "current",
    ]
    assert files.read_model(opened.path()).metadata == {"note": "kept"}


def test_rollback_returns_to_the_version_before_and_the_next_update_starts_there(opened, model):
    opened.install(update_of(model))
    opened.rollback()
    assert values(opened) == model["w"].tolist()
    with pytest.raises(errors.FileError, match="a version before 1"):
        opened.rollback()
    opened.install(update_of(model, 4))
    assert values(opened) == [w + 2 for w in model["w"].tolist()]


def test_an_update_may_start_from_any_version_that_is_kept(opened, model):
    for _ in range(3):
        opened.install(update_of(opened.current()))
    opened.install(update_of(model, 8))  # the first version, long before the current one
    assert values(opened) == [w + 4 for w in model["w"].tolist()]
    opened.install(update_of({"w": model["w"] + np.float32(1.5)}, -2))  # the one before the current one
    assert values(opened) == [w + 0.5 for w in model["w"].tolist()]
    with pytest.raises(errors.WrongBaseError):
        opened.install(update_of({"w": model["w"] + np.float32(9)}))
    assert opened.version() == 6


def test_a_wrong_or_damaged_update_changes_nothing(opened, model):
    before = {path.name: path.read_bytes() for path in opened.path().parent.iterdir()}
    for update in (b"", update_of({"w": model["w"] + 1}), update_of(model)[:-1]):
        with pytest.raises(errors.Error):
            opened.install(update)
    assert {path.name: path.read_bytes() for path in opened.path().parent.iterdir()} == before


@pytest.mark.parametrize("call", ["fsync", "replace", "unlink"])
def test_a_crash_at_any_point_leaves_a_valid_current_version(opened, model, monkeypatch, call):
    """Cuts the process off at the n-th system call of a kind, for every n until the whole passes."""
    opened.install(update_of(model))
    folder, real = opened.path().parent, getattr(os, call)
    for survived in range(100):
        done = 0

        def cut(*args, limit=survived, **kwargs):
            nonlocal done
            if done == limit:
                raise KeyboardInterrupt
            done += 1
            return real(*args, **kwargs)

        before, target = fingerprint.of(opened.current()), opened.current()
        update = update_of(target)
        after = fingerprint.of(container.apply_update(update, target))
        with monkeypatch.context() as patch:
            patch.setattr(os, call, cut)
            try:
                opened.install(update)
                whole = True
            except KeyboardInterrupt:
                whole = False
        reopened = store.Store(folder, keep=2)
        assert fingerprint.of(reopened.current()) in (before, after)
        if whole:
            assert fingerprint.of(reopened.current()) == after
            break
    else:
        pytest.fail("the install never came to its end")
    assert survived > 0


def test_a_store_is_initialised_once_and_its_pointer_checked(opened, tmp_path):
    with pytest.raises(errors.FileError, match="without a current version"):
        opened.initialise(tmp_path / "first.safetensors")
    (tmp_path / "versions" / "current").write_bytes(b"../../etc")
    with pytest.raises(errors.FileError, match="version number"):
        opened.current()
    with pytest.raises(errors.FileError, match="current: No such file"):
        store.Store(tmp_path / "nowhere").version()
    with pytest.raises(errors.FileError, match="versions"):
        store.Store(tmp_path / "first.safetensors" / "versions").initialise(tmp_path / "first.safetensors")
    with pytest.raises(ValueError, match="keep"):
        store.Store(tmp_path, keep=0)
