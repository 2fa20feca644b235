"""Comparisons at their smallest: whole, killed and continued, shared, and extended."""

import csv
import shlex
import threading
import time

import jax
import numpy as np
import pytest

import run as entry
from experiments import compare, images, quickstart, runs
from experiments.results import Results, read
from tests.experiments.little import TIMES, Killed, little, without_times
from updcomp import methods, trees
from updcomp.edge import files
from updcomp.protocol import rounds as protocol_rounds
from updcomp.training import data
from updcomp.wire import container
from updcomp.wire.errors import Error


@pytest.fixture(scope="module")
def finished(tmp_path_factory, deliver_here):
    workdir = tmp_path_factory.mktemp("compare")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(protocol_rounds, "deliver", deliver_here)
        return workdir, quickstart.run(little(), workdir)


def test_a_run_leaves_rows_tables_reports_and_update_files(finished):
    workdir, rows = finished
    assert [(row.identity.method, row.identity.setting) for row in rows] == [
        ("full", {"bits": None}),
        ("subspace", {"rank": 2}),
        ("subspace", {"rank": 4}),
    ]
    sizes = {path.name: path.stat().st_size for path in (workdir / "updates").iterdir()}
    assert sizes == {f"{runs.file_name(row.identity)}.upd": row.metrics["update_bytes"] for row in rows}
    assert {path.name for path in workdir.iterdir()} == {
        "accuracy_vs_bytes.png",
        "config.json",
        "device",
        "report.html",
        "report.md",
        "results.csv",
        "results.jsonl",
        "updates",
    }
    assert [line["method"] for line in csv.DictReader((workdir / "results.csv").read_text().splitlines())] == [
        row.identity.method for row in rows
    ]
    assert "| subspace | rank=2 " in (workdir / "report.md").read_text()


def test_a_row_has_the_columns_that_are_documented(finished):
    _, (full, small, _) = finished
    assert set(full.metrics) == {
        *("update_bytes", "plain_bytes", "sent", "accuracy", "full_update_accuracy", "deployed_accuracy"),
        *("trained_accuracy", "validation_accuracy", "deployed_validation_accuracy", "samples", "restart", *TIMES),
    }
    assert full.identity.about == {"shift": "rotation"}
    assert small.metrics["full_update_accuracy"] == full.metrics["accuracy"]
    for row in (full, small):
        assert row.metrics["sent"] == (row.metrics["validation_accuracy"] > row.metrics["deployed_validation_accuracy"])
        assert row.metrics["samples"] == 100


def test_the_accuracy_is_that_of_the_file_applied_to_the_deployed_model(finished):
    workdir, rows = finished
    world = images.shifted(little())(0)
    like = world.init(jax.random.key(0))
    deployed = files.read_model(workdir / "device" / "deployed-seed0.safetensors").model
    for row in rows:
        update = (workdir / "updates" / f"{runs.file_name(row.identity)}.upd").read_bytes()
        model = trees.from_model(container.apply_update(update, deployed), like)
        logits, _ = images.load(little()).model.apply(model, data.to_float(world.test.images), train=False)
        hits = np.mean(np.argmax(np.asarray(logits), axis=-1) == world.test.labels)
        assert row.metrics["accuracy"] == pytest.approx(hits, abs=1e-6)


def test_a_second_start_finds_everything_done(finished, capsys, monkeypatch):
    workdir, rows = finished
    before = {name: (workdir / name).read_bytes() for name in ("results.jsonl", "report.md", "report.html")}
    monkeypatch.setattr(protocol_rounds, "run_round", None)
    monkeypatch.setattr(methods, "full", None)  # what the deployed model is trained with
    assert quickstart.run(little(), workdir) == rows
    assert {name: (workdir / name).read_bytes() for name in before} == before
    assert "| subspace " in capsys.readouterr().out


def test_a_killed_experiment_continues_and_ends_with_the_same_rows(finished, tmp_path, monkeypatch, deliver_here):
    delivered = []

    def die_in_the_second(*arguments, **options):
        delivered.append(arguments)
        if len(delivered) == 2:
            raise Killed
        return deliver_here(*arguments, **options)

    monkeypatch.setattr(protocol_rounds, "deliver", die_in_the_second)
    with pytest.raises(Killed):
        quickstart.run(little(), tmp_path)
    path = tmp_path / "results.jsonl"
    path.write_text(path.read_text() + '{"experiment": "quick')  # a row that was being written
    continued = quickstart.run(little(), tmp_path)
    assert len(delivered) == 4
    assert without_times(continued) == without_times(finished[1])


