"""The rounds experiment on a little data, killed and continued, and what it writes."""

import itertools
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import rounds, rounds_report
from experiments.results import Row
from tests.experiments.test_compare import Killed, flags, run, without_times
from updcomp import protocol
from updcomp.edge import files, store
from updcomp.training import data, loop, models
from updcomp.wire.errors import Error

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
    assert done.stdout.split("\n\n")[0] in (workdir / "report.md").read_text()
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


def test_more_rounds_seeds_and_methods_may_be_added_and_other_settings_not(finished, tmp_path):
    workdir = tmp_path / "more"
    shutil.copytree(finished[0], workdir)
    before = (workdir / "results.jsonl").read_bytes()
    more = {**LITTLE, "rounds": 5, "methods": ("dpu", "rpu")}
    done = run("--experiment=rounds", f"--workdir={workdir}", *flags(**more))
    assert done.returncode == 0, done.stderr
    after = (workdir / "results.jsonl").read_bytes()
    assert after.startswith(before)
    added = [(row.method, row.round) for row in rows_of(workdir)[12:]]
    assert added == [("dpu", 4), *(("rpu", number) for number in range(5))]
    assert "--rounds=5" in (workdir / "report.md").read_text()
    refused = run("--experiment=rounds", f"--workdir={workdir}", *flags(**{**more, "ratio": 0.03}))
    assert refused.returncode == 2
    assert "--ratio: expected 0.02 as in" in refused.stderr
    assert (workdir / "results.jsonl").read_bytes() == after


def test_a_killed_experiment_continues_and_ends_with_the_same_rows(finished, tmp_path, monkeypatch):
    config = rounds.Config(**LITTLE, methods=("fu", "dpu"))
    deliver, delivered = protocol.deliver, []

    def die(*arguments, **options):
        delivered.append(arguments)
        if len(delivered) == 7:
            deliver(*arguments, **options)  # the files are there, the row is not
            raise Killed
        return deliver(*arguments, **options)

    monkeypatch.setattr(protocol, "deliver", die)
    with pytest.raises(Killed):
        rounds.run(config, tmp_path)
    monkeypatch.undo()
    continued = rounds.run(config, tmp_path)
    whole = rows_of(finished[0])[:8]
    assert without_times(continued) == without_times(whole)


def test_trainings_that_were_killed_go_on_from_their_own_checkpoints(tmp_path, monkeypatch):
    """Iterative rewinding has many trainings a round, all of the same plan; each must find its own state only."""
    config = rounds.Config(**{**LITTLE, "rounds": 2, "ratio": 0.4}, methods=("iterative",))
    whole = rounds.run(config, tmp_path / "whole")
    monkeypatch.setattr(loop, "SECONDS_BETWEEN_CHECKPOINTS", 0.0)
    save = loop.Checkpoints.save
    for kill_after in (4, 5, 5):  # epochs from each start: in the third training, then in later ones of both rounds
        saved = []

        def die(self, step, state, saved=saved, kill_after=kill_after):
            save(self, step, state)
            saved.append(step)
            if len(saved) == kill_after:
                raise Killed

        monkeypatch.setattr(loop.Checkpoints, "save", die)
        with pytest.raises(Killed):
            rounds.run(config, tmp_path / "killed")
    monkeypatch.setattr(loop.Checkpoints, "save", save)
    assert without_times(rounds.run(config, tmp_path / "killed")) == without_times(whole)


def test_a_folder_belongs_to_its_settings_before_anything_is_trained(tmp_path, monkeypatch):
    monkeypatch.setattr(protocol, "run_rounds", None)
    with pytest.raises(TypeError):
        rounds.run(rounds.Config(**LITTLE), tmp_path)
    with pytest.raises(Error, match="--epochs: expected 2 as in"):
        rounds.run(rounds.Config(**{**LITTLE, "epochs": 3}), tmp_path)


