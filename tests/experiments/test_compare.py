"""The real entry point on a little data, killed and continued, and what it writes."""

import dataclasses
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from experiments import bench_train, compare, quickstart, report, worlds
from experiments.results import Results, Row
from updcomp import protocol

ROOT = Path(__file__).parents[2]
LITTLE = {
    "pretrain_samples": 300,
    "samples": 100,
    "validation_samples": 50,
    "pretrain_epochs": 4,
    "epochs": 2,
    "seeds": 1,
    "methods": ("subspace",),
}
TIMES = ("train_seconds", "encode_seconds", "apply_seconds")


def flags(**settings):
    return [f"--{name}={','.join(value) if isinstance(value, tuple) else value}" for name, value in settings.items()]


def run(*arguments):
    command = [sys.executable, str(ROOT / "run.py"), *arguments]
    return subprocess.run(
        command, capture_output=True, text=True, env={**os.environ, "JAX_PLATFORMS": "cpu"}, check=False
    )


def without_times(rows):
    return [{name: value for name, value in row._asdict().items() if name not in TIMES} for row in rows]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("quickstart")
    return workdir, run(f"--workdir={workdir}", *flags(**LITTLE))


def test_the_entry_point_leaves_rows_report_plot_and_update_files(finished):
    workdir, done = finished
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in (workdir / "results.jsonl").read_text().splitlines()]
    assert set(rows[0]) == set(Row._fields)
    assert len(rows) == 1 + 5
    assert rows[0]["method"] == "full"
    assert (workdir / "accuracy_vs_bytes.png").stat().st_size > 10_000
    sizes = sorted(path.stat().st_size for path in (workdir / "updates").iterdir())
    assert sizes == sorted(row["update_bytes"] for row in rows)
    assert "| subspace" in done.stdout
    assert re.search(r"bytes instead of .* keep .* % of the full update's gain", done.stdout)
    assert "accuracy_vs_bytes.png" in (workdir / "report.md").read_text()


def test_a_second_start_finds_everything_done(finished):
    workdir, first = finished
    before = (workdir / "results.jsonl").read_bytes()
    again = run(f"--workdir={workdir}", *flags(**LITTLE))
    assert again.returncode == 0
    assert again.stdout == first.stdout
    assert (workdir / "results.jsonl").read_bytes() == before


def test_other_flags_in_the_same_folder_are_refused(finished):
    workdir, _ = finished
    done = run(f"--workdir={workdir}", *flags(**{**LITTLE, "epochs": 3}))
    assert done.returncode == 2
    assert "--epochs: expected 2" in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--experiment=nope"], "expected one of quickstart, compare, rounds, bench_train"),
        (["--methods=best"], "--methods: expected some of full, partial"),
        (["--shift=flood"], "--shift: expected one of rotation"),
        (["--model=brain"], "model: expected one of mlp"),
        (["--experiment=bench_wire", "--epochs=3"], "--epochs: bench_wire does not read it"),
        (["--samples=5000"], "split"),
        (["--samples=20"], "batch_size"),
        (["--dataset=mnist", "--data_dir=/nonexistent"], "mnist"),
        (["quickstart"], "expected flags only"),
        (["--epochs=abc"], "--epochs"),
        (["--no_such_flag=1"], "no_such_flag"),
        (["--batch_size=0"], "--batch_size: expected at least 1"),
        (["--optimizer=lion"], "--optimizer: expected one of adam, sgd"),
        (["--schedule=never"], "--schedule: expected one of tenth"),
        (["--seeds=0"], "--seeds: expected at least 1"),
        (["--devices=99"], "--devices: expected at most"),
        (["--workdir=/proc/nothing"], "--workdir: /proc/nothing"),
    ],
    ids=lambda value: None if isinstance(value, str) else " ".join(value),
)
def test_wrong_flags_are_one_line_and_exit_status_2(arguments, message, tmp_path):
    done = run(f"--workdir={tmp_path}", *arguments)
    assert done.returncode == 2, done.stderr
    lines = [line for line in done.stderr.splitlines() if line.startswith("updcomp: error: ")]
    assert len(lines) == 1
    assert message in lines[0]
    assert "Traceback" not in done.stderr


