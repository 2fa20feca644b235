"""When samples arrive, and which updates start anew from the first model."""

import numpy as np
import pytest

import updcomp
from experiments.rounds_stages import growing


def restarts(plan, sent):
    """Of every round, where the rounds send what is said."""
    return [plan(sent[:number]).restart for number in range(len(sent))]


def test_new_starts_that_never_help_leave_every_other_round_to_others():
    plan = growing(np.arange(8), initial=1, step=1, rounds=8, restart="until_sent")
    assert restarts(plan, [True] + [False] * 7) == [True, False, True, False, True, False, True, False]


def test_sets_are_cumulative_and_end():
    order = np.random.default_rng(0).permutation(100)
    plan = growing(order, initial=10, step=5, rounds=19)
    for number in range(19):
        np.testing.assert_array_equal(plan([True] * number).samples, order[: 10 + 5 * number])
    assert plan([True] * 19) is None


@pytest.mark.parametrize(
    ("restart", "expected"),
    [
        ("never", []),
        ("always", [0, 1, 2, 3, 4, 5, 6, 7, 8]),
        ("doubled", [0, 2, 6]),  # 1, 3 and 7 samples
        # 3 samples send nothing, 5 do; 6 to 9 are not more than twice as many
        ("until_sent", [0, 2, 4]),
    ],
)
def test_training_starts_anew_where_the_rule_says(restart, expected):
    plan = growing(np.arange(9), initial=1, step=1, rounds=9, restart=restart)
    sent = [True, False, False, False, True, True, False, True, True]
    assert restarts(plan, sent) == [number in expected for number in range(9)]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"initial": 10, "step": 10, "rounds": 11}, r"rounds: expected at most 10: .* found 11, which need 110"),
        ({"initial": 101, "step": 10, "rounds": 1}, "rounds: expected at most 0"),
        ({"initial": 0, "step": 10, "rounds": 1}, "expected at least 1, found 0, 10 and 1"),
        ({"initial": 10, "step": 10, "rounds": 1, "restart": "often"}, "restart: expected one of never"),
    ],
)
def test_impossible_rounds_are_refused(options, message):
    with pytest.raises(updcomp.Error, match=message):
        growing(np.arange(100), **options)
