import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from updcomp.wire import errors, rans, tables


def frequencies(rng, contexts, symbols):
    weights = rng.random((contexts, symbols)) ** 4
    found = 1 + np.floor(weights / weights.sum(1, keepdims=True) * (rans.TOTAL - symbols)).astype(np.int64)
    found[:, 0] += rans.TOTAL - found.sum(1)
    return found


def stream(segments, lanes=None):
    """Encodes (symbols, frequencies, contexts) segments."""
    encoder = rans.Encoder()
    for symbols, table, contexts in segments:
        encoder.push(rans.starts_of(table)[contexts, symbols], table[contexts, symbols])
    return encoder.finish(lanes)


def scalar_decode(data, lanes, segments):
    """The decoder by the book: one Python integer per lane, one symbol at a time."""
    states = [int.from_bytes(data[4 * i : 4 * i + 4], "little") for i in range(lanes)]
    words = [int.from_bytes(data[i : i + 2], "little") for i in range(4 * lanes, len(data), 2)]
    decoded = []
    for symbols, table, contexts in segments:
        for first in range(0, len(symbols), lanes):
            step = range(first, min(first + lanes, len(symbols)))
            for i in step:
                slot, start, symbol = states[i - first] % rans.TOTAL, 0, 0
                row = table[contexts[i]].tolist()
                while start + row[symbol] <= slot:
                    start, symbol = start + row[symbol], symbol + 1
                decoded.append(symbol)
                states[i - first] = row[symbol] * (states[i - first] // rans.TOTAL) + slot - start
            for i in step:
                if states[i - first] < 1 << 16:
                    states[i - first] = states[i - first] << 16 | words.pop(0)
    assert not words
    assert states == [1 << 16] * lanes
    return decoded


@given(
    seed=st.integers(0, 2**32 - 1),
    lengths=st.lists(st.integers(0, 70), max_size=6),
    lanes=st.sampled_from([1, 2, 16, 64]),
    contexts=st.integers(1, 3),
    symbols=st.integers(1, 20),
    slots=st.sampled_from([tables.Table, tables.Intervals, tables.Lists]),
)
def test_segments_of_any_length_return_and_agree_with_the_scalar_decoder(
    seed, lengths, lanes, contexts, symbols, slots
):
    rng = np.random.default_rng(seed)
    table = frequencies(rng, contexts, symbols)
    segments = [(rng.integers(0, symbols, n), table, rng.integers(0, contexts, n)) for n in lengths]
    lanes, data = stream(segments, lanes)
    decoder = rans.Decoder(data, lanes)
    decoded = [decoder.pull(len(s), slots.of(table), c) for s, _, c in segments]
    decoder.finish(idle_lanes=True)
    for (expected, _, _), found in zip(segments, decoded, strict=True):
        np.testing.assert_array_equal(found, expected)
    if lanes:
        assert scalar_decode(data, lanes, segments) == [int(s) for found in decoded for s in found]


@pytest.mark.parametrize(("count", "allowed"), [(5000, 0.03), (1_000_000, 0.005), (5_000_000, 0.005)])
def test_streams_are_near_the_entropy_of_the_model(count, allowed):
    rng = np.random.default_rng(0)
    table = frequencies(rng, 1, 9)
    symbols = np.repeat(np.arange(9), table[0])[rng.integers(0, rans.TOTAL, count)]
    encoder = rans.Encoder()
    encoder.push(rans.starts_of(table)[0][symbols], table[0][symbols])
    lanes, data = encoder.finish()
    assert 8 * len(data) <= (1 + allowed) * rans.information(table[0][symbols])
    decoder = rans.Decoder(data, lanes)
    np.testing.assert_array_equal(decoder.pull(count, tables.Table.of(table)), symbols)
    decoder.finish(idle_lanes=True)


def test_nothing_pushed_costs_nothing():
    assert rans.Encoder().finish() == (0, b"")
    rans.Decoder(b"", 0).finish()


@pytest.mark.parametrize(
    "change", [lambda d: d[:-2], lambda d: d + b"\1\0", lambda d: d[:9] + b"\x55" + d[10:], lambda d: d[:-1]]
)
def test_a_damaged_stream_is_found_at_the_latest_in_its_end(change):
    rng = np.random.default_rng(1)
    table = frequencies(rng, 1, 5)
    symbols = rng.integers(0, 5, 300)
    lanes, data = stream([(symbols, table, np.zeros(300, int))], 4)

    def decode():
        decoder = rans.Decoder(change(data), lanes)
        decoder.pull(300, tables.Table.of(table))
        decoder.finish(idle_lanes=True)

    with pytest.raises(errors.CorruptUpdateError, match="coded section"):
        decode()


def test_symbols_that_cost_nothing_get_lanes_enough_to_be_fast():
    count = 1_000_000
    table = np.array([[rans.TOTAL - 1, 1]])
    encoder = rans.Encoder()
    encoder.push(np.zeros(count, int), np.full(count, rans.TOTAL - 1))
    lanes, data = encoder.finish()
    assert count / lanes <= 2**16
    assert not rans.Decoder(data, lanes).pull(count, tables.Table.of(table)).any()
    with pytest.raises(errors.CorruptUpdateError, match="too few"):
        rans.Decoder(data[:8], 2).pull(count, tables.Table.of(table))


@pytest.mark.parametrize("lanes", [-1, 2, rans.MAX_LANES + 1])
def test_more_lanes_than_bytes_are_refused(lanes):
    with pytest.raises(errors.CorruptUpdateError, match="lanes"):
        rans.Decoder(b"1234", lanes)


def test_a_state_below_the_least_is_refused():
    """Its low word could as well be the first of the words: two encodings of the same symbols."""
    rng = np.random.default_rng(2)
    table = frequencies(rng, 1, 5)
    symbols = rng.integers(0, 5, 300)
    lanes, data = stream([(symbols, table, np.zeros(300, int))], 1)
    state = int.from_bytes(data[:4], "little")
    other = (state >> 16).to_bytes(4, "little") + (state & 0xFFFF).to_bytes(2, "little") + data[4:]
    with pytest.raises(errors.CorruptUpdateError, match="states of at least 65536"):
        rans.Decoder(other, lanes)
