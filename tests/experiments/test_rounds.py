"""The rounds experiment at its smallest: whole, killed and continued, shared, and extended."""

import itertools
import shutil
import threading
import time

import jax
import jax.numpy as jnp
import pytest

from experiments import images, rounds, rounds_report, runs
from experiments.results import Results, read
from tests.experiments.little import Killed, little_rounds, without_times
from updcomp import methods, protocol
from updcomp.edge import files, store
from updcomp.protocol import rounds as protocol_rounds
from updcomp.training import checkpoints, loop, models
from updcomp.wire.errors import Error, NonFiniteError
from updcomp.wire.packet import Packet

METHODS = ("fu", "dpu", "pruning")


@pytest.fixture(scope="module")
def finished(tmp_path_factory, deliver_here):
    workdir = tmp_path_factory.mktemp("rounds")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(protocol_rounds, "deliver", deliver_here)
        return workdir, rounds.run(little_rounds(), workdir)


def test_a_run_leaves_rows_reports_and_a_chain_of_files(finished, tmp_path):
    workdir, rows = finished
    assert [(row.identity.method, row.identity.round) for row in rows] == list(itertools.product(METHODS, range(4)))
    assert [row.metrics["samples"] for row in rows[:4]] == [60, 120, 180, 240]
    assert {"accuracy_over_rounds.png", "report.md", "report.html", "results.csv"} <= {
        path.name for path in workdir.iterdir()
    }
    for name in METHODS:
        device = store.Store(tmp_path / name)
        device.initialise(workdir / "device" / f"{name}-seed0.safetensors")
        for row in (row for row in rows if row.identity.method == name):
            update = workdir / "updates" / f"{name}-seed0" / f"round-{row.identity.round:03}.upd"
            assert update.stat().st_size == row.metrics["update_bytes"]
            device.install(update.read_bytes())
        held = files.read_model(workdir / "device" / f"{name}-seed0-held.safetensors").model
        assert all(device.current()[leaf].tobytes() == held[leaf].tobytes() for leaf in held)


def test_rows_tell_what_the_device_held_and_what_training_gave(finished):
    for before, after in itertools.pairwise(finished[1]):
        found = after.metrics
        if before.identity.method == after.identity.method:
            assert found["deployed_accuracy"] == before.metrics["accuracy"]
            assert found["validation_accuracy"] >= before.metrics["validation_accuracy"]
        assert found["sent"] == (found["validation_accuracy"] > found["deployed_validation_accuracy"])
        assert found["accuracy"] == (found["trained_accuracy"] if found["sent"] else found["deployed_accuracy"])
        assert (found["plain_bytes"] > 0) == found["sent"]
        assert not found["restart"] or found["sent"]
    assert {row.metrics["sent"] for row in finished[1]} == {True, False}


def test_more_rounds_and_methods_may_be_added_and_other_settings_not(finished, tmp_path):
    workdir = tmp_path / "more"
    shutil.copytree(finished[0], workdir)
    before = (workdir / "results.jsonl").read_bytes()
    rows = rounds.run(little_rounds(rounds=5, methods=("dpu", "rpu")), workdir)
    assert (workdir / "results.jsonl").read_bytes().startswith(before)
    assert [(row.identity.method, row.identity.round) for row in rows[12:]] == [
        ("dpu", 4),
        *(("rpu", number) for number in range(5)),
    ]
    report = (workdir / "report.md").read_text()
    assert f"--workdir={workdir} " in report
    assert "--rounds=5 --initial_samples=60 --step_samples=60 --methods=fu,dpu,pruning,rpu --ratio=0.05 " in report
    with pytest.raises(Error, match="--ratio: expected 0.05 as in"):
        rounds.run(little_rounds(ratio=0.03), workdir)
    assert read(workdir / "results.jsonl") == rows


def test_a_killed_experiment_continues_and_ends_with_the_same_rows(finished, tmp_path, monkeypatch, deliver_here):
    delivered = []

    def die(*arguments, **options):
        done = deliver_here(*arguments, **options)
        delivered.append(arguments)
        if len(delivered) == 7:
            raise Killed  # the files are there, the row is not
        return done

    monkeypatch.setattr(protocol_rounds, "deliver", die)
    with pytest.raises(Killed):
        rounds.run(little_rounds(methods=("fu", "dpu")), tmp_path)
    continued = rounds.run(little_rounds(methods=("fu", "dpu")), tmp_path)
    assert len(delivered) == 9
    assert without_times(continued) == without_times(finished[1][:8])


