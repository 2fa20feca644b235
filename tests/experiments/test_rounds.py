"""The rounds experiment on a little data, killed and continued, and what it writes."""

import itertools
import json

import numpy as np
import pytest

from experiments import rounds, rounds_report
from experiments.results import Row
from tests.experiments.test_compare import Killed, flags, run, without_times
from updcomp import protocol
from updcomp.edge import files, store

LITTLE = {
    "dataset": "digits",
    "initial_samples": 60,
    "step_samples": 60,
    "validation_samples": 200,
    "rounds": 4,
    "epochs": 2,
    "batch_size": 30,
    "ratio": 0.02,
}
METHODS = ("fu", "dpu", "pruning")


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("rounds")
    return workdir, run("--experiment=rounds", f"--workdir={workdir}", *flags(**LITTLE, methods=METHODS))


def rows_of(workdir):
    return [Row(**json.loads(line)) for line in (workdir / "results.jsonl").read_text().splitlines()]


def test_the_entry_point_leaves_rows_report_plot_and_a_chain_of_files(finished, tmp_path):
    workdir, done = finished
    assert done.returncode == 0, done.stderr
    rows = rows_of(workdir)
    assert [(row.method, row.round) for row in rows] == [(name, number) for name in METHODS for number in range(4)]
    assert [row.samples for row in rows[:4]] == [60, 120, 180, 240]
    assert (workdir / "accuracy_over_rounds.png").stat().st_size > 10_000
    assert done.stdout.strip() in (workdir / "report.md").read_text() + done.stdout
    for name in METHODS:
        device = store.Store(tmp_path / name)
        device.initialise(workdir / "device" / f"{name}-seed0.safetensors")
        for row in (row for row in rows if row.method == name):
            update = workdir / "updates" / f"{name}-seed0" / f"round-{row.round:03}.upd"
            assert update.stat().st_size == row.update_bytes
            device.install(update.read_bytes())
        held = files.read_model(workdir / "device" / f"{name}-seed0-held.safetensors").model
        assert all(device.current()[leaf].tobytes() == held[leaf].tobytes() for leaf in held)


def test_rows_tell_what_the_device_held_and_what_training_gave(finished):
    rows = rows_of(finished[0])
    for before, after in itertools.pairwise(rows):
        if before.method == after.method:
            assert after.deployed_accuracy == before.accuracy
            assert after.validation_accuracy >= before.validation_accuracy
        assert after.sent == (after.validation_accuracy > after.deployed_validation_accuracy)
        assert after.accuracy == (after.trained_accuracy if after.sent else after.deployed_accuracy)
        assert (after.plain_bytes > 0) == after.sent


def test_more_rounds_seeds_and_methods_may_be_added_and_other_settings_not(finished):
    workdir, _ = finished
    before = (workdir / "results.jsonl").read_bytes()
    more = {**LITTLE, "rounds": 5, "methods": ("dpu", "rpu")}
    done = run("--experiment=rounds", f"--workdir={workdir}", *flags(**more))
    assert done.returncode == 0, done.stderr
    after = (workdir / "results.jsonl").read_bytes()
    assert after.startswith(before)
    added = [(row.method, row.round) for row in rows_of(workdir)[12:]]
    assert added == [("dpu", 4), *(("rpu", number) for number in range(5))]
    refused = run("--experiment=rounds", f"--workdir={workdir}", *flags(**{**more, "ratio": 0.03}))
    assert refused.returncode == 2
    assert "--ratio: expected 0.02 as in" in refused.stderr
    assert (workdir / "results.jsonl").read_bytes() == after


@pytest.mark.parametrize("delivered_before", [2, 6])
def test_a_killed_experiment_continues_and_ends_with_the_same_rows(finished, tmp_path, monkeypatch, delivered_before):
    config = rounds.Config(**LITTLE, methods=("fu", "dpu"))
    deliver, delivered = protocol.deliver, []

    def die(*arguments, **options):
        delivered.append(arguments)
        if len(delivered) > delivered_before:
            deliver(*arguments, **options)  # the files are there, the row is not
            raise Killed
        return deliver(*arguments, **options)

    monkeypatch.setattr(protocol, "deliver", die)
    with pytest.raises(Killed):
        rounds.run(config, tmp_path)
    monkeypatch.undo()
    continued = rounds.run(config, tmp_path)
    whole = [row for row in rows_of(finished[0])[:12] if row.method in config.methods and row.round < 4]
    assert without_times(continued) == without_times(whole[:8])


def test_the_variants_of_the_paper_all_run(tmp_path):
    config = rounds.Config(**{**LITTLE, "rounds": 2, "epochs": 1, "ratio": 0.3}, methods=tuple(rounds.VARIANTS))
    rows = rounds.run(config, tmp_path)
    assert {row.method for row in rows} == set(rounds.VARIANTS)
    assert all(np.isfinite(row.accuracy) for row in rows)
    restarts = {row.method: row.restart for row in rows if row.round == 1}
    assert restarts == {name: variant.restart == "always" for name, variant in rounds.VARIANTS.items()}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--ratio=0"], "ratio: expected above 0 and at most 1, found 0.0"),
        (["--ratio=1.5"], "ratio: expected above 0 and at most 1, found 1.5"),
        (["--initial_samples=20"], "--initial_samples: expected at least --batch_size=30, found 20"),
        (["--rounds=99"], "rounds: expected at most 19: 60 samples and 60 more each round of 1198 in all; found 99"),
        (["--validation_samples=600"], "--validation_samples: expected less than the 599 test images, found 600"),
        (["--methods=best"], "--methods: expected some of fu, "),
        (["--aux=5"], "aux: expected one of"),
        (["--bits=17"], "bits"),
        (["--sparse_rate=0"], "--sparse_rate: expected above 0"),
        (["--shift=rotation"], "--shift: rounds does not read it"),
    ],
    ids=lambda value: None if isinstance(value, str) else " ".join(value),
)
def test_wrong_flags_are_one_line_and_write_nothing(arguments, message, tmp_path):
    done = run("--experiment=rounds", f"--workdir={tmp_path / 'new'}", *flags(**LITTLE), *arguments)
    assert done.returncode == 2, done.stderr
    assert done.stderr.count("\n") == 1
    assert message in done.stderr
    assert not (tmp_path / "new").exists()


def row(method, seed, number, accuracy, *, sent=True, trained=None):
    values = (100, accuracy, None, 0.5, 1.0, 0.1, 0.2, 0.9, 0.5, 1000, False, sent)
    trained = accuracy if trained is None else trained
    return Row("rounds", "mnist", "mlp", method, "k", seed, number, *values, trained, 400)


def test_the_table_pairs_seeds_and_rounds():
    rows = [row("fu", seed, number, 0.9 + 0.01 * number) for seed in range(2) for number in range(3)]
    rows += [row("dpu", seed, number, 0.88 + 0.01 * number + 0.01 * seed) for seed in range(2) for number in range(2)]
    rows += [row("rpu", 0, 5, 0.5, sent=False, trained=0.4)]
    full, dpu, rpu = rounds_report.summarise(rows)
    np.testing.assert_allclose(full.difference, [0, 0], atol=1e-12)
    np.testing.assert_allclose(dpu.difference, [-2, -1])
    np.testing.assert_allclose(dpu.accuracy, [88.5, 89.5])
    assert (dpu.update_bytes, dpu.plain_bytes, dpu.sent, dpu.published) == (200, 800, 2, -0.17)
    assert (len(rpu.difference), rpu.sent) == (0, 0)
    assert "-1.50 ± 0.71" in rounds_report.table([dpu])
