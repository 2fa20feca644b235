"""Training some neurons at its smallest: whole, killed and continued, extended, and what is said of made-up rows."""

import json

import numpy as np
import pytest

from experiments import bench_neurons, neurons, neurons_arms, neurons_report, runs
from experiments.results import Identity, Row
from experiments.settings import Cell
from tests.experiments.little import TIMES, Killed
from updcomp import methods
from updcomp.methods.chosen_neurons import Neurons
from updcomp.protocol import rounds as protocol_rounds
from updcomp.wire.errors import BudgetError, Error, NonFiniteError

LITTLE = {
    "dataset": "digits",
    "model": "tiny",
    "pretrain_samples": 100,
    "samples": 100,
    "validation_samples": 50,
    "pretrain_epochs": 10,
    "epochs": 3,
    "batch_size": 50,
    "learning_rate": 0.01,
    "selections": ("velocity", "random"),
    "budgets": ("0.5",),
    "depth_budgets": (),
    "rates": ("1", "3"),
    "others": ("low_rank:rank=1:bits=8:aux=8",),
    "seeds": 2,
}
CHANGING = {*TIMES, "step_seconds", "choosing_share"}
WAYS = [
    ("full", {"bits": None}),
    ("neurons", {"selection": "full"}),
    ("neurons", {"selection": "classifier"}),
    ("neurons", {"selection": "velocity", "weights": 0.5}),
    ("neurons", {"selection": "random", "weights": 0.5}),
    ("low_rank", {"rank": 1, "bits": 8, "aux": 8}),
]


def little(**options):
    return neurons.Config(**{**LITTLE, **options})


def unchanging(rows):
    kept = [({name: own for name, own in row.metrics.items() if name not in CHANGING}) for row in rows]
    return list(zip([row.identity for row in rows], kept, strict=True))


@pytest.fixture(scope="module")
def finished(tmp_path_factory, deliver_here):
    workdir = tmp_path_factory.mktemp("neurons")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(protocol_rounds, "deliver", deliver_here)
        return workdir, neurons.run(little(), workdir)


def test_seed_0_tries_every_rate_and_the_others_have_the_best_of_its_validation_data(finished):
    workdir, rows = finished
    first = [row for row in rows if row.identity.seed == 0]
    tried = [(name, {**options, "rate": rate}) for name, options in WAYS for rate in (1.0, 3.0)]
    assert [(row.identity.method, row.identity.setting) for row in first] == tried
    second = [row for row in rows if row.identity.seed == 1]
    assert len(first) + len(second) == len(rows)
    for number, row in enumerate(second):
        both = first[2 * number : 2 * number + 2]
        best = max(both, key=lambda other: other.metrics["validation_accuracy"])
        assert row.identity._replace(seed=0) == best.identity
    files = {path.name for path in (workdir / "updates").iterdir()}
    assert files == {f"{runs.file_name(row.identity)}.upd" for row in rows}
    assert {"accuracy_vs_memory.png", "report.md", "report.html"} <= {path.name for path in workdir.iterdir()}


def test_rows_have_what_training_took_where_it_is_by_neurons(finished):
    own = {*neurons.SPENT, *neurons.SHARES}
    for row in finished[1]:
        assert own < row.metrics.keys()
        assert row.metrics["failed"] is None
        assert all((row.metrics[name] is None) == (row.identity.method != "neurons") for name in own)
        selection = row.identity.setting.get("selection")
        if selection == "full":
            assert row.metrics["weights_share"] == row.metrics["flops_share"] == 1
        elif selection in ("velocity", "random"):
            assert 0 < row.metrics["weights_share"] <= 0.5


def test_rows_have_the_score_of_the_better_full_training_once_there_is_one(finished):
    rows = finished[1]
    full = neurons_arms.reference(neurons_arms.arms(rows))
    scores, ways = full.by_seed("accuracy"), [full.key, *WAYS[2:]]
    for row in rows[4:]:
        if (row.identity.method, neurons_arms.without_rate(row)) in ways:
            assert row.metrics["full_update_accuracy"] == scores[row.identity.seed]
    assert {row.metrics["full_update_accuracy"] for row in rows[:4]} == {None}


