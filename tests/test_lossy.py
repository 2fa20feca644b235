"""Lossy differences: what a step, an error and a number of bytes promise, and how leaves share the bytes."""

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

import updcomp
from updcomp import contribution
from updcomp.__main__ import main
from updcomp.edge import files
from updcomp.lossy import low_rank, rates, rounding, sampling
from updcomp.wire.kinds.exact import Exact
from updcomp.wire.kinds.factors import Factors

RNG = np.random.default_rng(0)


def normal(*shape, scale=1.0):
    return (scale * RNG.standard_normal(shape)).astype(np.float32)


def applied(packet, old):
    return updcomp.apply(updcomp.encode(packet, old), old)


def pair(shape=(96, 64), scale=0.01, dtype=np.float32):
    old = normal(*shape, scale=0.05)
    return {"w": old.astype(dtype)}, {"w": (old + normal(*shape, scale=scale)).astype(dtype)}


def adapted(rank=2, shape=(256, 192), scale=0.004, dtype=ml_dtypes.bfloat16):
    """A model, and the same with an adapter merged into it."""
    old = normal(*shape, scale=0.05).astype(dtype)
    product = normal(shape[0], rank) @ normal(rank, shape[1])
    return {"w": old}, {"w": (old.astype(np.float32) + scale * product).astype(dtype)}


def relative_error(result, old, new):
    result, old, new = (np.asarray(model["w"], np.float64) for model in (result, old, new))
    return np.linalg.norm(result - new) / np.linalg.norm(new - old)


@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.float16, ml_dtypes.bfloat16])
@pytest.mark.parametrize("most", [1e-5, 3e-4, 0.00123, 0.02])
def test_no_weight_is_further_than_the_error_from_the_new_one(dtype, most):
    old, new = pair(dtype=dtype)
    result = applied(updcomp.diff(old, new, max_error=most), old)
    assert np.abs(np.float64(result["w"]) - np.float64(new["w"])).max() <= most


def test_an_error_takes_about_the_bytes_of_twice_that_step():
    old, new = pair()
    sizes = [len(updcomp.encode(updcomp.diff(old, new, **how), old)) for how in ({"max_error": 1e-3}, {"step": 2e-3})]
    assert sizes[0] <= 1.02 * sizes[1]


def test_an_error_below_the_last_place_is_exact():
    old, new = pair(dtype=ml_dtypes.bfloat16)
    result = applied(updcomp.diff(old, new, max_error=1e-9), old)
    assert result["w"].tobytes() == new["w"].tobytes()


def test_an_error_goes_with_infinities_empty_leaves_and_integers():
    old = {"w": np.float32([np.inf, 1, 2]), "n": np.arange(3), "empty": np.zeros((0, 3), np.float32)}
    new = {"w": np.float32([np.inf, np.nan, 3]), "n": np.arange(3) + 1, "empty": np.zeros((0, 3), np.float32)}
    for how in ({"max_error": 0.5}, {"max_bytes": 400}):
        result = applied(updcomp.diff(old, new, **how), old)
        assert all(result[name].tobytes() == new[name].tobytes() for name in old)


@pytest.mark.parametrize("share", [0.1, 0.9])
@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16])
def test_bytes_are_met_from_below_within_a_percent(share, dtype):
    old, new = pair((300, 200), dtype=dtype)
    budget = int(share * 300 * 200)
    size = len(updcomp.encode(updcomp.diff(old, new, max_bytes=budget), old))
    assert 0.99 * budget <= size <= budget


def test_a_merged_adapter_is_found_again():
    old, new = adapted()
    packet = updcomp.diff(old, new, max_bytes=1000)
    assert isinstance(packet.blocks["w"], Factors)
    assert packet.blocks["w"].left.shape[1] == 2
    assert relative_error(applied(packet, old), old, new) < 0.15
    rounded = updcomp.encode(updcomp.diff(old, new, step=0.02), old)
    assert len(rounded) > 1000
    assert relative_error(updcomp.apply(rounded, old), old, new) > 0.5


def test_a_kernel_of_four_axes_is_the_matrix_of_its_last():
    old, new = adapted(shape=(3 * 3 * 16, 64), dtype=np.float32)
    old, new = ({"w": model["w"].reshape(3, 3, 16, 64)} for model in (old, new))
    packet = updcomp.diff(old, new, max_bytes=500)
    assert isinstance(packet.blocks["w"], Factors)


def test_noise_is_rounded():
    assert not isinstance(updcomp.diff(*pair((256, 192)), max_bytes=6000).blocks["w"], Factors)


def test_an_insensitive_leaf_gets_the_coarser_step():
    old, new = (dict.fromkeys("ab", model["w"]) for model in pair((200, 100)))
    blocks = updcomp.diff(old, new, max_bytes=20_000, sensitivity={"a": 1.0, "b": 1 / 16}).blocks
    assert blocks["b"].step / blocks["a"].step == pytest.approx(4, rel=0.02)
    blocks = updcomp.diff(old, new, max_bytes=3000, sensitivity={"a": np.ones((200, 100)), "b": 0}).blocks
    assert set(blocks) == {"a"}


