"""Fronts: what is read off curves, what is chosen on which seed, and a whole run at its smallest."""

import json
import math

import numpy as np
import pytest

from experiments import front, front_curves, front_language, front_report, fronts
from experiments.front_curves import BASELINE, GRIDS, OWN, PEER, Curve, curves
from experiments.front_figures import Line, mean_saving, over_seeds
from experiments.front_figures import front as front_of
from experiments.results import Identity, Row, read
from experiments.settings import REFERENCE, Cell
from experiments.worlds import Score
from tests.experiments.little import QUICKSTART, without_times
from updcomp.wire.errors import Error, NonFiniteError

ACCURACY = Score("accuracy", lambda variables, data: 0.0)
LOSS = Score("loss", lambda variables, data: 0.0, higher_is_better=False)


def line(sizes, scores):
    return Line(np.array(sizes, float), np.array(scores, float))


def little_front(**options):
    small = {name: value for name, value in QUICKSTART.items() if name != "seeds"}
    grids = ("subspace:rank=2,4,6:rate=10,30", "random_mask:ratio=0.05,0.2:bits=4:aux=none:rate=5,20")
    given = {"dataset": "digits", "batch_size": 50, "seeds": 2, "points": 2, "curves": (), "grids": grids, **options}
    return front.Config(**{**small, **given})


def test_every_curve_is_tuned_with_the_same_effort():
    assert {len(curve.cells) for curve in curves(list(GRIDS), [])} == {24}


def test_rates_are_scaled_and_nothing_else():
    ((plain,), (scaled,)) = (curves(["partial"], [], scale) for scale in (1.0, 0.1))
    for one, other in zip(plain.cells, scaled.cells, strict=True):
        assert other.setting == {**one.setting, "sparse_rate": one.setting["sparse_rate"] / 10}


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"curves": ("magic",)}, "--curves: expected some of subspace, .*, found 'magic'"),
        ({"grids": ("low_rank:rank=0",)}, "--grids: low_rank: rank: expected at least 1, found 0"),
        (
            {"grids": ("low_rank:rank=1", "low_rank:rank=2")},
            "--grids: expected curves of different methods, found 'low_",
        ),
        ({"reach": ("high",)}, "--reach: expected numbers such as 0.94,0.95, found 'high'"),
        ({"reach": ("nan",)}, "--reach: expected numbers such as 0.94,0.95, found 'nan'"),
        ({"update_bytes": ("1k",)}, "--update_bytes: expected whole numbers such as 300,1000, found '1k'"),
    ],
)
def test_bad_flags_are_named_before_anything_loads(flags, message):
    with pytest.raises(Error, match=message):
        little_front(**flags)


def test_a_front_drops_what_a_smaller_update_reaches():
    assert front_of([100, 200, 300, 300, 400], [0.5, 0.4, 0.6, 0.7, math.nan]) == [0, 3]
    assert front_of([], []) == []


def test_bytes_to_reach_a_score_are_interpolated_in_their_logarithm():
    found = line([100, 1000, 2000, 10_000], [0.5, 0.7, 0.6, 0.9])
    assert found.bytes_to_reach(0.6) == pytest.approx(1000**0.5 * 100**0.5)
    assert found.bytes_to_reach(0.7) == pytest.approx(1000)
    assert found.bytes_to_reach(0.8) == pytest.approx(1000 * 10**0.5)  # what falls between counts for nothing
    assert math.isnan(found.bytes_to_reach(0.91))
    assert found.bytes_to_reach(0.4) == pytest.approx(100)  # at most: the smallest update passes it already
    assert found.starts_above(0.4)
    assert not found.starts_above(0.5)
    assert line([100, 100, 50], [0.5, 0.9, math.nan]).starts_above(0.7)


def test_mean_savings_are_a_share_and_turn_round():
    half, whole = line([100, 200, 400], [0.5, 0.6, 0.7]), line([200, 400, 800], [0.5, 0.6, 0.7])
    assert mean_saving(half, whole) == pytest.approx(0.5)
    assert mean_saving(whole, half) == pytest.approx(-1)
    assert mean_saving(half, half) == pytest.approx(0)
    later = line([50, 500], [0.6, 0.9])  # known to both from .6 to .7: 50 to 50 * 10^(1/3) against 200 to 400
    logarithms = np.log(50) + np.log(10) / 6 - (np.log(200) + np.log(400)) / 2
    assert mean_saving(later, half) == pytest.approx(1 - np.exp(logarithms), abs=1e-3)
    assert math.isnan(mean_saving(half, line([1, 2], [0.8, 0.9])))
    assert math.isnan(mean_saving(later, half, least=0.2))
    assert math.isnan(mean_saving(half, line([1], [math.nan])))


