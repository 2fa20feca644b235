"""An operation that is cut off at any of its system calls leaves the store as it was before or is after."""

import os

import pytest

from tests.edge import store_kit as kit
from updcomp.edge import files, store
from updcomp.wire import errors


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "store"


def crash_at_each(call, monkeypatch, operation, check):
    """Cuts an operation off at the n-th system call of a kind, for every n until the whole passes; the n."""
    real = getattr(os, call)
    for survived in range(100):
        done = 0

        def cut(*args, limit=survived, **kwargs):
            nonlocal done
            if done == limit:
                raise KeyboardInterrupt
            done += 1
            return real(*args, **kwargs)

        begin = operation(survived)
        with monkeypatch.context() as patch:
            patch.setattr(os, call, cut)
            try:
                begin()
                whole = True
            except KeyboardInterrupt:
                whole = False
        check(survived, whole)
        if whole:
            return survived
    return pytest.fail("it never came to its end")


@pytest.mark.parametrize("call", ["fsync", "replace", "unlink", "listdir", "fstat"])
def test_a_crash_at_any_point_of_an_install_or_rollback_leaves_the_store_before_or_after(folder, monkeypatch, call):
    opened, seeds = kit.make(folder, keep=2), [0]

    def install(survived):
        update = kit.update(opened.current(), kit.model(survived + 1))
        return lambda: opened.install(update)

    def check_install(survived, whole):
        seeds.append(kit.seed_of(opened.current()))
        assert seeds[-1] == survived + 1 or (not whole and seeds[-1] == seeds[-2])
        opened.verify()
        assert kit.seed_of(opened.current()) in seeds[-2:]
        assert kit.listing(folder) == kit.expected_listing([one["number"] for one in opened.status()["versions"]])

    assert crash_at_each(call, monkeypatch, install, check_install) > 0

    def rollback(survived):
        version = opened.version()
        opened.install(kit.update(opened.current(), kit.model(50 + survived)))
        seeds.extend([kit.seed_of(opened.current()), version])
        return opened.rollback

    def check_rollback(survived, whole):
        assert opened.version() == seeds[-1] or not whole
        assert kit.is_whole(opened.current())
        opened.verify()
        assert kit.listing(folder) == kit.expected_listing([one["number"] for one in opened.status()["versions"]])

    assert crash_at_each(call, monkeypatch, rollback, check_rollback) > 0


@pytest.mark.parametrize("call", ["fsync", "replace", "mkdir"])
def test_a_store_whose_making_was_cut_off_can_be_made_again(tmp_path, monkeypatch, call):
    source = tmp_path / "model.safetensors"
    files.write_model(source, kit.model(3))

    def begin(survived):
        return lambda: store.Store(tmp_path / f"{survived}").initialise(source)

    def check(survived, whole):
        opened = store.Store(tmp_path / f"{survived}")
        if not whole:
            try:
                opened.version()
            except errors.FileError:
                opened.initialise(source)
        assert kit.seed_of(opened.current()) == 3
        opened.verify()
        assert kit.listing(tmp_path / f"{survived}") == kit.expected_listing([1])

    assert crash_at_each(call, monkeypatch, begin, check) > 0