def test_more_bytes_err_less():
    old, new = pair((200, 100))
    errors = [
        relative_error(applied(updcomp.diff(old, new, max_bytes=budget), old), old, new)
        for budget in (500, 1500, 4000, 12_000, 80_000)
    ]
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"step": 1.0, "max_error": 1.0}, "step, max_error: expected at most one of them"),
        ({"step": float("nan")}, "step: expected a positive finite number, found nan"),
        ({"max_error": -1}, "max_error: expected a positive finite number, found -1"),
        ({"max_error": float("inf")}, "max_error: expected"),
        ({"max_bytes": 0}, "max_bytes: expected a positive"),
        ({"sensitivity": {"w": 1.0}}, "sensitivity: expected with max_bytes alone"),
        ({"max_bytes": 999, "sensitivity": {"w": -1.0}}, "leaf 'w': sensitivity: expected finite numbers"),
        ({"max_bytes": 999, "sensitivity": {"w": np.ones(3)}}, r"sensitivity: expected shape \(96, 64\) or \(\)"),
        ({"max_bytes": 999, "sensitivity": {"v": 1.0}}, "sensitivity: expected a tree of numbers like the model"),
    ],
)
def test_bad_options_are_named(options, message):
    with pytest.raises(updcomp.Error, match=message):
        updcomp.diff(*pair(), **options)


def test_the_spectrum_is_that_of_the_whole_decomposition():
    matrix = normal(80, 5) @ normal(5, 120) + normal(80, 120, scale=0.01)
    found = low_rank.spectrum(matrix)
    values = np.linalg.svd(matrix, compute_uv=False)
    np.testing.assert_allclose(found.values[:5], values[:5], rtol=1e-4)
    assert found.energy == pytest.approx((values**2).sum(), rel=1e-5)
    np.testing.assert_allclose(found.right[:, :5].T @ found.right[:, :5], np.eye(5), atol=1e-4)


def test_what_is_estimated_is_what_comes_out():
    old, new = pair((400, 300))
    leaf = sampling.survey(old["w"], new["w"], np.array(1.0))
    for spacing in (0.005, 0.02):
        choice = next(found for found in rates.choices(leaf, spacing) if found.kind == "rounded")
        block = rounding.rounded(old["w"], new["w"], choice.spacing, choice.step)
        update = updcomp.encode(updcomp.wire.packet.Packet({"w": block}), old)
        assert choice.bits / 8 == pytest.approx(len(update) - 48, rel=0.05)
        result = updcomp.apply(update, old)["w"].astype(np.float64)
        assert choice.error == pytest.approx(((result - new["w"]) ** 2).sum(), rel=0.05)


def test_dither_is_even_and_small():
    changes = np.linspace(-10, 10, 4001, dtype=np.float32)
    plain, dithered = (rounding.quantised(changes, 1.0, dithered=dithered) for dithered in (False, True))
    assert (plain != dithered).mean() < 0.04
    assert abs((dithered - changes).mean()) < 1e-3


def test_exact_is_chosen_where_it_is_smaller():
    old = {"w": normal(64, 64).astype(ml_dtypes.bfloat16)}
    new = {"w": (old["w"].view(np.uint16) + np.uint16(1)).view(ml_dtypes.bfloat16)}
    assert isinstance(updcomp.diff(old, new, max_error=1e-6).blocks["w"], Exact)


def test_squared_gradients_are_those_of_each_row():
    weights = {"w": jnp.array([1.0, -2.0]), "n": jnp.arange(2)}
    batch = {"x": jnp.array(normal(6, 2)), "y": jnp.array(normal(6))}

    def loss(variables, batch, key):
        return jnp.mean((batch["x"] @ variables["w"] - batch["y"]) ** 2)

    found = jax.jit(lambda w, b: contribution.squared_gradients(loss, w, b, jax.random.key(0)))(weights, batch)
    each = 2 * (batch["x"] @ weights["w"] - batch["y"])[:, None] * batch["x"]
    np.testing.assert_allclose(found["w"], (each**2).mean(axis=0), rtol=1e-5)
    assert found["n"].tolist() == [0, 0]


def test_the_command_line_has_all_three_bounds(tmp_path, capsys):
    old, new = pair()
    for name, model in (("old", old), ("new", new)):
        files.write_model(tmp_path / f"{name}.npz", model)
    base, update = [str(tmp_path / f"{name}.npz") for name in ("old", "new")], tmp_path / "update"
    for bound in ("--max-error=1e-3", "--max-bytes=2kB", "--step=0.01"):
        assert main(["diff", *base, "-o", str(update), bound]) == 0
        found = updcomp.apply(update.read_bytes(), old)["w"]
        if bound == "--max-error=1e-3":
            assert rounding.distance(found, new["w"]) <= 1e-3
        if bound == "--max-bytes=2kB":
            assert 1980 <= update.stat().st_size <= 2000
    capsys.readouterr()
    assert main(["diff", *base, "-o", str(update), "--max-error=nan"]) == 2
    assert "max_error: expected a positive finite number, found nan" in capsys.readouterr().err
