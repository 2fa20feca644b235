"""Deltas, contributions, factors and subspaces: closed forms and references in float64."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import updcomp
from updcomp import contribution, delta, factorize, subspace
from updcomp.training import optimizers
from updcomp.wire import views
from updcomp.wire.increments import round_step
from updcomp.wire.packet import Packet


def normal(seed, shape):
    return jax.random.normal(jax.random.key(seed), shape)


def test_delta_is_new_minus_old():
    assert delta.between({"w": jnp.array([1.0])}, {"w": jnp.array([3.0])})["w"].tolist() == [2.0]


def test_rewinding_keeps_the_bits_of_unsent_weights():
    old, new, mask = normal(0, (9, 9)), normal(1, (9, 9)), normal(2, (9, 9)) > 0
    rewound = np.asarray(delta.rewind(old, new, mask))
    np.testing.assert_array_equal(rewound[mask], np.asarray(new)[mask])
    np.testing.assert_array_equal(rewound[~mask], np.asarray(old)[~mask])


def adam_increment(gradient, weights, moments, step, decay=0.0):
    """One step of Adam, with AdamW's decay, at the learning rate 1: Loshchilov, Hutter (ICLR 2019), algorithm 2."""
    moments["m"] = 0.9 * moments.get("m", 0.0) + 0.1 * gradient
    moments["v"] = 0.999 * moments.get("v", 0.0) + 0.001 * gradient**2
    mean, square = moments["m"] / (1 - 0.9**step), moments["v"] / (1 - 0.999**step)
    return -(mean / (np.sqrt(square) + 1e-8) + decay * weights)


def nesterov_increment(gradient, weights, moments, step, decay=1e-2):
    """One step of SGD with Nesterov's momentum and L2 decay at the learning rate 1, as PyTorch has it."""
    gradient = gradient + decay * weights
    moments["trace"] = 0.9 * moments.get("trace", 0.0) + gradient
    return -(gradient + 0.9 * moments["trace"])


def decayed_nesterov(rate):
    return optax.chain(optax.add_decayed_weights(1e-2), optax.sgd(rate, momentum=0.9, nesterov=True))


@pytest.mark.parametrize(
    ("factory", "increment"),
    [
        (optax.adam, adam_increment),
        (functools.partial(optax.adamw, weight_decay=0.5), functools.partial(adam_increment, decay=0.5)),
        (decayed_nesterov, nesterov_increment),
    ],
    ids=["Adam", "AdamW", "Nesterov with decay"],
)
def test_recording_sums_gradients_times_what_the_weights_really_moved(factory, increment):
    """-sum g_q (w_q+1 - w_q) of a float64 twin, whose g_q knows no decay, on f = sum a_i w_i^2 / 2."""
    curvature, start = np.random.default_rng(0).uniform(0.5, 2.0, (2, 6, 5))
    recorder, rate, steps = contribution.record(optimizers.with_learning_rate(factory)), 0.01, 20

    def step(_, carry):
        params, state = carry
        updates, state = recorder.update(jnp.float32(curvature) * params, state, params, learning_rate=rate)
        return optax.apply_updates(params, updates), state

    params = jnp.asarray(start, jnp.float32)
    params, state = jax.jit(lambda carry: jax.lax.fori_loop(0, steps, step, carry))((params, recorder.init(params)))
    weights, expected, moments = start, np.zeros_like(start), {}
    for count in range(1, steps + 1):
        moved = weights + rate * increment(curvature * weights, weights, moments, count)
        expected -= curvature * weights * (moved - weights)
        weights = moved
    np.testing.assert_allclose(params, weights, rtol=1e-4)
    np.testing.assert_allclose(state.local, expected, rtol=1e-4)


@pytest.mark.parametrize("factory", [optax.sgd, optax.adam, decayed_nesterov], ids=["SGD", "Adam", "Nesterov"])
@jax.numpy_dtype_promotion("standard")  # optax's Adam promotes on its own
def test_recording_leaves_the_updates_alone(factory):
    optimizer = factory(0.1)
    recorder, params = contribution.record(optimizer), {"w": normal(0, (4, 3))}
    state, plain_state = recorder.init(params), optimizer.init(params)
    for step in range(5):
        gradients = {"w": normal(step + 1, (4, 3))}
        plain, plain_state = optimizer.update(gradients, plain_state, params)
        updates, state = recorder.update(gradients, state, params)
        np.testing.assert_array_equal(updates["w"], plain["w"])
        params = optax.apply_updates(params, updates)