def test_a_second_start_finds_everything_done_and_may_add_more(finished, monkeypatch):
    workdir, rows = finished
    before = (workdir / "report.md").read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(protocol_rounds, "deliver", None)
        assert neurons.run(little(), workdir) == rows
    assert (workdir / "report.md").read_bytes() == before
    with pytest.raises(Error, match="--currency: expected 'weights' as in"):
        neurons.run(little(currency="flops"), workdir)


def test_the_command_of_the_report_is_that_of_all_rows(finished):
    rows = finished[1]
    assert neurons._of_rows(little(selections=(), budgets=(), rates=("5",), others=(), seeds=1), rows) == little()
    assert "--others=low_rank:rank=1:bits=8:aux=8 " in (finished[0] / "report.md").read_text()


def test_a_killed_experiment_continues_and_ends_with_the_same_rows(finished, tmp_path, monkeypatch, deliver_here):
    delivered = []

    def die(*arguments, **options):
        delivered.append(arguments)
        if len(delivered) == 8:
            raise Killed
        return deliver_here(*arguments, **options)

    monkeypatch.setattr(protocol_rounds, "deliver", die)
    with pytest.raises(Killed):
        neurons.run(little(), tmp_path)
    assert unchanging(neurons.run(little(), tmp_path)) == unchanging(finished[1])
    assert len(delivered) == len(finished[1]) + 1


@pytest.mark.parametrize(("error", "said"), [(BudgetError, "does not fit: why"), (NonFiniteError, "diverged: why")])
def test_what_diverges_or_does_not_fit_sends_nothing_and_says_why(error, said, monkeypatch):
    def fail(self, key, deployed, task):
        raise error("why")

    monkeypatch.setattr(Neurons, "train", fail)
    setting = {"selection": "depth", "memory": 0.1}
    kept = neurons._Kept(Cell("neurons", setting, methods.neurons(**setting)))
    assert kept(None, None, None).blocks == {}
    assert kept.spent() == {**dict.fromkeys((*neurons.SPENT, *neurons.SHARES)), "failed": said}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"selections": ("best",)}, "--selections: expected some of velocity, .*, found 'best'"),
        ({"selections": ("full",)}, "--selections: expected some of .*, found 'full'"),
        ({"budgets": ("1.5",)}, "--budgets: expected shares above 0 and up to 1.0, or whole numbers .*, found '1.5'"),
        ({"budgets": ("few",)}, "--budgets: expected .*, found 'few'"),
        ({"currency": "money"}, "--currency: expected one of weights, flops, memory, found 'money'"),
        ({"depth_budgets": ("2",)}, "--depth_budgets: expected shares above 0 and up to 1, found '2'"),
        ({"depth_microbatches": 3}, "--depth_microbatches: expected a divisor of --batch_size=50, found 3"),
        ({"rates": ()}, "--rates: expected at least one"),
        ({"rates": ("0",)}, "--rates: expected numbers above 0, found '0'"),
        ({"rates": ("nan",)}, "--rates: expected numbers above 0, found 'nan'"),
        ({"others": ("medium_rank:rank=1",)}, "--others: expected a method of full, .* found 'medium_rank'"),
        ({"others": ("low_rank:rank=0",)}, "--others: low_rank: rank: expected"),
        ({"others": ("low_rank:rank=1:rate=3",)}, "--others: low_rank: expected no rate, since --rates are tried"),
        ({"others": ("partial:ratio=.1:sparse_rate=3",)}, "--others: partial: expected no sparse_rate"),
        ({"seeds": 0}, "--seeds: expected at least 1"),
    ],
)
def test_flags_that_do_not_fit_are_reported(options, message):
    with pytest.raises(Error, match=message):
        little(**options)