def test_the_command_of_the_report_makes_its_table_again_after_several_starts(finished, tmp_path, capsys):
    workdir, own = tmp_path / "first folder", tmp_path / "mine.py"
    own.write_text("from updcomp.methods import subspace\nMETHODS = {'thin': lambda: subspace(rank=1)}\n")
    quickstart.run(little(), workdir)
    quickstart.run(little(settings=(), settings_file=str(own)), workdir)
    rows = quickstart.run(little(settings=("subspace:rank=4:bits=4",), seeds=2), workdir)
    (line,) = [
        line for line in (workdir / "report.md").read_text().splitlines() if line.startswith("    python run.py")
    ]
    arguments = shlex.split(line)[2:]
    assert f"--workdir={workdir}" in arguments
    assert f"--settings_file={own}" in arguments
    assert f"<pre>{line.strip().split()[0]} run.py" in (workdir / "report.html").read_text()
    arguments[arguments.index(f"--workdir={workdir}")] = f"--workdir={tmp_path / 'second'}"
    assert entry.main(arguments) == 0
    again = {runs.file_name(row.identity) for row in read(tmp_path / "second" / "results.jsonl")}
    # One command gives every seed what any of them had.
    assert again == {runs.file_name(row.identity._replace(seed=seed)) for row in rows for seed in range(2)}


def test_what_another_process_does_comes_last(tmp_path):
    locks = {name: tmp_path / name for name in "abc"}
    done = []
    with runs.alone(locks["a"], wait=False) as held:
        assert held
        work = runs.shared("abc", locks.__getitem__)
        done += [next(work), next(work)]
        waiting = threading.Thread(target=lambda: done.extend(work))
        waiting.start()
        time.sleep(0.2)
        assert done == ["b", "c"]
    waiting.join(10)
    assert done == ["b", "c", "a"]


def test_processes_share_the_cells_of_a_comparison(finished, tmp_path, monkeypatch):
    """Another process has the first cell after the reference, and ends it once this one has done the last."""
    rows = {row.identity.setting.get("rank"): row for row in finished[1]}
    busy = runs.alone(tmp_path / "device" / f"{runs.file_name(rows[2].identity)}.lock", wait=False)
    results = Results(tmp_path, "quickstart", little())
    results.claim()
    append = Results.append

    def appended(self, row):
        append(self, row)
        if row.identity.setting == {"rank": 4}:
            append(self, rows[2])
            busy.__exit__(None, None, None)

    monkeypatch.setattr(Results, "append", appended)
    assert busy.__enter__()
    found = quickstart.run(little(), tmp_path)
    assert [row.identity.setting.get("rank") for row in found] == [None, 4, 2]
    assert found[2] == rows[2]


def worse(key, deployed, task):
    packet = methods.full(bits=8)(key, deployed, task._replace(learning_rate=0.0))
    return packet._replace(blocks={name: block for name, block in packet.blocks.items() if "kernel" in name})


def test_an_update_that_is_given_up_is_marked_in_its_row_and_the_table(tmp_path, capsys):
    rows = compare.run(
        little(settings=("worse",)),
        tmp_path,
        experiment="quickstart",
        factories={**methods.METHODS, "worse": lambda: worse},
    )
    assert [row.metrics["sent"] for row in rows] == [True, False]
    assert rows[1].metrics["accuracy"] == rows[1].metrics["deployed_accuracy"]
    assert (rows[1].metrics["plain_bytes"], rows[1].metrics["update_bytes"] <= 64) == (0, True)
    (line,) = [line for line in capsys.readouterr().out.splitlines() if "| worse" in line]
    assert line.split("|")[6].strip() == "0/1"


def test_several_devices_give_the_same_updates(finished, tmp_path):
    (row,) = quickstart.run(little(devices=2, settings=("full:bits=none",)), tmp_path)
    for metric in ("accuracy", "deployed_accuracy"):
        assert row.metrics[metric] == pytest.approx(finished[1][0].metrics[metric], abs=0.03)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"samples": 20},
            "--samples: expected at least --batch_size=50 samples to train on, found 20; use more samples",
        ),
        ({"pretrain_samples": 40}, "--pretrain_samples: expected at least --batch_size=50"),
        (
            {"pretrain_samples": 60, "shift": "classes:share=0.1"},
            "--pretrain_samples: expected at least --batch_size=50",
        ),
        ({"shift": "classes:share=0"}, "--shift: classes: share: expected above 0 and at most 1, found 0"),
        ({"samples": 5000}, "split: expected counts of together at most 1198"),
        ({"settings": ("low_rank:rank=0",)}, "--settings: low_rank: rank"),
    ],
)
def test_what_does_not_fit_is_reported_before_anything_is_trained_or_written(options, message, tmp_path, monkeypatch):
    monkeypatch.setattr(methods, "full", None)
    with pytest.raises(Error, match=message):
        quickstart.run(little(**options), tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_settings_are_checked_before_data_are_loaded(tmp_path, monkeypatch):
    monkeypatch.setattr(images.data, "load", None)
    with pytest.raises(Error, match="--settings: expected a method"):
        quickstart.run(little(settings=("best",)), tmp_path)