def test_on_a_quadratic_the_local_contribution_is_the_loss_reduction_of_small_steps():
    """For f = sum a_i w_i^2 / 2, -g d summed over small steps tends to each weight's own loss reduction."""
    curvature = jnp.array([1.0, 4.0, 0.25])
    optimizer = contribution.record(optax.sgd(1e-3))
    start = params = jnp.array([1.0, -2.0, 3.0])
    state = optimizer.init(params)
    for _ in range(2000):
        updates, state = optimizer.update(curvature * params, state)
        params = optax.apply_updates(params, updates)
    reduction = curvature * (start**2 - params**2) / 2
    np.testing.assert_allclose(state.local, reduction, rtol=5e-3)


def test_the_global_contribution_bounds_the_loss_of_rewinding():
    """At the minimum of a quadratic with largest curvature L: f(rewound) - f(minimum) <= L/2 sum of what is rewound."""
    basis, _ = np.linalg.qr(np.random.default_rng(0).normal(size=(8, 8)))
    hessian = basis @ np.diag(np.linspace(0.1, 2.0, 8)) @ basis.T
    old, best = np.random.default_rng(1).normal(size=(2, 8))
    mask = np.arange(8) < 3
    rewound = np.where(mask, best, old)
    loss = (rewound - best) @ hessian @ (rewound - best) / 2
    scores = np.asarray(contribution.squared_change(jnp.asarray(old, jnp.float32), jnp.asarray(best, jnp.float32)))
    assert loss <= 2.0 / 2 * scores[~mask].sum() * (1 + 1e-5)


def test_both_contributions_weigh_the_same_whatever_their_units():
    scores = (
        {"a": jnp.array([1.0, 2.0]), "b": jnp.array([[3.0]])},
        {"a": jnp.array([5.0, -1.0]), "b": jnp.array([[1.0]])},
    )
    combined = contribution.combine(*scores)
    scaled = contribution.combine(
        jax.tree.map(lambda x: 1e4 * x, scores[0]), jax.tree.map(lambda x: 1e-3 * x, scores[1])
    )
    for name in combined:
        np.testing.assert_allclose(combined[name], scaled[name], rtol=1e-5)
    assert sum(float(leaf.sum()) for leaf in combined.values()) == pytest.approx(1.0)


@pytest.mark.parametrize("local", [[0.0, 0.0], [-3.0, 1.0]], ids=["zero", "negative"])
def test_a_local_contribution_that_does_not_sum_to_a_gain_leaves_the_ranking_to_the_global_one(local):
    for weight in (0.0, 0.5, 1.0):
        combined = contribution.combine(jnp.array([1.0, 3.0]), jnp.array(local), weight)
        assert combined.tolist() == pytest.approx([0.25, 0.75])


def test_the_weight_of_the_contributions_is_checked():
    with pytest.raises(ValueError, match="from 0 to 1"):
        contribution.combine(jnp.ones(1), jnp.ones(1), 1.5)


@pytest.mark.parametrize("rank", [1, 2, 4])
@pytest.mark.parametrize("shape", [(6, 4), (3, 3, 2, 5)])
def test_factors_start_at_the_deployed_kernel_and_can_leave_it(shape, rank):
    factors = factorize.init(jax.random.key(0), shape, rank)
    assert not np.any(factorize.product(factors, shape))
    gradients = jax.grad(lambda pair: jnp.sum(factorize.product(pair, shape) * normal(1, shape)))(factors)
    assert any(np.any(gradient) for gradient in gradients)


def test_the_truncated_svd_is_the_best_approximation():
    update = normal(0, (3, 3, 4, 10))
    singular = np.linalg.svd(np.float64(update).reshape(36, 10), compute_uv=False)
    for rank in (1, 3, 10):
        error = np.linalg.norm(factorize.product(factorize.truncated_svd(update, rank), update.shape) - update)
        assert error == pytest.approx(np.sqrt((singular[rank:] ** 2).sum()), abs=1e-4)


@pytest.mark.parametrize("bits", [2, 4, 8, 14, 16])
def test_quantised_factors_multiply_to_what_the_wire_carries(bits):
    factors = factorize.Factors(normal(0, (2, 12, 3)), normal(1, (2, 7, 3)))
    view = views.of_words("stack in out")
    seen = factorize.product(factorize.quantized(factors, bits), (2, 12, 7), view=view)
    block = factorize.to_block(factors, bits, view=view)
    assert (block.left.shape, block.right.shape, block.view) == ((24, 3), (14, 3), view)
    assert round_step(block.step) == block.step
    products = block.left.reshape(2, 12, 3) @ block.right.reshape(2, 7, 3).transpose(0, 2, 1)
    np.testing.assert_allclose(seen, products * block.step, rtol=1e-5, atol=1e-5)


