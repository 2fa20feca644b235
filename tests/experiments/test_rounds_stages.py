"""When samples arrive, and which updates start anew from the first model."""

import numpy as np
import pytest

import updcomp
from experiments.rounds_stages import growing


def test_growing_sets_are_cumulative_and_restart_when_they_have_more_than_doubled():
    order = np.random.default_rng(0).permutation(100)
    stages = list(growing(order, initial=10, step=5, rounds=19, restart="doubled"))
    last = 0
    for number, stage in enumerate(stages):
        np.testing.assert_array_equal(stage.samples, order[: 10 + 5 * number])
        assert stage.restart == (len(stage.samples) > 2 * last)
        last = len(stage.samples) if stage.restart else last
    for restart, expected in (("never", False), ("always", True)):
        stages = growing(order, initial=1, step=1, rounds=3, restart=restart)
        assert [stage.restart for stage in stages] == [expected] * 3


def test_a_restart_that_sent_nothing_is_tried_again_with_the_next_samples():
    sent = []
    stages = growing(np.arange(9), initial=1, step=1, rounds=9, restart="until_sent", sent=sent)
    restarts = []
    for stage, answer in zip(stages, (True, False, False, False, True, True, False, True, True), strict=True):
        restarts.append(stage.restart)
        sent.append(answer)
    # 1 sample is sent; 3 and 4 give nothing, 5 do; 6 to 9 are not more than twice as many
    assert restarts == [True, False, True, True, True, False, False, False, False]


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