def test_nothing_is_trained_twice_and_others_may_be_none():
    def keys(**options):
        return [(cells[0].method, cells[0].setting) for cells in neurons.tries(little(rates=("2",), **options))]

    usual = keys()
    assert usual == [(name, {**options, "rate": 2.0}) for name, options in WAYS]
    assert keys(budgets=("0.5", ".50"), selections=("velocity", "random", "velocity")) == usual
    assert keys(others=("",)) == usual[:5]
    assert ("partial", {"ratio": 0.1, "sparse_rate": 2.0}) in keys(others=("partial:ratio=0.1;full:bits=2",))


def row(selection, options, accuracy, *, seed=0, rate=1.0, validation=None, method="neurons", size=100, **metrics):
    setting = {**({"selection": selection} if method == "neurons" else {}), **options, "rate": rate}
    costs = {"weights": 10, "backward_flops": 1e6, "peak_bytes": 1e6, "step_seconds": 0.01, "choosing_share": 0.1}
    costs |= {"compiled": 2, "weights_share": 0.1, "flops_share": 0.1, "memory_share": 0.1}
    found = {
        "accuracy": accuracy,
        "deployed_accuracy": 0.5,
        "validation_accuracy": accuracy if validation is None else validation,
        "deployed_validation_accuracy": 0.5,
        "update_bytes": size,
        "failed": None,
        **(costs if method == "neurons" else dict.fromkeys(costs)),
        **metrics,
    }
    return Row(Identity("neurons", "digits", "mlp", {}, method, setting, seed, 0), found)


def full_rows(seeds=1):
    whole = {"memory_share": 1.0, "flops_share": 1.0, "peak_bytes": 1e7}
    everything = [row("", {"bits": None}, 0.88, method="full", size=9_000, seed=seed) for seed in range(seeds)]
    return everything + [row("full", {}, 0.9, seed=seed, size=1_000, **whole) for seed in range(seeds)]


def pair(differences, budget=0.1):
    for seed, difference in enumerate(differences):
        yield row("random", {"weights": budget}, 0.7, seed=seed)
        yield row("velocity", {"weights": budget}, 0.7 + difference / 100, seed=seed)


@pytest.mark.parametrize(
    ("differences", "said"),
    [
        ((1.0, 2.0, 3.0, 2.0), "Velocity is better than random by 2.00 points (95 % CI +0.70 to +3.30; mean of 1"),
        ((-1.0, -2.0, -3.0, -2.0), "Velocity is worse than random by 2.00 points (95 % CI -3.30 to -0.70; mean of 1"),
        ((1.0, -2.0, 3.0), "No difference between velocity and random is shown: +0.67 points (95 % CI -5.58 to +6.92;"),
        ((1.0,), "Velocity minus random: +1.00 points, but fewer than two seeds have all budgets, so no difference is"),
    ],
)
def test_velocity_and_random_are_compared_whichever_way_it_falls(differences, said):
    found = neurons_arms.arms([*full_rows(), *pair(differences)])
    assert neurons_report.compared(found).startswith(said)


def test_budgets_of_a_seed_count_once_and_each_has_its_own_interval():
    rows = [*full_rows(), *pair((1.0, 2.0, 3.0)), *pair((3.0, 2.0, 1.0), 0.2), *pair((5.0, 5.0), 0.3)]
    sentence = neurons_report.compared(neurons_arms.arms(rows))
    assert "(95 % CI +3.00 to +3.00; mean of 3 budgets, 2 seeds)" in sentence
    assert "weights 10 %: +2.00 (95 % CI -0.48 to +4.48); weights 20 %: +2.00 (" in sentence
    assert neurons_report.compared(neurons_arms.arms(full_rows())) == ""


