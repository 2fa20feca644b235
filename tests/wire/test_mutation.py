import collections
import itertools
import tracemalloc

import numpy as np
import pytest

from tests.wire import fuzz, samples
from updcomp.wire import container, packet, views
from updcomp.wire.kinds.coefficients import Coefficients
from updcomp.wire.kinds.exact import Exact
from updcomp.wire.kinds.sparse import Sparse

ALLOWED = {"CorruptUpdateError", "LeafError", "DtypeError", "NonFiniteError", "WrongBaseError", "model"}


@pytest.fixture(scope="module")
def base():
    return samples.model()


@pytest.fixture(scope="module")
def updates(base):
    return [container.encode(sent, base) for sent in samples.packets().values()]


@pytest.fixture(scope="module")
def small(base):
    blocks = {
        "dense/bias": Sparse(np.array([1, 4, 7]), np.int32([1, -20, 3]), samples.STEP),
        "double": Coefficients(samples.integers((2, 2), 80), 2, samples.STEP),
        "step": Exact(np.array(5)),
    }
    return container.encode(packet.Packet(blocks), base)


def outcomes(mutations, base):
    return collections.Counter(fuzz.outcome(mutated, base) for mutated in mutations)


def test_every_truncation_is_an_error(base, small):
    found = outcomes(fuzz.truncations(small), base)
    assert found.keys() == {"CorruptUpdateError"}
    assert found.total() == 2 * len(small) - 4


def test_every_flipped_bit_is_an_error_or_caught_by_nothing_but_the_checksum(base, small):
    flipped = list(fuzz.bit_flips(small))
    with_wrong_checksum, with_right_checksum = flipped[: 8 * len(small)], flipped[8 * len(small) :]
    assert outcomes(with_wrong_checksum, base).keys() == {"CorruptUpdateError"}
    # With a checksum made anew, a flip can only be harmless: an unused bit, or a seed that nothing reads.
    assert outcomes(with_right_checksum, base).keys() <= ALLOWED


def test_random_edits_behind_a_right_checksum_give_a_model_or_an_error(base, updates):
    edits = fuzz.random_edits(updates, np.random.default_rng(0))
    found = outcomes(itertools.islice(edits, 4000), base)
    assert found.total() == 4000
    assert found.keys() <= ALLOWED
    assert found["CorruptUpdateError"] > 3700


def test_views_are_checked_as_everything_else():
    blocks = samples.blocks_of((2, 3, 2), views.of_words("stack in out"), 82)
    base = {kind: samples.floats((2, 3, 2), 84).astype(np.float32) for kind in blocks}
    update = container.encode(packet.Packet(blocks), base)
    assert outcomes(fuzz.truncations(update), base).keys() == {"CorruptUpdateError"}
    with_right_checksum = itertools.islice(fuzz.bit_flips(update), 8 * len(update), None)
    assert outcomes(with_right_checksum, base).keys() <= ALLOWED


def test_random_edits_of_every_view_give_a_model_or_an_error():
    base = samples.viewed_model()
    edits = fuzz.random_edits([container.encode(samples.viewed_packet(), base)], np.random.default_rng(2))
    assert outcomes(itertools.islice(edits, 500), base).keys() <= ALLOWED


def test_memory_is_bounded_by_the_model_whatever_the_update_says(base, updates):
    edits = fuzz.random_edits(updates, np.random.default_rng(1))
    tracemalloc.start()
    try:
        outcomes(itertools.islice(edits, 300), base)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    # The slots of 64 contexts are what a decoder takes for the smallest of models.
    assert peak < 40 * 2**20