def test_a_resumed_device_keeps_its_first_model(finished, tmp_path, monkeypatch):
    """Another machine may make other weights of a seed; the update files start from the ones that are there."""
    shutil.copytree(finished[0], tmp_path / "moved")
    other = models.mlp().init(jax.random.key(9), jnp.ones((1, 8, 8, 1)))
    monkeypatch.setattr(rounds._Series, "_fresh", lambda self, key: other)
    before = (tmp_path / "moved" / "device" / "dpu-seed0.safetensors").read_bytes()
    rows = rounds.run(rounds.Config(**{**LITTLE, "rounds": 5}, methods=("dpu",)), tmp_path / "moved")
    assert rows[-1].round == 4
    assert (tmp_path / "moved" / "device" / "dpu-seed0.safetensors").read_bytes() == before


def test_rows_with_a_gap_are_refused(finished, tmp_path):
    shutil.copytree(finished[0], tmp_path / "gap")
    path = tmp_path / "gap" / "results.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(lines[:1] + lines[2:]))
    with pytest.raises(Error, match="expected the rounds of fu with seed 0 one after another, found 0, 2, 3"):
        rounds.run(rounds.Config(**LITTLE, methods=("fu",)), tmp_path / "gap")


def test_the_same_rounds_run_once_at_a_time(tmp_path, monkeypatch):
    started = rounds._Series(config := rounds.Config(**LITTLE), tmp_path, data.load("digits"))
    (tmp_path / "device" / "fu-seed0.lock").touch()
    with rounds._alone(tmp_path / "device" / "fu-seed0.lock"):
        started.start(0)
        with pytest.raises(Error, match="fu-seed0: expected to run it alone"):
            next(started.rounds("fu"))
    assert next(started.rounds("fu")) == 0
    assert config.rounds == 4


def test_the_variants_of_the_paper_all_run(tmp_path):
    settings = {**LITTLE, "rounds": 2, "epochs": 1, "ratio": 0.3, "aux": 0, "devices": 2}
    config = rounds.Config(**settings, methods=tuple(rounds.VARIANTS))
    rows = rounds.run(config, tmp_path)
    assert {row.method for row in rows} == set(rounds.VARIANTS)
    assert all(np.isfinite(row.accuracy) for row in rows)
    assert {row.method for row in rows if row.restart and row.round == 1} <= {"pruning", "pruning_gradual"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--ratio=0"], "ratio: expected above 0 and at most 1, found 0.0"),
        (["--methods=fu", "--ratio=1.5"], "ratio: expected above 0 and at most 1, found 1.5"),
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
    return Row("rounds", "mnist", "mlp", method, "ratio=0.005 bits=16", seed, number, *values, trained, 400)


def test_the_table_pairs_seeds_and_rounds():
    rows = [row("fu", seed, number, 0.9 + 0.01 * number) for seed in range(2) for number in range(3)]
    rows += [row("dpu", seed, number, 0.88 + 0.01 * number + 0.01 * seed) for seed in range(2) for number in range(2)]
    rows += [row("rpu", 0, 5, 0.5, sent=False, trained=0.4)]
    rows += [row("gcpu", 0, 0, 0.9), row("gcpu", 1, 0, 0.9), row("gcpu", 0, 1, 0.1)]  # seed 0 is a round ahead
    full, dpu, rpu, gcpu = rounds_report.summarise(rows)
    assert (gcpu.rounds, gcpu.accuracy.tolist()) == (1, [90, 90])
    np.testing.assert_allclose(full.difference, [0, 0], atol=1e-12)
    np.testing.assert_allclose(dpu.difference, [-2, -1])
    np.testing.assert_allclose(dpu.accuracy, [88.5, 89.5])
    assert (dpu.update_bytes, dpu.plain_bytes, dpu.sent, dpu.published) == (200, 800, 2, -0.17)
    assert (len(rpu.difference), rpu.sent) == (0, 0)
    assert "-1.50 ± 0.71" in rounds_report.table([dpu])
