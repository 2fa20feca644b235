"""What is refused before anything is compiled, and what training tells on its way."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import updcomp
from tests.methods.worlds import KEY, REGRESSION, applied, digits, regression, score
from updcomp.methods import full, low_rank, partial
from updcomp.training import Objective, classification, models
from updcomp.training.classification import cross_entropy


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"optimizer": optax.adam(1e-3)},
            r"optimizer: expected a function of the learning rate, found GradientTransformation.*; give optax.adam, "
            r"and Task\(learning_rate=1e-3\)",
        ),
        ({"optimizer": "adam"}, "optimizer: expected a function of the learning rate, found str"),
        ({"objective": REGRESSION.loss}, "objective: expected updcomp.training.Objective.*, found function"),
        ({"objective": (REGRESSION.loss, None)}, "objective: expected .*, found tuple"),
        ({"epochs": 0}, "epochs: expected a whole number from 1 on, found 0"),
        ({"epochs": 1.5}, "epochs: expected a whole number from 1 on, found 1.5"),
        ({"keep": "first"}, "keep: expected one of best, last, found 'first'"),
        ({"learning_rate": -1.0}, "learning_rate: expected a finite number from 0 on, found -1.0"),
        ({"learning_rate": math.nan}, "learning_rate: expected a finite number from 0 on, found nan"),
    ],
)
def test_a_field_that_is_not_what_it_must_be_is_named(change, message):
    deployed, task = regression()
    with pytest.raises(updcomp.Error, match=message):
        full()(KEY, deployed, task._replace(**change))


def test_validation_data_without_rows_are_refused():
    deployed, task = regression()
    empty = jax.tree.map(lambda leaf: leaf[:0], task.validation)
    with pytest.raises(updcomp.Error, match="validation: expected at least one row, found none"):
        full()(KEY, deployed, task._replace(validation=empty))


@pytest.mark.parametrize("field", ["train", "validation"])
def test_leaves_of_different_length_are_refused_by_name(field):
    deployed, task = regression()
    broken = {**getattr(task, field), "target": getattr(task, field)["target"][1:]}
    with pytest.raises(
        updcomp.Error, match="data leaf 'target': expected a leading axis as long as that of 'features/x'"
    ):
        full()(KEY, deployed, task._replace(**{field: broken}))


def test_a_leaf_of_the_model_that_is_no_array_is_refused_by_name():
    deployed, task = digits()
    with pytest.raises(updcomp.Error, match="leaf 'activation': expected an array, found"):
        full()(KEY, {**deployed, "activation": jax.nn.relu}, task)


def not_finite(logits, labels):
    return cross_entropy(logits, labels) * math.nan


def test_a_loss_that_is_not_finite_stops_with_the_step_and_the_method():
    deployed, task = digits()
    apply = models.mlp(hidden=(24,)).apply
    with pytest.raises(updcomp.wire.errors.NonFiniteError, match="low_rank.*step 0; lower the learning rate"):
        low_rank(rank=1)(KEY, deployed, task._replace(objective=classification(apply, loss=not_finite)))


def test_a_score_that_is_nan_stops_training():
    deployed, task = regression()
    objective = Objective(REGRESSION.loss, lambda variables, batch: jnp.float32(math.nan))
    with pytest.raises(
        updcomp.wire.errors.NonFiniteError, match="full: the score on the validation data is NaN after 6"
    ):
        full()(KEY, deployed, task._replace(objective=objective))


@pytest.mark.parametrize(
    ("objective", "message"),
    [
        (Objective(lambda v, b, key: jnp.ones(3)), r"loss: expected a floating scalar, found float32 \(3,\)"),
        (Objective(REGRESSION.loss, lambda v, b: b["target"][0]), r"score: expected a floating scalar, .* \(2,\)"),
    ],
)
def test_losses_and_scores_that_are_no_scalars_stop_training(objective, message):
    deployed, task = regression()
    with pytest.raises(updcomp.Error, match=message):
        full()(KEY, deployed, task._replace(objective=objective))


def test_the_callback_gets_every_epoch_and_the_best_of_them_travels():
    deployed, task = regression()
    epochs = []
    new = applied(full()(KEY, deployed, task._replace(callback=epochs.append)), deployed)
    assert [(epoch.training, epoch.number) for epoch in epochs] == [("full", number) for number in (1, 2, 3, 4)]
    assert all(isinstance(epoch.score, float) and epoch.seconds > 0 for epoch in epochs)
    assert max(epoch.score for epoch in epochs) == pytest.approx(score(new, task), rel=1e-6)
    assert epochs[-1].loss < epochs[0].loss
    assert epochs[0].metrics is None


def test_the_loss_of_an_epoch_is_the_mean_over_its_steps():
    """With a learning rate of zero every step has the deployed model, and an epoch every row once."""
    deployed, task = regression()
    epochs = []
    full()(KEY, deployed, task._replace(callback=epochs.append, learning_rate=0.0, epochs=2))
    expected = float(REGRESSION.loss(deployed, task.train, KEY))
    assert [epoch.loss for epoch in epochs] == pytest.approx([expected] * 2, rel=1e-5)
    assert [epoch.score for epoch in epochs] == pytest.approx([score(deployed, task)] * 2, rel=1e-6)


def test_a_callback_changes_nothing():
    deployed, task = regression()
    told, silent = (
        partial(ratio=0.3)(KEY, deployed, task._replace(callback=callback)) for callback in (print_nothing, None)
    )
    assert updcomp.encode(told, deployed) == updcomp.encode(silent, deployed)


def print_nothing(epoch):
    assert np.isfinite(epoch.score)