def test_a_mean_over_seeds_is_known_where_every_seed_is():
    assert over_seeds([1.0, 3.0]) == (2.0, pytest.approx(2**0.5))
    assert math.isnan(over_seeds([1.0, math.nan])[0])


def row(size, score, validation, *, seed=fronts.TUNING, sent=True, rank=1, name="accuracy"):
    metrics = {"update_bytes": size, name: score, f"validation_{name}": validation, "sent": sent, "train_seconds": 1.0}
    metrics |= {"compile_seconds": 0.0}
    return Row(Identity("front", "d", "m", {}, "low_rank", {"rank": rank}, seed, 0), metrics)


def curve_of_ranks(*ranks):
    return Curve("low_rank", OWN, tuple(Cell("low_rank", {"rank": rank}, lambda *_: None) for rank in ranks))


@pytest.mark.parametrize(("score", "sign"), [(ACCURACY, 1), (LOSS, -1)])
def test_settings_are_chosen_on_the_validation_data_of_the_tuning_seed(score, sign):
    found = [(100, 0.5), (200, 0.4), (400, 0.6), (800, 0.7), (1600, 0.71), (3200, 0.9)]
    trials = [row(s, 0.0, sign * v, rank=i, sent=i != 5, name=score.name) for i, (s, v) in enumerate(found)]
    curve = curve_of_ranks(*range(6))
    assert [cell.setting["rank"] for cell in fronts.choose(curve, trials, score, 9)] == [0, 2, 3, 4]
    assert [cell.setting["rank"] for cell in fronts.choose(curve, trials, score, 3)] == [0, 2, 4]
    assert [cell.setting["rank"] for cell in fronts.choose(curve, trials, score, 2)] == [0, 4]
    assert fronts.choose(curve, [], score, 2) == []
    assert fronts.choose(curve._replace(tuned=False), trials, score, 2) == list(curve.cells)


def test_points_that_not_every_seed_has_are_left_out_and_tests_choose_nothing():
    measured = [
        *(row(100, 0.6, 0.6, seed=seed, rank=1) for seed in (1, 2)),
        *(row(200, 0.9, 0.5, seed=seed, rank=2) for seed in (1, 2)),  # worse where it may be looked at
        *(row(400, 0.7 + seed / 100, 0.7, seed=seed, rank=3) for seed in (1, 2)),
        row(800, 0.8, 0.8, seed=1, rank=4),
        *(row(90 if seed == 1 else 44, 0.65, 0.65, seed=seed, rank=5, sent=seed == 1) for seed in (1, 2)),
        row(90, 0.9, 0.9, seed=3, rank=1),  # of another start, with more seeds
        row(50, 1.0, 1.0, seed=fronts.TUNING, rank=1),
    ]
    told = front_report.Told([curve_of_ranks(1, 2, 3, 4, 5)], [5], measured, ACCURACY, [], 2, 1, 2)
    (own,) = front_report.points(told).values()
    assert [point.setting for point in own] == ["rank=5", "rank=1", "rank=2", "rank=3"]
    assert [list(one.sizes) for one in front_report.lines(own, ACCURACY)] == [[100, 400], [100, 400]]
    assert [one.scores[1] for one in front_report.lines(own, ACCURACY)] == pytest.approx([0.71, 0.72])


@pytest.fixture(scope="module")
def finished(tmp_path_factory, deliver_here):
    from updcomp.protocol import rounds

    workdir = tmp_path_factory.mktemp("front")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rounds, "deliver", deliver_here)
        return workdir, front.run(little_front(), workdir)


def test_one_seed_tries_everything_in_short_and_the_others_what_was_chosen(finished):
    workdir, rows = finished
    tried = [row for row in rows if row.identity.seed == fronts.TUNING]
    assert len(tried) == 1 + 6 + 4
    found = fronts.all_curves(little_front())
    for seed in (1, 2):
        own = [row.identity for row in rows if row.identity.seed == seed]
        assert (own[0].method, own[0].setting) == REFERENCE
        chosen = [fronts.choose(curve, tried, ACCURACY, 2) for curve in found]
        assert [(i.method, i.setting) for i in own[1:]] == [(c.method, c.setting) for some in chosen for c in some]
    report = (workdir / "report.md").read_text()
    assert "| subspace    | own " in report
    assert "Tuning: 10 short trainings, 4 or 6 of each curve (epochs: 5 in place of 20)" in report
    assert [row.metrics["tuning"] for row in rows] == [row.identity.seed == fronts.TUNING for row in rows]
    assert (workdir / "accuracy_front.png").stat().st_size > 0


