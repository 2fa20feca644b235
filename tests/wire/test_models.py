import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from updcomp.wire import bits, contexts, errors, models, rans, streams, tokens

INT64 = st.integers(-(2**63), 2**63 - 1)


def finished(writer):
    raw, extra, lanes, coded = writer.finish()
    return streams.Reader(raw, extra, lanes, coded), len(extra) + len(coded)


def entropy(values):
    _, counts = np.unique(values, return_counts=True)
    return -float(counts @ np.log2(counts / counts.sum())) / 8


@given(st.lists(INT64, max_size=100))
def test_tokens_hold_any_64_bit_integer(values):
    values = np.array(values, np.int64)
    folded = tokens.fold(values)
    assert [int(u) for u in folded] == [2 * v if v >= 0 else -2 * v - 1 for v in values.tolist()]
    symbols, low = tokens.split(folded)
    assert symbols.max(initial=0) < tokens.COUNT
    assert len(tokens.widths(symbols)) == len(low)
    np.testing.assert_array_equal(tokens.join(symbols, low), folded)
    np.testing.assert_array_equal(tokens.unfold(folded), values)


@given(st.lists(st.tuples(st.integers(0, 63), st.integers(0, 2**63 - 1)), max_size=80))
def test_bits_are_packed_lowest_first_without_gaps(parts):
    widths = np.array([width for width, _ in parts], np.uint8)
    values = np.array([value & ((1 << width) - 1) for width, value in parts], np.uint64)
    writer = bits.Writer()
    writer.push(values[:3], widths[:3])
    writer.push(values[3:], widths[3:])
    data = writer.finish()
    whole, shift = 0, 0
    for value, width in zip(values.tolist(), widths.tolist(), strict=True):
        whole, shift = whole | value << shift, shift + width
    assert data == whole.to_bytes((shift + 7) // 8, "little")
    reader = bits.Reader(data)
    np.testing.assert_array_equal(reader.pull(widths), values)
    reader.finish()


def test_bits_refuse_to_read_past_the_end_or_to_leave_something():
    with pytest.raises(errors.CorruptUpdateError, match="extra bits"):
        bits.Reader(b"\0").pull(np.uint8([9]))
    with pytest.raises(errors.CorruptUpdateError, match="extra bits"):
        bits.Reader(b"\0").finish()
    reader = bits.Reader(b"\x80")
    reader.pull(np.uint8([4]))
    with pytest.raises(errors.CorruptUpdateError, match="extra bits"):
        reader.finish()


@given(hnp.arrays(np.int64, st.tuples(st.integers(1, 4), st.integers(1, 136)), elements=st.integers(0, 2**40)))
def test_frequencies_are_positive_sum_to_the_total_and_follow_the_weights(weights):
    weights[:, 0] += 1
    found = models.normalise(weights)
    assert found.min() >= 1
    assert (found.sum(axis=1) == rans.TOTAL).all()
    exact = weights / weights.sum(axis=1, keepdims=True) * rans.TOTAL
    assert (np.abs(found - exact) <= weights.shape[1] + 1).all()


@pytest.mark.parametrize("signed", [True, False])
@pytest.mark.parametrize("scale", [0, 7, 20, 27, 28, 35, 60])
def test_the_prior_is_the_geometric_distribution_of_its_mean(scale, signed):
    mean = 2.0 ** ((scale - models.UNIT_SCALE) / 2)
    ratio = np.exp(-np.arcsinh(1 / mean))
    u = np.arange(min(tokens.COUNT, tokens.DIRECT))
    magnitude = (u + 1) // 2 if signed else u
    found = models.priors(np.array([scale]), len(u), signed=signed)[0] / 2**16
    expected = ratio**magnitude / (ratio**magnitude).sum()
    np.testing.assert_allclose(found, expected, atol=2e-3)


@pytest.mark.parametrize("scale", range(0, models.SCALES, 9))
def test_every_prior_covers_the_whole_alphabet(scale):
    for signed in (True, False):
        weights = models.priors(np.array([scale]), tokens.COUNT, signed=signed)
        assert 2**15 < weights.sum() <= 2**16
        assert models.normalise(weights).min() >= 1


@given(st.lists(INT64, max_size=200), st.booleans())
def test_a_segment_returns(values, signed):
    values = np.array(values, np.int64)
    values = values if signed else values & np.int64(2**63 - 1)
    writer = streams.Writer()
    writer.number(len(values))
    writer.integers(values, signed=signed)
    reader, _ = finished(writer)
    assert reader.number() == len(values)
    np.testing.assert_array_equal(reader.integers(len(values), signed=signed), values)
    reader.finish()


@pytest.mark.parametrize("value", [0, 1, 2, 3, 127, 2**40, 2**63 - 1])
def test_a_number_returns(value):
    writer = streams.Writer()
    writer.number(value)
    reader, _ = finished(writer)
    assert reader.number() == value
    reader.finish()


def test_integers_beyond_the_dtype_asked_for_are_refused():
    writer = streams.Writer()
    writer.integers(np.array([2**31]), signed=True)
    reader, _ = finished(writer)
    with pytest.raises(errors.CorruptUpdateError, match="int32"):
        reader.integers(1, signed=True, dtype=np.int32)


@pytest.mark.parametrize(("count", "allowed"), [(1000, 0.03), (5000, 0.01), (200_000, 0.005)])
@pytest.mark.parametrize("bits_per_value", [2, 3, 4])
def test_a_stationary_source_costs_about_its_order_0_entropy(count, allowed, bits_per_value):
    scale = {2: 0.7, 3: 1.6, 4: 3.5}[bits_per_value]
    values = np.rint(np.random.default_rng(count).laplace(0, scale, count)).astype(np.int64)
    writer = streams.Writer()
    writer.integers(values, signed=True)
    _, size = finished(writer)
    # 4 bytes of lane, 2 of header and some to learn the tails, which the empirical entropy knows for free.
    assert size <= (1 + allowed) * entropy(values) + 12


def test_a_large_segment_crosses_the_longest_chunk():
    values = np.zeros(3_000_000, np.int64)
    values[::50] = 3
    writer = streams.Writer()
    writer.integers(values, signed=True)
    reader, size = finished(writer)
    np.testing.assert_array_equal(reader.integers(len(values), signed=True), values)
    reader.finish()
    assert size <= 1.1 * entropy(values)


@given(
    hnp.arrays(np.int32, st.tuples(st.integers(0, 30), st.integers(0, 30)), elements=st.integers(-(2**31), 2**31 - 1))
)
def test_a_matrix_returns(values):
    writer = streams.Writer()
    contexts.write_matrix(writer, values, values.shape)
    reader, _ = finished(writer)
    np.testing.assert_array_equal(contexts.read_matrix(reader, values.shape), values)
    reader.finish()


def test_scale_classes_come_within_three_percent_of_the_entropy_given_the_true_scales():
    rng = np.random.default_rng(0)
    rows, columns = np.exp(rng.normal(0, 1.2, 300)), np.exp(rng.normal(0, 1.2, 200))
    scales = 0.8 * rows[:, None] * columns
    values = np.rint(rng.laplace(0, scales)).astype(np.int32)
    tails = np.exp(-(np.maximum(np.abs(values)[..., None] + [-0.5, 0.5], 0)) / scales[..., None])
    zero = 1 - np.exp(-0.5 / scales)
    ideal = -np.log2(np.where(values == 0, zero, (tails[..., 0] - tails[..., 1]) / 2)).sum() / 8
    writer = streams.Writer()
    contexts.write_matrix(writer, values, values.shape)
    reader, size = finished(writer)
    np.testing.assert_array_equal(contexts.read_matrix(reader, values.shape), values)
    side_information = 250  # 500 classes of about 4 bits
    assert size <= 1.03 * ideal + side_information
    assert size < 0.85 * entropy(values)


def test_exact_differences_use_the_old_exponents():
    rng = np.random.default_rng(0)
    old = (rng.normal(size=40_000) * np.exp(rng.normal(0, 2, 40_000))).astype(np.float32)
    change = rng.random(40_000) < np.where(np.abs(old) < 0.3, 0.5, 0.002)
    new = (old.view(np.uint32) + change.astype(np.uint32)).view(np.float32)
    with_old, without = streams.Writer(), streams.Writer()
    assert contexts.write_differences(with_old, new, old)
    assert contexts.write_differences(without, new.view(np.int32), old.view(np.int32))
    assert with_old.cost < 0.7 * without.cost
    reader, _ = finished(with_old)
    found = contexts.read_differences(reader, old)
    np.testing.assert_array_equal(found.view(np.uint32), new.view(np.uint32))


def test_noise_is_not_coded_as_differences():
    rng = np.random.default_rng(0)
    old, new = rng.integers(0, 2**32, (2, 5000)).astype(np.uint32)
    writer = streams.Writer()
    assert not contexts.write_differences(writer, new, old)
    assert writer.cost == 0
