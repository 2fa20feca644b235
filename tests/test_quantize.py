"""Quantisation: trainer and wire find the same integers, however a training is compiled."""

from importlib.metadata import version

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from updcomp import quantize
from updcomp.wire.increments import round_step


def normal(seed, shape):
    return jax.random.normal(jax.random.key(seed), shape)


@settings(max_examples=50)
@given(st.integers(2, 16), st.integers(0, 1000))
def test_trainer_and_wire_round_to_the_same_integers(bits, seed):
    assert_the_same_integers(np.asarray(normal(seed, (50,))), bits)


def as_trained(x, grid):
    """What a training sees, inside of a larger compiled function."""
    step = quantize.dynamic_step(x, grid)
    return step, quantize.straight_through(x, step, grid)


AS_USERS_DO = {"xla_backend_optimization_level": 3}
if version("jaxlib").startswith("0.10."):  # another one may not know it
    AS_USERS_DO["xla_cpu_use_fusion_emitters"] = True
COMPILED = [jax.jit(as_trained), jax.jit(as_trained, compiler_options=AS_USERS_DO)]


def assert_the_same_integers(x, bits):
    for compiled in COMPILED:
        step, seen = compiled(x, quantize.grid(bits))
        integers, sent = quantize.to_integers(x, bits, step=step)
        assert sent == float(step)
        assert integers.dtype == np.int32
        assert np.abs(integers).max() <= quantize.max_level(bits)
        # The device's own product, up to the rounding of x + (q * step - x).
        np.testing.assert_array_equal(np.rint(np.float64(seen) / sent), integers)


@pytest.mark.parametrize("bits", range(2, 17))
def test_they_do_near_every_half(bits):
    """Quotients that are halves, or the floats next to one, where a division of another kind rounds otherwise."""
    level = quantize.max_level(bits)
    halves = np.float32(np.unique(np.linspace(0, level, 200).astype(int))) + np.float32(0.5)
    step = np.float32(round_step(0.1))
    exact = halves * step
    near = [exact, np.nextafter(exact, np.float32(0)), np.nextafter(exact, np.float32(np.inf))]
    # The largest sets the step.
    x = np.concatenate([*near, *(-part for part in near), [level * step]]).clip(-level * step, level * step)
    assert_the_same_integers(x.astype(np.float32), bits)


def test_they_do_where_they_once_did_not():
    assert_the_same_integers(np.asarray(normal(84, (50,))), 14)


def test_the_dynamic_step_looks_at_sent_weights_only():
    x, sent = jnp.array([100.0, 1.0, -1.0]), jnp.array([False, True, True])
    assert float(quantize.dynamic_step(x, 16, where=sent)) == pytest.approx(1 / 32767, rel=1e-2)


def test_rounding_lets_gradients_through_unchanged():
    gradient = jax.grad(
        lambda x: jnp.sum(quantize.straight_through(x, quantize.dynamic_step(x, 2), 2) * jnp.arange(5.0))
    )
    np.testing.assert_allclose(gradient(normal(0, (5,))), np.arange(5.0))


def test_the_least_squares_step_beats_its_neighbours():
    x = np.asarray(normal(0, (2000,)))

    def error(step):
        return np.mean((np.clip(np.rint(x / step), -7, 7) * step - x) ** 2)

    step = quantize.least_squares_step(x, 4)
    assert error(step) < min(error(0.8 * step), error(1.25 * step))


def test_zeros_quantise_to_zeros():
    integers, step = quantize.to_integers(np.zeros(3), 4)
    assert not integers.any()
    assert step > 0


@pytest.mark.parametrize("bits", [1, 17])
def test_bits_out_of_range(bits):
    with pytest.raises(ValueError, match="from 2 to 16"):
        quantize.max_level(bits)
