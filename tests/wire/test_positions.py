import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from tests.wire import samples, twin_basis
from updcomp.wire import dtypes, errors, hashing, positions


@given(st.integers(0, 2**32 - 1), st.integers(0, 1000), st.integers(0, 1))
def test_hashes_are_those_of_python_integers(seed, index, purpose):
    expected = list(itertools.islice(twin_basis.hashes(seed, index, purpose), 9))[5:]
    key = hashing.stream_key(seed, index, purpose)
    assert hashing.hashes(key, 5, 9).tolist() == expected
    np.testing.assert_array_equal(hashing.signs(key, 5, 4), [-1.0 if h >> 63 else 1.0 for h in expected])


@given(st.integers(0, 2**32 - 1), st.integers(0, 9), st.integers(0, 2000), st.data())
def test_seeded_positions_are_those_of_the_smallest_hashes(seed, index, size, data):
    count = data.draw(st.integers(0, size))
    key = hashing.stream_key(seed, index, hashing.POSITIONS)
    brute = np.sort(np.argsort(hashing.hashes(key, 0, size), kind="stable")[:count])
    found = positions.seeded(seed, index, size, count)
    assert found.dtype == np.int64
    np.testing.assert_array_equal(found, brute)


def test_seeded_positions_are_uniform_and_differ_between_leaves_and_seeds():
    size, count = 1_000_000, 100_000
    draws = [positions.seeded(seed, index, size, count) for seed, index in ((0, 0), (0, 1), (1, 0))]
    for draw in draws:
        cells = np.bincount(draw * 100 // size, minlength=100)
        assert ((cells - count / 100) ** 2 / (count / 100)).sum() < 170  # chi-square, 99 degrees of freedom
    for a, b in ((0, 1), (0, 2), (1, 2)):
        common = len(np.intersect1d(draws[a], draws[b]))
        assert abs(common - count**2 / size) < 5 * np.sqrt(count**2 / size)


@pytest.mark.parametrize("leaf", ["dense/kernel", "conv", "scale", "double", "special"])
@pytest.mark.parametrize("fraction", [0, 0.3, 1])
def test_largest_positions_are_those_of_a_stable_sort(leaf, fraction):
    held = dtypes.hold(samples.model()[leaf])
    count = int(fraction * held.size)
    bits = dtypes.flat_bits(held)
    magnitudes = [int(b) & ~(1 << (8 * bits.itemsize - 1)) for b in bits]
    brute = sorted(sorted(range(held.size), key=lambda i: (-magnitudes[i], i))[:count])
    assert positions.largest(held, count).tolist() == brute


@given(hnp.arrays(np.float16, st.integers(1, 60), elements=st.sampled_from([-1.0, 0.0, 1.0, 2.0])), st.data())
def test_ties_go_to_the_lower_position(leaf, data):
    count = data.draw(st.integers(0, leaf.size))
    brute = sorted(sorted(range(leaf.size), key=lambda i: (-abs(float(leaf[i])), i))[:count])
    assert positions.largest(leaf, count).tolist() == brute


@pytest.mark.parametrize("count", [-1, 4])
def test_impossible_counts_are_refused(count):
    with pytest.raises(errors.Error, match="count"):
        positions.seeded(0, 0, 3, count)
    with pytest.raises(errors.Error, match="count"):
        positions.largest(np.zeros(3, np.float32), count)
