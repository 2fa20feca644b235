"""Exact top-k masks against NumPy, on one device and on several."""

import os
import re
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from jax.sharding import NamedSharding, PartitionSpec

from updcomp import selection
from updcomp.training import devices


def reference(scores: list[np.ndarray], k: int) -> list[np.ndarray]:
    """Sorts everything by score, then leaf, then index."""
    with np.errstate(invalid="ignore"):  # NumPy warns of bfloat16's signalling NaNs
        flat = np.concatenate([leaf.ravel() for leaf in scores]).astype(np.float64)
    flat = np.where(np.isnan(flat), -np.inf, flat)
    mask = np.zeros(flat.size, bool)
    mask[np.argsort(-flat, kind="stable")[:k]] = True
    parts = np.split(mask, np.cumsum([leaf.size for leaf in scores])[:-1])
    return [part.reshape(leaf.shape) for part, leaf in zip(parts, scores, strict=True)]


# Few distinct values make ties certain; the special ones are zeros of both signs, infinities and NaN.
SCORES = st.sampled_from([0.0, -0.0, 1.0, -1.0, 2.5, 1e-40, np.inf, -np.inf, np.nan]) | st.floats(width=32)
SHAPES = [(7,), (3, 4), (2, 3, 2), (1,), (), (0, 3)]  # one set, so that one compiled function takes all examples
LEAVES = st.tuples(*(hnp.arrays(np.float32, shape, elements=SCORES) for shape in SHAPES))
TOTAL = sum(int(np.prod(shape)) for shape in SHAPES)
traced = jax.jit(selection.top_k)
fixed = jax.jit(selection.top_k, static_argnums=1)


def assert_chosen(masks, scores, k):
    for mask, expected in zip(masks, reference(scores, k), strict=True):
        np.testing.assert_array_equal(mask, expected)


@settings(max_examples=200)
@given(LEAVES, st.integers(0, TOTAL))
def test_top_k_is_the_stable_sort_for_a_k_that_is_an_argument(scores, k):
    assert_chosen(traced(scores, jnp.uint32(k)), scores, k)


@settings(max_examples=5)
@given(LEAVES)
def test_a_k_that_is_an_argument_chooses_what_a_fixed_one_does(scores):
    for k in (0, 1, TOTAL):
        assert_chosen(fixed(scores, k), scores, k)
        assert_chosen(traced(scores, jnp.uint32(k)), scores, k)


def test_ties_go_to_the_earlier_leaf_and_the_lower_index():
    masks = selection.top_k({"a": jnp.ones(3), "b": jnp.ones(3)}, 4)
    assert masks["a"].tolist() == [True, True, True]
    assert masks["b"].tolist() == [True, False, False]


def test_large_leaves_with_many_ties():
    generator = np.random.default_rng(0)
    scores = [np.round(generator.normal(size=shape)).astype(np.float32) for shape in [(1000, 100), (5,), (2, 99_997)]]
    for k in (1, 1_000, 123_456, 200_000, 299_999):
        assert_chosen(traced(scores, jnp.uint32(k)), scores, k)


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16])
def test_every_narrow_score_is_ranked_as_it_is(dtype):
    patterns = np.random.default_rng(0).permutation(2**16).astype(np.uint16)
    scores = patterns.view(dtype)
    for k in (1, 1_000, 32_768, 65_535):
        np.testing.assert_array_equal(traced(jnp.asarray(scores), jnp.uint32(k)), reference([scores], k)[0])


@pytest.mark.parametrize(("k", "message"), [(-1, "from 0 to 3"), (4, "from 0 to 3")])
def test_k_out_of_range(k, message):
    with pytest.raises(ValueError, match=message):
        selection.top_k(jnp.ones(3), k)


@pytest.mark.parametrize("ratio", [0.0, -0.1, 1.01])
def test_ratio_out_of_range(ratio):
    with pytest.raises(ValueError, match="ratio"):
        selection.top_ratio(jnp.ones(3), ratio)


@pytest.mark.parametrize(
    ("ratio", "size", "expected"), [(0.29, 100, 29), (0.57, 100, 57), (0.005, 535_040, 2675), (1e-9, 10, 1)]
)
def test_the_budget_is_the_floor_of_the_decimal_ratio(ratio, size, expected):
    assert selection.budget(ratio, size) == expected


def test_other_scores_and_another_k_compile_nothing():
    compiled = jax.jit(lambda scores, k: selection.top_k(scores, k))
    for seed in range(3):
        scores = jax.random.normal(jax.random.key(seed), (50, 20))
        assert int(compiled(scores, np.uint32(100 + seed)).sum()) == 100 + seed
        assert int(selection.top_ratio(scores, 0.1).sum()) == 100
    assert compiled._cache_size() == 1


