"""Rows on disk and as tables, and the folder that belongs to their settings."""

import csv
import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import pytest

from experiments import results
from experiments.config import Settings, added, anything, command, setting
from experiments.results import Identity, Results, Row
from updcomp.wire.errors import Error

ROOT = Path(__file__).parents[2]


@dataclasses.dataclass(frozen=True)
class Config(Settings):
    """Settings of every kind."""

    epochs: int = setting(3, "how long")
    seeds: int = setting(1, "how many", later=anything)
    settings: tuple[str, ...] = setting((), "which", later=anything)
    settings_file: str | None = setting(None, "where", later=added)


def row(seed=0, accuracy=0.9, **options):
    identity = Identity("compare", "digits", "mlp", {"shift": "rotation"}, "low_rank", options, seed, 0)
    return Row(identity, {"update_bytes": 10, "accuracy": accuracy, "full_update_accuracy": None, "sent": True})


def opened(workdir, **options):
    found = Results(workdir, "compare", Config(**options))
    found.claim()
    return found


def test_rows_survive_a_new_process_and_a_line_is_flat(tmp_path):
    opened(tmp_path).append(row(rank=4, aux=None))
    again = opened(tmp_path)
    assert again.rows == [row(rank=4, aux=None)]
    assert again.find(row(rank=4, aux=None).identity) == row(rank=4, aux=None)
    assert again.find(row(rank=4).identity) is None
    assert again.find(row(seed=1, rank=4, aux=None).identity) is None
    line = json.loads((tmp_path / "results.jsonl").read_text())
    assert line["setting"] == {"rank": 4, "aux": None}
    assert (line["method"], line["seed"], line["accuracy"], line["sent"]) == ("low_rank", 0, 0.9, True)


def test_a_row_that_was_being_written_does_not_count_and_goes(tmp_path):
    found = opened(tmp_path)
    found.append(row(rank=1))
    path = tmp_path / "results.jsonl"
    path.write_text(path.read_text() + '{"experiment": "comp')
    assert found.rows == [row(rank=1)]
    found.append(row(rank=2))
    assert found.rows == [row(rank=1), row(rank=2)]


@pytest.mark.parametrize("text", ["no json\n", "[]\n", '{"experiment": "compare"}\n', "3\n"])
def test_rows_of_another_version_are_refused(text, tmp_path):
    (tmp_path / "results.jsonl").write_text(text)
    with pytest.raises(Error, match=r"results.jsonl: expected one row of this version per line.*another --workdir"):
        _ = opened(tmp_path).rows


def test_rows_about_other_data_are_refused(tmp_path):
    found = opened(tmp_path)
    found.append(row(rank=1))
    with pytest.raises(Error, match="expected rows about the same data, {'shift': 'classes'}, found {'shift': 'rota"):
        found.find(row(rank=1).identity._replace(about={"shift": "classes"}))


APPENDING = """
import pathlib, sys
from experiments.config import Settings
from experiments.results import Identity, Results, Row
found = Results(pathlib.Path(sys.argv[1]), "compare", Settings())
found.claim()
for rank in range(20):
    identity = Identity("compare", "digits", "mlp", {}, "low_rank", {"rank": rank}, int(sys.argv[2]), 0)
    found.append(Row(identity, {"accuracy": 0.5}))
"""


def test_processes_share_a_folder(tmp_path):
    commands = ([sys.executable, "-c", APPENDING, str(tmp_path), str(seed)] for seed in range(2))
    processes = [subprocess.Popen(command, cwd=ROOT) for command in commands]
    assert [process.wait() for process in processes] == [0, 0]
    rows = results.read(tmp_path / "results.jsonl")
    assert sorted((r.identity.seed, r.identity.setting["rank"]) for r in rows) == [
        (seed, rank) for seed in range(2) for rank in range(20)
    ]
    assert (tmp_path / "results.csv").read_text() == results.to_csv(rows)


def test_a_folder_belongs_to_its_settings(tmp_path):
    opened(tmp_path, epochs=2)
    opened(tmp_path, epochs=2, seeds=5, settings=("low_rank:rank=1",))
    with pytest.raises(Error, match=r"--epochs: expected 2 as in .*config.json, found 3; give the same flags"):
        Results(tmp_path, "compare", Config())
    with pytest.raises(Error, match="--experiment: expected 'compare' as in"):
        Results(tmp_path, "quickstart", Config(epochs=2))


def test_a_settings_file_is_kept_and_may_not_be_exchanged(tmp_path):
    opened(tmp_path)
    opened(tmp_path, settings_file="one.py")
    assert opened(tmp_path).settings["settings_file"] == "one.py"
    with pytest.raises(Error, match="--settings_file: expected 'one.py' as in"):
        opened(tmp_path, settings_file="two.py")


def test_opening_a_folder_writes_nothing(tmp_path):
    Results(tmp_path / "new", "compare", Config())
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("text", ["{", "3"])
def test_a_damaged_config_is_refused(text, tmp_path):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(Error, match="config.json: expected the settings as JSON, found something else"):
        Results(tmp_path, "compare", Config())


def test_a_folder_that_cannot_be_made_is_reported(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(Error, match="--workdir: .*file/folder: cannot make this folder: Not a directory"):
        opened(tmp_path / "file" / "folder")


def test_the_csv_has_one_column_for_every_option_and_metric(tmp_path):
    found = opened(tmp_path)
    for one in (row(rank=4, bits=None), row(ratio=0.1)):
        found.append(one)
    table = list(csv.DictReader((tmp_path / "results.csv").read_text().splitlines()))
    assert list(table[0])[:5] == ["experiment", "dataset", "model", "method", "setting"]
    assert [line["setting"] for line in table] == ["rank=4 bits=None", "ratio=0.1"]
    assert [line["setting_rank"] for line in table] == ["4", ""]
    assert [line["setting_ratio"] for line in table] == ["", "0.1"]
    assert [line["about_shift"] for line in table] == ["rotation"] * 2
    assert [float(line["accuracy"]) for line in table] == [0.9, 0.9]
    assert table[0]["full_update_accuracy"] == ""


def test_the_frame_has_the_same_columns(tmp_path):
    pandas = pytest.importorskip("pandas", reason="pandas is not installed: pip install pandas")
    found = opened(tmp_path)
    for seed in range(2):
        found.append(row(seed=seed, accuracy=0.8 + 0.1 * seed, rank=4))
    frame = results.frame(tmp_path)
    assert list(frame.columns) == list(results.flat(found.rows)[0])
    assert frame.groupby(["method", "setting"]).accuracy.mean().iloc[0] == pytest.approx(0.85)
    assert pandas.api.types.is_float_dtype(frame.accuracy)


def test_without_pandas_the_frame_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(Error, match="expected pandas, found it not installed; pip install pandas"):
        results.frame(tmp_path)


def test_a_frame_of_nothing_is_refused(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pandas", pytest)  # any module: it is not used
    with pytest.raises(Error, match=r"expected rows in results.jsonl, found none; run an experiment"):
        results.frame(tmp_path)


def test_the_command_has_every_flag_that_is_not_at_its_default():
    given = Config(epochs=5, settings=("low_rank:rank=1,2", "full"))
    assert command("compare", given, "some folder") == (
        "python run.py --experiment=compare '--workdir=some folder' --epochs=5 '--settings=low_rank:rank=1,2;full'"
    )


@pytest.mark.parametrize(("name", "value"), [("epochs", 0), ("seeds", -1)])
def test_counts_below_one_are_refused(name, value):
    with pytest.raises(Error, match=f"--{name}: expected at least 1, found {value}"):
        Config(**{name: value})