def test_columns_beyond_the_rank_neither_set_the_step_nor_travel():
    few = factorize.Factors(normal(0, (1, 12, 3)), normal(1, (1, 7, 3)))
    padded = factorize.Factors(*(jnp.pad(factor, ((0, 0), (0, 0), (0, 13))) for factor in few))
    jax.tree.map(np.testing.assert_array_equal, factorize.to_block(padded, 4, rank=3), factorize.to_block(few, 4))
    noisy = jax.tree.map(lambda factor: factor.at[:, :, 3:].set(1e6), padded)
    jax.tree.map(np.testing.assert_array_equal, factorize.to_block(noisy, 4, rank=3), factorize.to_block(few, 4))


@pytest.mark.parametrize("words", ["in out out", "stack in out"])
def test_the_basis_captures_low_rank_kernels(words):
    view, shape = views.of_words(words), (20, 6, 5)
    stack, fan_in, fan_out = views.shape_of(shape, view)
    kernel = views.join(normal(0, (stack, fan_in, 2)) @ normal(1, (stack, 2, fan_out)), shape, view)
    found = subspace.basis_of(kernel, 2, index=0, view=view)
    coefficients = subspace.project(kernel, found, view=view)
    assert coefficients.shape == (stack, 2, 2)
    np.testing.assert_allclose(subspace.update(coefficients, found, shape, view=view), kernel, atol=2e-2)
    np.testing.assert_allclose(found.left.mT @ found.left, np.tile(np.eye(2), (stack, 1, 1)), atol=1e-3)


def test_projection_is_the_gradient_of_the_coefficients():
    found = subspace.basis_of(normal(0, (10, 8)), 3, index=0)
    gradient = normal(1, (10, 8))
    by_coefficients = jax.grad(lambda c: jnp.sum(subspace.update(c, found, (10, 8)) * gradient))(jnp.zeros((1, 3, 3)))
    np.testing.assert_allclose(by_coefficients, subspace.project(gradient, found), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("shape", [(512, 10), (10, 512), (3, 3, 40, 12), (300, 1)])
def test_a_narrow_kernel_gets_the_geometric_mean_of_both_counts(shape):
    rank = 40
    found = subspace.basis_of(normal(0, shape), subspace.widened(rank, shape), index=0)
    narrow, wide = sorted(side.shape[-1] for side in found)
    assert narrow == min(views.shape_of(shape, views.resolve(None, len(shape)))[1:])
    assert narrow * wide == pytest.approx(np.sqrt(rank * narrow * rank**2), rel=0.02)


def test_wide_and_empty_kernels_keep_the_rank():
    assert [subspace.widened(40, shape) for shape in [(512, 40), (60, 41), (512, 0), (0, 3)]] == [40] * 4
    assert subspace.widened(1000, (1, 70)) == 70


def test_blocks_made_by_hand_are_the_float_products_within_their_steps():
    """What a paper writes in floats becomes an update without a method: factors, or coefficients in a shared basis."""
    deployed = {"stacked": normal(0, (3, 8, 6)), "w": normal(1, (10, 8))}
    view = views.of_words("stack in out")
    factors = factorize.truncated_svd(1e-2 * normal(2, (3, 8, 6)), 2, view=view)
    found = subspace.basis_of(deployed["w"], 4, index=1, seed=7)
    coefficients = subspace.project(1e-2 * normal(3, (10, 8)), found)
    blocks = {
        "stacked": factorize.to_block(factors, bits=16, view=view),
        "w": subspace.to_block(coefficients, bits=16),
    }
    new = updcomp.apply(updcomp.encode(Packet(blocks, seed=7), deployed), deployed)
    wanted = {
        "stacked": factorize.product(factors, (3, 8, 6), view=view),
        "w": subspace.update(coefficients, found, (10, 8)),
    }
    for name, change in wanted.items():
        # A rounding to 16 bits, and the step's own to 8.
        np.testing.assert_allclose(new[name] - deployed[name], change, atol=5e-3 * float(jnp.abs(change).max()))
        assert np.abs(change).max() > 1e-3