def test_trainings_that_were_killed_go_on_from_their_own_checkpoints(tmp_path, monkeypatch):
    """Iterative rewinding has many trainings a round, all of the same plan; each must find its own state only."""
    config = little_rounds(rounds=2, ratio=0.4, methods=("iterative",))
    whole = rounds.run(config, tmp_path / "whole")
    monkeypatch.setattr(checkpoints, "SECONDS_BETWEEN", 0.0)
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


def test_a_new_start_that_sends_nothing_is_tried_again_also_where_a_run_goes_on(tmp_path, monkeypatch, deliver_here):
    tried = []
    run_round = protocol_rounds.run_round

    def nothing(key, deployed, task):
        return Packet({})

    def watched(key, method, held, task, *, base, update, **options):
        number = int(update.stem.removeprefix("round-"))
        tried.append((number, base is not held or number == 0, task.epochs))
        if number == 2:  # finds nothing better
            method = nothing
        return run_round(key, method, held, task, base=base, update=update, **options)

    monkeypatch.setattr(protocol_rounds, "deliver", deliver_here)
    monkeypatch.setattr(protocol_rounds, "run_round", watched)
    options = {"methods": ("dpu_subspace",), "rank": 2, "bits": 4, "ratio": 0.3, "sparse_rate": 10.0}
    whole = rounds.run(little_rounds(rounds=6, **options), tmp_path / "whole")
    assert not whole[2].metrics["sent"]
    assert whole[4].metrics["sent"]
    # 60, 180 and 300 samples; then 360, not more than twice those of the last that was sent
    assert [is_start for _, is_start, _ in tried] == [True, False, True, False, True, False]
    assert [row.metrics["restart"] for row in whole] == [True, False, False, False, True, False]
    for count in (1, 3, 4, 6):
        rows = rounds.run(little_rounds(rounds=count, **options), tmp_path / "parts")
    assert without_times(rows) == without_times(whole)
    assert tried[6:] == tried[:6]


def test_a_folder_belongs_to_its_settings_before_anything_is_trained(tmp_path, monkeypatch):
    monkeypatch.setattr(protocol, "run_rounds", None)
    with pytest.raises(TypeError):
        rounds.run(little_rounds(), tmp_path)
    with pytest.raises(Error, match="--epochs: expected 2 as in"):
        rounds.run(little_rounds(epochs=3), tmp_path)


def test_a_resumed_device_keeps_its_first_model(finished, tmp_path, monkeypatch):
    """Another machine may make other weights of a seed; the update files start from the ones that are there."""
    shutil.copytree(finished[0], tmp_path / "moved")
    other = models.by_name("tiny", num_classes=10).init(jax.random.key(9), jnp.ones((1, 8, 8, 1)))
    monkeypatch.setattr(images.Images, "init", lambda self, key: other)
    first = tmp_path / "moved" / "device" / "dpu-seed0.safetensors"
    before = first.read_bytes()
    rows = rounds.run(little_rounds(rounds=5, methods=("dpu",)), tmp_path / "moved")
    assert rows[-1].identity.round == 4
    assert first.read_bytes() == before


def started(config, workdir, *, rows):
    """A run in a thread of its own, which has so many rows, or had a minute for them."""
    thread = threading.Thread(target=rounds.run, args=(config, workdir), daemon=True)
    thread.start()
    deadline = time.monotonic() + 60
    while len(read(workdir / "results.jsonl")) < rows and thread.is_alive() and time.monotonic() < deadline:
        time.sleep(0.05)
    return thread


def test_seeds_are_shared_as_methods_are(tmp_path):
    """What another process holds is waited for last, of whichever seed it is."""
    config = little_rounds(methods=("dpu",), rounds=1, seeds=2)
    Results(tmp_path, "rounds", config).claim()
    with runs.alone(tmp_path / "device" / "dpu-seed0.lock", wait=False):
        thread = started(config, tmp_path, rows=1)
        assert [row.identity.seed for row in read(tmp_path / "results.jsonl")] == [1]
    thread.join(60)
    assert [row.identity.seed for row in read(tmp_path / "results.jsonl")] == [1, 0]


