"""Methods on models and batches that are no labelled images."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.methods.worlds import KEY, TOKENS, applied, assert_helps, assert_like, regression, score, tokens
from updcomp.methods import METHODS, by_path, full, low_rank, partial, subspace
from updcomp.training import Extra, Objective

OPTIONS = {
    "full": {"bits": 8},
    "partial": {"ratio": 0.3},
    "low_rank": {"rank": 2},
    "subspace": {"rank": 2, "aux": 16},
    "random_mask": {"ratio": 0.3},
    "magnitude_mask": {"ratio": 0.3},
    "neurons": {"selection": "velocity", "weights": 0.5},
    "fit_budget": {"max_bytes": 1000, "families": ("full",)},
    "random_low_rank": {"rank": 2, "rate": 10.0},
    "subsample": {"ratio": 0.9, "unbiased": False},
    "stochastic_quantize": {"bits": 6, "rotated": True},
    "truncated_svd": {"rank": 2},
    "vera": {"rank": 4, "rate": 10.0},
    "uni_lora": {"size": 16, "rate": 10.0},
    "tiny_lora": {"size": 16, "share": 1},
    "nola": {"size": 16, "rate": 10.0},
    "pranc": {"size": 16, "rate": 10.0},
    "fourier": {"size": 16, "rate": 10.0},
}


@pytest.mark.parametrize("name", METHODS)
def test_a_regression_on_nested_dicts_is_updated_by_every_method(name):
    deployed, task = regression()
    new = assert_helps(METHODS[name](**OPTIONS[name])(KEY, deployed, task), deployed, task)
    assert_like(new, deployed)


METHODS_OF_TOKENS = {
    "full": full(bits=4),
    "partial": partial(ratio=0.5),
    "low_rank beside an embedding that stays": by_path({"embedding": None, ".*": low_rank(rank=4)}),
}


@pytest.mark.parametrize("method", METHODS_OF_TOKENS)
def test_a_model_of_tokens_with_padding_is_updated(method):
    deployed, task = tokens()
    assert_helps(METHODS_OF_TOKENS[method](KEY, deployed, task), deployed, task)


def test_the_score_is_a_mean_over_tokens_and_padding_counts_nothing():
    """Against NumPy in float64; rows differ in their number of tokens, and 37 rows in batches of 8 leave 5."""
    deployed, task = tokens()
    epochs = []
    task = task._replace(learning_rate=0.0, epochs=1, eval_batch_size=8, callback=epochs.append)
    full()(KEY, deployed, task)
    ids, mask = (np.asarray(task.validation[name]) for name in ("tokens", "mask"))
    logits = np.float64(deployed["embedding"])[ids] @ np.float64(deployed["output"])
    log_normaliser = np.log(np.exp(logits).sum(-1))
    hit = np.take_along_axis(logits, ((ids.astype(int) + 1) % 11)[..., None], -1)[..., 0]
    losses = (log_normaliser - hit) * mask
    assert epochs[0].score == pytest.approx(-losses.sum() / mask.sum(), rel=1e-5)
    assert score(deployed, task) == pytest.approx(epochs[0].score, rel=1e-5)
    means_of_rows = (losses.sum(1) / mask.sum(1)).mean()
    assert abs(losses.sum() / mask.sum() - means_of_rows) > 1e-2  # what a mean of means would give


def test_uint8_tokens_reach_the_loss_as_they_are():
    deployed, task = tokens()
    epochs = []
    train = {**task.train, "tokens": task.train["tokens"].at[:, 0].set(10)}
    full()(KEY, deployed, task._replace(train=train, epochs=1, callback=epochs.append))
    assert epochs[0].metrics["largest"] == 10
    seen = []

    def spied(variables, batch, key):
        seen.append(batch["tokens"].dtype)
        return TOKENS.loss(variables, batch, key)

    full()(KEY, deployed, task._replace(objective=Objective(spied, TOKENS.score), epochs=1))
    assert set(seen) == {jnp.dtype(jnp.uint8)}


def dropped(variables, batch, key, *, train):
    """A linear model with dropout in training only; says what it drew."""
    draw = jax.random.uniform(key)
    kept = jnp.where(jax.random.bernoulli(key, 0.5, batch["x"].shape), 2.0, 0.0)
    inputs = batch["x"] * (kept if train else jnp.ones_like(kept))
    metrics = {"draw": draw, "train": jnp.float32(train)}
    return jnp.mean((inputs @ variables["w"] - batch["y"]) ** 2), Extra(metrics=metrics)


def dropout_world():
    x = np.random.default_rng(0).normal(size=(24, 5)).astype(np.float32)
    data = jax.device_put({"x": x, "y": x @ np.float32([[1], [2], [3], [4], [5]])})
    _, task = regression()
    return {"w": jnp.zeros((5, 1))}, task._replace(
        objective=Objective(dropped), train=data, validation=data, batch_size=24, epochs=5, learning_rate=0.1
    )


def test_a_loss_with_dropout_draws_anew_at_every_step_and_scores_without():
    """Each epoch is one step, so that its metrics are those of the step."""
    deployed, task = dropout_world()
    epochs = []
    new = applied(full()(KEY, deployed, task._replace(callback=epochs.append)), deployed)
    draws = [float(epoch.metrics["draw"]) for epoch in epochs]
    assert len(set(draws)) == 5
    assert [float(epoch.metrics["train"]) for epoch in epochs] == [1.0] * 5
    data = task.validation
    expected = -np.mean((np.float64(data["x"]) @ np.float64(new["w"]) - np.float64(data["y"])) ** 2)
    assert max(epoch.score for epoch in epochs) == pytest.approx(expected, rel=1e-5)
    assert expected > score(deployed, task)


def test_the_key_of_the_method_decides_what_a_loss_draws():
    deployed, task = dropout_world()
    draws = {}
    for seed in (0, 1, 1):
        epochs = []
        full()(jax.random.key(seed), deployed, task._replace(callback=epochs.append))
        again = [float(epoch.metrics["draw"]) for epoch in epochs]
        assert draws.setdefault(seed, again) == again
    assert not set(draws[0]) & set(draws[1])


def test_a_method_of_two_trainings_draws_other_numbers_in_the_second():
    deployed, task = dropout_world()
    epochs = []
    partial(ratio=0.5)(KEY, deployed, task._replace(callback=epochs.append))
    assert [epoch.training for epoch in epochs] == ["partial-full"] * 5 + ["partial-sparse"] * 5
    assert [epoch.number for epoch in epochs] == [1, 2, 3, 4, 5] * 2
    assert len({float(epoch.metrics["draw"]) for epoch in epochs}) == 10


def test_a_single_kernel_in_no_dict_is_a_model():
    _, task = dropout_world()

    def loss(kernel, batch, key):
        return jnp.mean((batch["x"] @ kernel - batch["y"]) ** 2)

    made = subspace(rank=1, bits=8)(KEY, jnp.full((5, 1), 0.1), task._replace(objective=Objective(loss)))
    assert list(made.blocks) == [""]