@settings(max_examples=50)
@given(st.lists(st.integers(0, 2**32 - 1), min_size=1, max_size=50), st.integers(0, 2**40))
def test_counts_stay_exact_above_the_range_of_32_bits(counts, wanted):
    total = selection._total([jnp.uint32(count) for count in counts])
    assert (int(total[0]) << 16) + int(total[1]) == sum(counts)
    assert bool(selection._at_least(total, selection._split(wanted))) == (sum(counts) >= wanted)
    if sum(counts) >= wanted:
        rest = selection._subtract(total, selection._split(wanted))
        assert (int(rest[0]) << 16) + int(rest[1]) == sum(counts) - wanted


def test_shards_stay_where_they_are():
    mesh = devices.make_mesh()
    assert mesh.size == 2
    scores = np.random.default_rng(0).normal(size=(64, 8)).astype(np.float32)
    sharded = jax.device_put(scores, NamedSharding(mesh, PartitionSpec("data")))
    mask = jax.jit(lambda leaf: selection.top_k(leaf, 100))(sharded)
    np.testing.assert_array_equal(mask, reference([scores], 100)[0])
    assert len({shard.device for shard in mask.addressable_shards}) == 2
    assert mask.addressable_shards[0].data.shape == (32, 8)


def test_the_search_is_exact_where_totals_pass_32_bits(monkeypatch):
    """Every score stands for 2^20 equal ones: 10,000 scores for more than 2^33."""
    scores = [
        np.random.default_rng(i).normal(size=size).astype(np.float32) for i, size in enumerate([4_000, 4_000, 2_000])
    ]
    counts = selection._counts
    monkeypatch.setattr(selection, "_counts", lambda *args: [count << 20 for count in counts(*args)])
    placed = list(map(jnp.asarray, scores))
    search = jax.jit(lambda wanted: selection._largest(selection._ordered, placed, wanted))
    ranked = np.sort(np.concatenate(scores))
    for k in (1, 1_234, 5_000, 9_999):
        for wanted in ((k << 20) - (1 << 20) + 1, k << 20):
            assert search(selection._split(wanted)) == selection._ordered(jnp.asarray(ranked[-k]))


@pytest.mark.parametrize("spec", [PartitionSpec("data"), PartitionSpec(None, "data")])
def test_devices_exchange_counts_alone(spec):
    mesh = devices.make_mesh()
    sharded = jax.device_put(np.zeros((64, 8), np.float32), NamedSharding(mesh, spec))
    compiled = jax.jit(lambda leaf: selection.top_k(leaf, 100)).lower(sharded).compile()
    assert compiled.output_shardings.is_equivalent_to(sharded.sharding, 2)
    exchanges = re.findall(r"= (.*) (?:all-\w+|reduce-scatter|collective-\w+)(?:-start)?\(", compiled.as_text())
    assert exchanges
    for shape in re.findall(r"\[([\d,]*)\]", " ".join(exchanges)):
        assert np.prod([int(size) for size in shape.split(",") if size]) <= mesh.size


@pytest.mark.parametrize("shape", [(1000, 1000), (1_000_000,)])
def test_memory_is_at_most_five_bytes_per_score(shape):
    """The ranks of ties take four; keys, comparisons and indices are never stored."""
    scores = jax.ShapeDtypeStruct(shape, jnp.float32)
    compiled = jax.jit(lambda leaf: selection.top_k(leaf, 1_000)).lower(scores).compile()
    assert compiled.memory_analysis().temp_size_in_bytes <= 5 * 1_000_000


EIGHT_DEVICES = """
import jax, numpy as np
from jax.sharding import NamedSharding, PartitionSpec
from updcomp import selection
from updcomp.training import devices
mesh = devices.make_mesh()
assert mesh.size == 8
generator = np.random.default_rng(0)
data = PartitionSpec("data")
specs = {(64, 3): data, (3, 16): PartitionSpec(None, "data"), (16,): data, (): PartitionSpec()}
scores = [np.round(generator.normal(size=shape), 1).astype(np.float32) for shape in specs]
placed = [jax.device_put(leaf, NamedSharding(mesh, specs[leaf.shape])) for leaf in scores]
for k in (1, 50, 200, 256):
    masks = jax.jit(lambda leaves: selection.top_k(leaves, k))(placed)
    flat = np.concatenate([leaf.ravel() for leaf in scores])
    expected = np.zeros(flat.size, bool)
    expected[np.argsort(-flat, kind="stable")[:k]] = True
    np.testing.assert_array_equal(np.concatenate([np.asarray(mask).ravel() for mask in masks]), expected)
"""


def test_eight_devices_choose_the_same():
    environment = {**os.environ, "JAX_NUM_CPU_DEVICES": "8", "PYTHONPATH": str(Path(__file__).parents[1])}
    subprocess.run([sys.executable, "-c", EIGHT_DEVICES], env=environment, check=True, capture_output=True, text=True)