def test_a_wrong_flag_does_not_lock_the_folder(tmp_path):
    assert run(f"--workdir={tmp_path}", "--shift=flood").returncode == 2
    assert not (tmp_path / "config.json").exists()


def test_help_names_every_flag_of_every_group():
    done = run("--help")
    assert done.returncode == 0
    for name in (*(field.name for field in dataclasses.fields(quickstart.Config)), "experiment", "workdir"):
        assert f"--{name}" in done.stdout
    assert "Model and training:" in done.stdout


class Killed(Exception):
    pass


def test_a_killed_experiment_continues_and_ends_with_the_same_rows(tmp_path, monkeypatch):
    config, settings = quickstart.Config(**LITTLE), {"subspace": [{"rank": 4}, {"rank": 8}]}
    whole = compare.run(config, tmp_path / "whole", settings=settings)
    deliver, delivered = protocol.deliver, []

    def die_in_the_third(*arguments, **options):
        delivered.append(arguments)
        if len(delivered) == 3:
            raise Killed
        return deliver(*arguments, **options)

    monkeypatch.setattr(protocol, "deliver", die_in_the_third)
    with pytest.raises(Killed):
        compare.run(config, tmp_path / "killed", settings=settings)
    rows = tmp_path / "killed" / "results.jsonl"
    rows.write_text(rows.read_text() + '{"experiment": "quick')  # a row that was being written
    continued = compare.run(config, tmp_path / "killed", settings=settings)
    assert without_times(continued) == without_times(whole)


def test_the_deployed_model_is_trained_once(tmp_path, monkeypatch):
    config = quickstart.Config(**{**LITTLE, "methods": ()})
    quickstart.run(config, tmp_path)
    monkeypatch.setattr(worlds, "fit", None)
    assert (tmp_path / "checkpoints" / "deployed-0").is_dir()
    assert len(quickstart.run(config, tmp_path)) == 1


@pytest.mark.parametrize(("shift", "model"), [("classes", "mlp"), ("contrast_noise", "cnn")])
def test_other_worlds_run(shift, model, tmp_path):
    config = quickstart.Config(**{**LITTLE, "methods": ("low_rank",)}, shift=shift, model=model, devices=2)
    rows = compare.run(config, tmp_path, settings={"low_rank": [{"rank": 1}]})
    assert [row.method for row in rows] == ["full", "low_rank"]
    assert all(0 <= row.accuracy <= 1 for row in rows)


def row(method, setting, seed, update_bytes, accuracy, validation=0.9):
    measured = (update_bytes, accuracy, 0.9, 0.5, 1.0, 0.1, 0.2, validation, 0.5)
    return Row("quickstart", "digits", "mlp", method, setting, seed, 0, *measured, 500, False, True, accuracy, 1000)


def test_the_conclusion_is_chosen_on_validation_data_and_told_in_test_accuracy():
    rows = [row("full", "bits=None", seed, 1_000_000, 0.9) for seed in range(2)]
    rows += [row("tiny", "a", seed, 50, 0.95, validation=0.8) for seed in range(2)]
    rows += [row("small", "b", seed, 500, 0.86 + 0.02 * seed) for seed in range(2)]
    summaries = report.summarise(rows)
    assert [summary.method for summary in summaries] == ["tiny", "small", "full"]
    assert summaries[1].kept == pytest.approx(0.925)
    assert summaries[1].spread == pytest.approx(np.std([0.86, 0.88], ddof=1))
    sentence = report.conclusion(rows, summaries)
    assert sentence.startswith("500 bytes instead of 1,000,000 (2,000 times fewer) keep 92 % of the full update's gain")


def test_rows_survive_a_new_process(tmp_path):
    config = quickstart.Config()
    Results(tmp_path, config).append(row("full", "bits=None", 0, 10, 0.9))
    again = Results(tmp_path, config)
    assert again.find("full", "bits=None", 0) == row("full", "bits=None", 0, 10, 0.9)
    assert again.find("full", "bits=None", 1) is None


def test_the_training_benchmark_measures_every_variant(tmp_path):
    figures = bench_train.run(bench_train.Config(samples=256, epochs=1, repeats=1), tmp_path)
    speeds = figures["samples_per_second"]
    assert {"updcomp plain", "updcomp recording", "updcomp masked"} <= set(speeds)
    assert json.loads((tmp_path / "bench_train.json").read_text()) == figures
