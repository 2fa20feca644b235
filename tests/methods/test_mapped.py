"""Short vectors, sketches and ranks: what they send is what was trained, and bad kernels are refused or harmless."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import updcomp
from tests.methods.worlds import KEY, REGRESSION, regression
from updcomp import factorize, quantize, trees
from updcomp.methods import METHODS, low_rank, ranks, recipes, sketches, subspace
from updcomp.methods.forms import Site
from updcomp.methods.mapped import MappedVector
from updcomp.partition import KERNEL, Leaf
from updcomp.wire import apply, container, packet, views
from updcomp.wire.maps import MAPS

FORMS = {
    "half": MappedVector(recipes.HALF, 2, 6),
    "scaled": MappedVector(recipes.SCALED, 5, 6),
    "mixed": MappedVector(recipes.MIXED, 12, 6, 2),
    "grouped": MappedVector(recipes.GROUPED, 12, 6, 4),
    "waves": MappedVector(recipes.WAVES, 9, 6),
    "tied": MappedVector(recipes.TIED, 7, 6, 4),
    "coefficients": MappedVector(recipes.COEFFICIENTS, 5, 6),
    "places": MappedVector(recipes.PLACES, 0.4, 6),
    "spread": MappedVector(recipes.SPREAD, 11, 6),
}
SKETCHES = {
    "subsample": sketches.Subsample(0.4, None, unbiased=True),
    "levels": sketches.StochasticLevels(3, rotated=False, coded=False),
    "rotated": sketches.StochasticLevels(3, rotated=True, coded=True),
    "svd": sketches.TruncatedSvd(3, None),
}


def site_of(kernel, words="in out", key=KEY):
    leaf = Leaf("w", KERNEL, views.of_words(words))
    held = jnp.asarray(kernel)
    old = held.astype(jnp.float32)
    return Site(leaf, number=0, held=held, old=old, weights=old, seed=7, key=key, place=0)


def normal(shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def device(block, kernel):
    return apply.apply(packet.Packet({"w": block}, 7), {"w": np.asarray(kernel)})["w"]


@pytest.mark.parametrize("words", ["in out", "out in"])
@pytest.mark.parametrize("bits", [6, None])
@pytest.mark.parametrize("name", FORMS)
def test_the_device_makes_of_a_vector_what_training_did(name, bits, words):
    form = FORMS[name].__class__(**{**FORMS[name].__dict__, "bits": bits})
    site = site_of(normal((14, 9)), words)
    start = form.parametrise(site)
    np.testing.assert_allclose(form.rebuild(start.trainable, start.fixed, site.old, site.leaf), site.old, atol=1e-6)
    trained = tuple(jnp.asarray(normal(part.shape, 1)) for part in start.trainable)
    expected = form.rebuild(trained, start.fixed, site.old, site.leaf)
    block = form.block(trained, start, site)
    assert (block.map, bool(block.width)) == (name, bits is None)
    atol = (1e-5 if bits else 2e-3) * float(jnp.abs(expected - site.old).max())
    np.testing.assert_allclose(device(block, site.held), expected, atol=atol)


@pytest.mark.parametrize("name", FORMS)
def test_one_unit_of_a_value_makes_a_change_of_length_one(name):
    """Within a factor of two, so that one learning rate suits vectors of any length and kernels of any size."""
    form = FORMS[name].__class__(**{**FORMS[name].__dict__, "bits": None})
    site = site_of(normal((14, 9)))
    start = form.parametrise(site)
    *left, last = start.trainable
    found = []
    for unit in np.eye(len(last), dtype=np.float32):
        new = form.rebuild((*left, jnp.asarray(unit)), start.fixed, site.old, site.leaf)
        found.append(float(jnp.linalg.norm(new - site.old)))
    assert 0.5 < np.sqrt(np.mean(np.square(found))) < 2


def test_every_map_is_trained_or_a_sketch():
    assert MAPS.keys() == FORMS.keys() | {"factors", "levels", "rotated"}


@pytest.mark.parametrize("rotated", [False, True])
@pytest.mark.parametrize("bits", [1, 4])
def test_drawn_levels_are_the_change_on_average_and_within_its_range(bits, rotated):
    change, total, draws = 0.1 * normal((12, 5), 3), 0.0, 300
    sketch = sketches.StochasticLevels(bits, rotated=rotated, coded=True)
    for draw in range(draws):
        block = sketch.sketch(change, site_of(np.zeros((12, 5)), key=jax.random.key(draw)))
        total = total + device(block, np.zeros((12, 5)))
    level = (change.max() - change.min()) / (2**bits - 1) * (1.5 if rotated else 1)
    np.testing.assert_allclose(total / draws, change, atol=3.9 * level / 2 / draws**0.5)


def test_levels_divide_the_range():
    values = normal(1000).astype(np.float64)
    for bits in range(1, 9):
        found, step = sketches.stochastic_levels(values, bits, np.random.default_rng(0).uniform(size=1000))
        read = (256.0 * found[1:] + found[0]) * step
        width = (values.max() - values.min()) / (2**bits - 1)
        assert len(np.unique(found[1:])) <= 2**bits
        assert np.abs(read - values).max() <= width * 1.03
        assert read.min() >= values.min() - 0.03 * width


def test_a_sample_is_the_change_on_average():
    change = normal((8, 6), 4)
    form = sketches.Subsample(0.25, None, unbiased=True)
    found = []
    for seed in range(400):
        block = form.sketch(change, site_of(np.zeros((8, 6)))._replace(seed=seed))
        found.append(apply.apply(packet.Packet({"w": block}, seed), {"w": np.zeros((8, 6))})["w"])
    np.testing.assert_allclose(np.mean(found, 0), change, atol=4 * np.abs(change).max() * (3 / 400) ** 0.5)
    assert all(np.count_nonzero(one) == 12 for one in found)
    biased = form.__class__(0.25, None, unbiased=False).sketch(change, site_of(np.zeros((8, 6))))
    found = device(biased, np.zeros((8, 6)))
    np.testing.assert_allclose(found[found != 0], change[found != 0], atol=1e-6)


def test_a_truncated_svd_is_the_nearest_of_its_rank():
    change = normal((10, 7), 5)
    left, values, right = np.linalg.svd(change)
    for bits, atol in ((None, 1e-4), (8, 0.06)):
        block = sketches.TruncatedSvd(3, bits).sketch(change, site_of(np.zeros((10, 7))))
        best = (left[:, :3] * values[:3]) @ right[:3]
        np.testing.assert_allclose(device(block, np.zeros((10, 7))), best, atol=atol)


@pytest.mark.parametrize(("form", "count"), [(FORMS["half"], 18), (FORMS["places"], 50), (FORMS["tied"], 7)])
def test_published_numbers_take_four_bytes_each(form, count):
    form = form.__class__(**{**form.__dict__, "bits": None})
    site = site_of(normal((14, 9)))
    start = form.parametrise(site)
    block = form.block(tuple(jnp.asarray(normal(part.shape, 1)) for part in start.trainable), start, site)
    update = container.encode(packet.Packet({"w": block}, 7), {"w": np.asarray(site.held)})
    assert len(block.values) == count
    assert 4 * count + 40 < len(update) < 4 * count + 70


KERNELS = {
    "zeros": np.zeros((6, 4), np.float32),
    "constant": np.full((6, 4), 0.5, np.float32),
    "one row": normal((1, 8)),
}


@pytest.mark.parametrize("kernel", KERNELS)
def test_kernels_without_directions_take_any_form(kernel):
    """Ranks and sizes beyond the kernel are cut to what it has."""
    held = KERNELS[kernel]
    site = site_of(held)
    vectors = {name: form for name, form in FORMS.items() if name != "spread" or held.size > 8}
    for name, form in {**vectors, "subspace": subspace(rank=9, bits=4).form, "low_rank": low_rank(rank=9).form}.items():
        start = form.parametrise(site)
        found = device(form.block(start.trainable, start, site), held)
        np.testing.assert_allclose(found, held, atol=1e-6, err_msg=name)
    for name, sketch in SKETCHES.items():
        for change in (np.zeros_like(held), np.full_like(held, 0.25)):
            found = device(sketch.sketch(change, site), held) - held
            scale = 2.7 if name == "subsample" else 1
            assert np.isfinite(found).all(), name
            assert np.abs(found).max() <= np.abs(change).max() * scale * 1.01 * (held.size if name == "rotated" else 1)


def test_a_vector_that_a_kernel_is_too_small_for_is_refused():
    with pytest.raises(updcomp.Error, match="values: expected fewer, found 11 for shape"):
        FORMS["spread"].parametrise(site_of(normal((2, 2))))


@pytest.mark.parametrize("method", [low_rank(rank=1), subspace(rank=2), low_rank(energy=0.5), METHODS["nola"](size=4)])
def test_a_deployed_weight_that_is_not_finite_is_named(method):
    deployed, task = regression()
    broken = trees.replace(deployed, {"first/kernel": deployed["first"]["kernel"].at[1, 2].set(jnp.nan)})
    with pytest.raises(updcomp.Error, match="leaf 'first/kernel': .*expected finite deployed weights"):
        method(KEY, broken, task._replace(objective=REGRESSION))


def test_ranks_follow_the_energy_and_the_budget():
    energies = np.array([16.0, 4.0, 1.0, 1.0])
    for share, rank in ((0.5, 1), (0.9, 2), (1.0, 4)):
        assert ranks.rank_of_energy(energies, share) == rank
    kernels = {
        "a": ranks.Kernel(energies, 10),
        "b": ranks.Kernel(energies / 100, 1),
        "c": ranks.Kernel(energies * 0, 1),
    }
    for entries in (0, 1, 11, 25, 44, 100):
        found = ranks.ranks_within(entries, kernels)
        assert sum(rank * kernels[name].entries for name, rank in found.items()) <= entries
        assert "c" not in found
    assert ranks.ranks_within(100, kernels) == {"a": 4, "b": 4}


def test_low_rank_spends_a_budget_and_says_the_smallest():
    deployed, task = regression()
    made = low_rank(max_bytes=130, bits=4, aux=None)(KEY, deployed, task)
    assert 80 < len(updcomp.encode(made, deployed)) <= 130
    with pytest.raises(updcomp.wire.errors.BudgetError, match="max_bytes: expected at least [4-9]"):
        low_rank(max_bytes=30, bits=4, aux=None)(KEY, deployed, task)
    by_rule = low_rank(rank={"first/.*": 2, ".*": 1}, bits=4)(KEY, deployed, task)
    assert {name: block.left.shape[1] for name, block in by_rule.blocks.items() if "kernel" in name} == {
        "first/kernel": 2,
        "second/kernel": 1,
    }


@pytest.mark.parametrize("zero", factorize.SIDES)
def test_either_factor_starts_at_zero(zero):
    factors = factorize.init(KEY, (5, 4), 3, zero=zero)
    assert not jnp.any(getattr(factors, zero))
    assert jnp.all(getattr(factors, "left" if zero == "right" else "right") != 0)


def test_plain_factors_are_the_factors():
    factors = factorize.Factors(jnp.asarray(normal((1, 9, 3))), jnp.asarray(normal((1, 7, 3), 1)))
    block = factorize.to_plain_block(factors, rank=2)
    expected = factors.left[0, :, :2] @ factors.right[0, :, :2].T
    np.testing.assert_allclose(device(block, np.zeros((9, 7), np.float32)), expected, atol=1e-4)


def test_exact_integers_have_a_step_that_is_a_power_of_two():
    for scale in (1e-20, 1e-3, 1.0, 3e4):
        values = scale * normal(50)
        found, step = quantize.to_exact_integers(values, 24)
        np.testing.assert_allclose(found * step, values, atol=max(scale * 1e-6, 1e-15))
        assert np.log2(step) % 1 == 0
        assert np.abs(found).max() < 2**23


def test_tied_kernels_train_one_vector():
    deployed, task = regression()
    blocks = METHODS["uni_lora"](size=10, rank=2)(KEY, deployed, task).blocks
    first, second = blocks["first/kernel"], blocks["second/kernel"]
    np.testing.assert_array_equal(first.values, second.values)
    assert np.any(first.values)
    own = METHODS["tiny_lora"](size=10, rank=2, share=1)(KEY, deployed, task).blocks
    assert np.any(own["first/kernel"].values != own["second/kernel"].values)