def test_a_second_start_does_nothing_again(finished):
    workdir, rows = finished
    before = (workdir / "results.jsonl").read_bytes()
    assert without_times(front.run(little_front(), workdir)) == without_times(rows)
    assert (workdir / "results.jsonl").read_bytes() == before
    assert read(workdir / "results.jsonl") == rows
    assert json.loads((workdir / "config.json").read_text())["grids"] == list(little_front().grids)


def test_a_setting_that_diverges_is_tried_and_not_chosen(tmp_path, monkeypatch):
    def diverging(*, rank):
        def method(key, deployed, task):
            raise NonFiniteError("diverged")

        return method

    monkeypatch.setitem(front_curves.build.__globals__["METHODS"], "diverging", diverging)
    rows = front.run(little_front(grids=("diverging:rank=1,2",), seeds=1), tmp_path)
    assert [(row.identity.method, row.identity.seed) for row in rows] == [
        ("full", 0),
        ("diverging", 0),
        ("diverging", 0),
        ("full", 1),
    ]
    assert not any(row.metrics["sent"] for row in rows[1:3])


def test_methods_that_train_all_weights_keep_their_rates():
    ((plain,), (scaled,)) = (curves(["truncated_svd"], [], scale) for scale in (1.0, 0.1))
    assert [cell.setting for cell in plain.cells] == [cell.setting for cell in scaled.cells]


def test_where_nothing_was_sent_there_is_a_report(tmp_path):
    rows = [ended(1, full=0.9), row(44, 0.5, 0.5, seed=1, rank=1, sent=False)]
    assert "0/1" in report_of(tmp_path, rows, seeds=1)


def test_a_setting_counts_for_every_curve_that_has_it(tmp_path):
    both = [curve_of_ranks(1), curve_of_ranks(1, 2)._replace(name="other")]
    told = front_report.Told(
        both, [1, 2], [ended(1, full=0.9), row(90, 0.7, 0.7, seed=1, rank=1)], ACCURACY, [], 1, 1, 2
    )
    assert set(front_report.points(told)) == {"low_rank", "other"}


def test_a_grid_is_of_the_kind_of_its_method():
    found = curves([], ["low_rank:rank=1", "pranc:size=8;subspace:rank=2"])
    assert [(curve.name, curve.kind) for curve in found] == [
        ("low_rank", BASELINE),
        ("pranc", PEER),
        ("subspace", OWN),
    ]


def ended(seed, *, full, deployed=0.5, name="accuracy"):
    metrics = {name: full, f"deployed_{name}": deployed, "update_bytes": 1000, "sent": True, "train_seconds": 1.0}
    metrics |= {f"validation_{name}": full, "compile_seconds": 0.0}
    return Row(Identity("front", "d", "m", {}, *REFERENCE, seed, 0), metrics)


def report_of(tmp_path, rows, *, seeds, reach=(), score=ACCURACY):
    told = front_report.Told([curve_of_ranks(1, 2, 3)], [3], rows, score, reach, seeds, 1, 2)
    return front_report.write(tmp_path, told, command="python run.py", title="world")


def test_a_score_that_the_smallest_update_passes_is_a_bound_and_not_unknown(tmp_path):
    rows = [ended(1, full=0.99), row(300, 0.985, 0.985, seed=1, rank=1)]
    said = report_of(tmp_path, rows, seeds=1, reach=[0.98, 0.999])
    assert "at most 300" in said
    assert "accuracy 0.980: at most 300 bytes (low_rank)" in said
    assert "accuracy 0.999: not reached by any line of our own on every seed" in said
    assert "float32" not in said  # of which none was compared


def test_fewer_bits_are_better_where_the_score_says_so(tmp_path):
    rows = [ended(1, full=2.0, deployed=3.0, name="loss")]
    rows += [row(100 * 2**i, 2.8 - 0.4 * i, 2.8 - 0.4 * i, seed=1, rank=i + 1, name="loss") for i in range(3)]
    said = report_of(tmp_path, rows, seeds=1, reach=[2.6], score=LOSS)
    assert "loss 2.600: 141 bytes (low_rank)" in said
    assert said.count("| *") == 3


def test_where_the_full_update_gains_nothing_the_report_says_so(tmp_path):
    rows = [ended(1, full=0.5), row(300, 0.4, 0.4, seed=1, rank=1)]
    said = report_of(tmp_path, rows, seeds=1)
    assert "The full update gains nothing" in said
    assert "bytes at" not in said


def test_language_has_a_front_of_its_own_with_lower_rates():
    config = front_language.Config()
    assert config.rate_scale < 1
    assert config.keep == "last"
    assert config.epochs == 2
