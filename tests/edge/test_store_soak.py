import functools
import json
import subprocess
import sys

import pytest

from tests.edge import store_kit as kit
from tests.edge import store_soak
from updcomp.edge import ledger


def test_a_few_kills_break_nothing(tmp_path):
    """In a process of its own, since it forks; with more kills it is a program."""
    command = [sys.executable, "-m", "tests.edge.store_soak", "--kills=20", "--seed=1", f"--folder={tmp_path}"]
    found = subprocess.run(command, check=True, stdout=subprocess.PIPE)
    figures = json.loads(found.stdout)
    assert figures["kills"] == 20
    assert figures["done: read"] > 20
    assert figures["updates found again in the state"] > 5


def test_it_finds_what_is_broken(tmp_path):
    """A lost version, a number given twice and a file left lying about are noticed."""
    opened = kit.make(tmp_path / "store")
    opened.install(kit.update(0, 1))
    identity = next(iter(ledger.load(tmp_path / "store").seen))
    check = functools.partial(check_told, tmp_path / "store", {2: identity})
    check(f"done\tinstall\t2\t{identity}")
    with pytest.raises(store_soak.BrokenError, match="version 3 is lost"):
        check(f"done\tinstall\t3\t{identity}")
    with pytest.raises(store_soak.BrokenError, match="two updates are version 2"):
        check(f"done\tinstall\t2\t{identity[::-1]}")
    with pytest.raises(store_soak.BrokenError, match="something"):
        check("broken\tsomething")
    (tmp_path / "store" / "left").touch()
    with pytest.raises(store_soak.BrokenError, match="left"):
        store_soak.check_folder(tmp_path / "store", opened)


def check_told(folder, numbers, line):
    told = store_soak.Told(folder)
    told.numbers.update(numbers)
    told.take([line])
    told.check()