def test_rows_with_a_gap_are_refused(finished, tmp_path):
    shutil.copytree(finished[0], tmp_path / "gap")
    path = tmp_path / "gap" / "results.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(lines[:1] + lines[2:]))
    with pytest.raises(Error, match="expected the rounds of fu with seed 0 one after another, found 0, 2, 3"):
        rounds.run(little_rounds(methods=("fu",)), tmp_path / "gap")


def test_rows_that_do_not_say_what_was_sent_are_refused(finished, tmp_path):
    shutil.copytree(finished[0], tmp_path / "unsaid")
    path = tmp_path / "unsaid" / "results.jsonl"
    path.write_text(path.read_text().replace('"sent": true', '"sent": null', 1))
    with pytest.raises(Error, match="expected whether round 0 of fu with seed 0 was sent, found None"):
        rounds.run(little_rounds(methods=("fu",), rounds=5), tmp_path / "unsaid")


def test_rounds_that_another_process_runs_come_last(finished, tmp_path):
    Results(tmp_path, "rounds", little_rounds(methods=("fu", "dpu"))).claim()
    with runs.alone(tmp_path / "device" / "fu-seed0.lock", wait=False):
        thread = started(little_rounds(methods=("fu", "dpu")), tmp_path, rows=4)
        time.sleep(0.2)
        assert {row.identity.method for row in read(tmp_path / "results.jsonl")} == {"dpu"}
    thread.join(60)
    rows = read(tmp_path / "results.jsonl")
    assert [row.identity.method for row in rows] == ["dpu"] * 4 + ["fu"] * 4
    assert [row.metrics["accuracy"] for row in rows[4:]] == [row.metrics["accuracy"] for row in finished[1][:4]]


def test_any_method_goes_through_the_rounds(tmp_path):
    config = little_rounds(methods=("fu",), others=("subspace:rank=2,3",), rounds=2)
    rows = rounds.run(config, tmp_path)
    assert [(row.identity.method, row.identity.setting, row.identity.round) for row in rows[2:]] == [
        ("subspace", {"rank": rank}, number) for rank in (2, 3) for number in (0, 1)
    ]
    report = (tmp_path / "report.md").read_text()
    assert "| subspace rank=2 |" in report
    assert "'--others=subspace:rank=2;subspace:rank=3'" in report
    assert (tmp_path / "updates" / "subspace-rank=3-seed0" / "round-001.upd").exists()
    assert without_times(rounds.run(config, tmp_path)) == without_times(rows)


def test_options_in_another_order_are_the_same_entry(tmp_path):
    for number, text in enumerate(("low_rank:rank=1:aux=8:rate=10", "low_rank:rate=10.0:aux=8:rank=1"), 1):
        rows = rounds.run(little_rounds(methods=("fu",), others=(text,), rounds=number), tmp_path)
    assert [(line.method, line.rounds) for line in rounds_report.summarise(rows)] == [
        ("fu", 2),
        ("low_rank rank=1 aux=8 rate=10", 2),
    ]


def test_another_method_that_diverges_sends_nothing_and_the_rest_goes_on(tmp_path, monkeypatch, caplog):
    def diverging():
        def method(key, deployed, task):
            raise NonFiniteError("lower the rate")

        return method

    monkeypatch.setitem(methods.METHODS, "diverging", diverging)
    config = little_rounds(methods=("fu",), others=("diverging;subspace:rank=2",), rounds=2)
    rows = {(row.identity.method, row.identity.round): row.metrics for row in rounds.run(config, tmp_path)}
    assert [rows["diverging", number]["sent"] for number in (0, 1)] == [False, False]
    assert ("subspace", 1) in rows
    assert "nothing is sent: lower the rate" in caplog.text


def test_variants_that_diverge_send_nothing(tmp_path, caplog):
    config = little_rounds(methods=("fu", "dpu_subspace"), rounds=2, learning_rate=1e30)
    assert [row.metrics["sent"] for row in rounds.run(config, tmp_path)] == [False] * 4
    assert caplog.text.count("nothing is sent: ") == 4


def test_methods_that_do_not_exist_are_named_before_anything_loads():
    with pytest.raises(Error, match="--others: expected a method of .*, found 'magic'"):
        little_rounds(others=("magic:rank=1",))