def test_rates_and_the_reference_are_chosen_on_validation_data():
    rows = [*full_rows(2), row("depth", {"weights": 0.1}, 0.95, rate=1.0, validation=0.6)]
    rows += [row("depth", {"weights": 0.1}, 0.7, rate=3.0, validation=0.8)]
    rows += [row("depth", {"weights": 0.1}, own, rate=rate, seed=1) for rate, own in ((1.0, 0.9), (3.0, 0.8))]
    rows += [row("fixed", {"weights": 0.1}, 0.9, seed=1)]  # which seed 0 lacks
    everything, full, depth = neurons_arms.arms(rows)
    assert neurons_arms.reference([everything, full]) == full
    assert depth.tried == {"selection": "depth", "weights": 0.1, "rate": 3.0}
    assert depth.by_seed("accuracy") == {0: 0.7, 1: 0.8}
    assert neurons_arms.kept(depth, full) == pytest.approx((0.2 + 0.3) / 0.8)
    assert neurons_arms.kept(depth, full, validation=True) == pytest.approx((0.3 + 0.3) / 0.8)


def test_the_sentences_on_depth_and_on_bytes():
    both = {"memory": 0.5, "flops": 0.5, "microbatches": 4}
    rows = [*full_rows(), row("depth", both, 0.86, memory_share=0.45, flops_share=0.4, step_seconds=0.004)]
    rows += [row("depth", {**both, "memory": 0.25, "flops": 0.25}, 0.5, failed="does not fit: why")]
    rows += [row("random", {"weights": 0.1}, 0.89, size=200), row("fixed", {"weights": 0.1}, 0.85, size=50)]
    rows += [row("", {"rank": 1}, 0.6, method="low_rank", size=5), row("", {"ratio": 0.1}, 0.9, method="partial")]
    found = neurons_arms.arms(rows)
    full = neurons_arms.reference(found)
    assert neurons_report.depth(found, full) == (
        "Depth under memory 25 %, flops 25 %, microbatches 4: does not fit. "
        "Depth under memory 50 %, flops 50 %, microbatches 4 keeps 90 % of the full gain (accuracy 86.00 %, full "
        "90.00 %) at 45 % of the peak memory, 40 % of the backward FLOPs and 40 % of the step time of training all "
        "neurons."
    )
    assert neurons_report.smallest(found, full) == (
        "Smallest update that keeps 95 % of the full gain on the validation data: neurons 200 bytes (random, weights "
        "10 %; accuracy 89.00 %); low_rank none; partial 100 bytes (ratio=0.1; accuracy 90.00 %). Everything raw is "
        "9,000 bytes."
    )
    lines = neurons_report.table(found, full).body
    assert [line[0] for line in lines[:4]] == ["deployed", "everything", "full", "depth"]
    assert lines[0][3:5] == ("50.00", "-")
    assert lines[2][3:9] == ("90.00", "100 %", "10 (10.0 %)", "1.0 (100.0 %)", "10.00 (100.0 %)", "10.00")
    assert "memory 25 %, flops 25 %, microbatches 4 (does not fit)" in {line[1] for line in lines}


def test_a_full_training_that_gains_nothing_has_no_share():
    rows = [one._replace(metrics={**one.metrics, "accuracy": 0.5, "validation_accuracy": 0.5}) for one in full_rows()]
    found = neurons_arms.arms(rows)
    assert np.isnan(neurons_arms.kept(found[1], found[0]))
    assert neurons_report.table(found, found[0]).body[1][4] == "-"


def test_the_benchmark_measures_memory_in_a_process_and_steps_in_this_one(tmp_path, monkeypatch):
    monkeypatch.setattr(bench_neurons, "VARIANTS", {"full": bench_neurons.VARIANTS["full"]})
    monkeypatch.setattr(bench_neurons, "TIMED", bench_neurons.VARIANTS)
    config = bench_neurons.Config(samples=16, epochs=1, batch_size=8, repeats=1, image_size=8, widths=(4,))
    figures = bench_neurons.run(config, tmp_path)
    assert json.loads((tmp_path / "bench_neurons.json").read_text()) == figures
    assert {name: set(own) for name, own in figures.items() if name != "backend"} == {
        "memory": {"full"},
        "step_seconds": {"full"},
        "choosing_share": {"full"},
    }
    memory = bench_neurons.Memory(**figures["memory"]["full"])
    assert memory.peak >= memory.before > 0
    assert memory.peak_bytes > 0
