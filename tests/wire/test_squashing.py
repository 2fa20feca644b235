"""Updates in a row as one."""

import numpy as np
import pytest

from tests.wire import fuzz, samples
from updcomp.wire import apply, container, errors, fingerprint, header, squashing
from updcomp.wire.kinds.dense import Dense
from updcomp.wire.kinds.exact import Exact
from updcomp.wire.kinds.raw import Raw
from updcomp.wire.kinds.seeded import Seeded
from updcomp.wire.kinds.sparse import Sparse
from updcomp.wire.packet import Packet

RNG = np.random.default_rng(0)
BASE = {name: RNG.normal(size=(20, 25)).astype(np.float32) for name in "abcd"}


def row(base, *packets):
    """(updates, the last model)."""
    updates = []
    for packet in packets:
        updates.append(container.encode(packet, base))
        base = apply.apply(packet, base)
    return updates, base


def dense(scale=3, step=samples.STEP):
    return Dense(np.rint(scale * RNG.normal(size=(20, 25))).astype(np.int32), step)


def assert_squashes(base, *packets, **options):
    """To one that makes the last model; gives it."""
    updates, new = row(base, *packets)
    squashed = squashing.squash(updates, base, **options)
    assert fingerprint.of(container.apply_update(squashed, base)) == fingerprint.of(new)
    exact = Packet({name: Exact(new[name]) for name in new})
    assert len(squashed) <= len(container.encode(exact, base))
    return squashed


@pytest.mark.parametrize("first", samples.packets())
@pytest.mark.parametrize("second", ["dense", "sparse", "raw"])
def test_two_updates_of_every_kind_become_one(first, second):
    assert_squashes(samples.model(), samples.packets()[first], samples.packets()[second])


def test_a_leaf_that_one_update_touches_keeps_its_block_and_others_are_exact():
    blocks = {"a": dense(), "b": dense()}, {"b": dense(), "c": dense()}
    squashed = assert_squashes(BASE, *map(Packet, blocks))
    found = container.decode(squashed, BASE).blocks
    assert {name: type(block) for name, block in found.items()} == {"a": Dense, "b": Exact, "c": Dense}
    assert np.array_equal(found["a"].values, blocks[0]["a"].values)
    assert np.array_equal(found["c"].values, blocks[1]["c"].values)


def test_what_is_smaller_exact_is_exact():
    """A raw leaf of which one weight changed."""
    new = BASE["a"].copy()
    new[3, 4] += 1
    squashed = assert_squashes(BASE, Packet({"a": Raw(new)}), Packet({"b": Sparse(np.array([1]), np.int32([1]), 0.5)}))
    assert len(squashed) < 1000


def test_what_comes_back_costs_nothing():
    changed = {**BASE, "a": BASE["a"] + np.float32(1)}
    squashed = assert_squashes(BASE, Packet({"a": Exact(changed["a"])}), Packet({"a": Exact(BASE["a"])}))
    assert squashed == container.encode(Packet({}), BASE)


def test_an_exact_update_has_no_seed():
    new = {name: leaf + np.float32(1) for name, leaf in BASE.items()}
    packets = Packet({"a": Exact(new["a"])}, 7), Packet({"b": Raw(new["b"])}, 8)
    assert header.parse(assert_squashes(BASE, *packets)).seed == 0


def test_one_update_and_many():
    assert_squashes(BASE, Packet({"a": dense()}))
    assert_squashes(BASE, *(Packet({name: dense()}) for name in "abac"))
    assert_squashes(BASE, Packet({}), Packet({}))


@pytest.mark.parametrize("seeds", [(3, 3), (3, 4), (4, 3)])
def test_blocks_that_depend_on_another_seed_become_exact(seeds):
    values = np.int32([1, -2, 3, 4])
    packets = [
        Packet({"a": Seeded(values, 0.5), "b": Seeded(values, 0.25)}, seeds[0]),
        Packet({"c": Seeded(values, 0.5)}, seeds[1]),
    ]
    squashed = assert_squashes(BASE, *packets)
    found = {name: type(block) for name, block in container.decode(squashed, BASE).blocks.items()}
    assert found == {"a": Seeded, "b": Seeded, "c": Seeded if seeds[0] == seeds[1] else Exact}
    assert header.parse(squashed).seed == seeds[0]


def test_leaves_are_read_a_few_times_and_in_order():
    read = []

    class Watched(dict):
        def __getitem__(self, name):
            read.append(name)
            return super().__getitem__(name)

    updates, _ = row(BASE, Packet({"a": dense(), "d": dense()}), Packet({"a": dense(), "c": dense()}))
    base = Watched(BASE)
    base.specs = {name: samples.dtypes.spec_of(leaf) for name, leaf in BASE.items()}
    squashing.squash(updates, base)
    assert read == 3 * list("abcd")  # its fingerprint, the blocks, and all of them exact


TEXTS = {"note": "old"}, {"note": "new", "by": "us"}, {"by": "others"}


def test_metadata_are_those_of_the_last_model():
    updates = [
        container.encode(Packet({}), BASE, metadata=(TEXTS[0], TEXTS[1])),
        container.encode(Packet({"a": dense()}), BASE),
        b"",
    ]
    last = container.apply_update(updates[1], BASE)
    updates[2] = container.encode(Packet({}), last, metadata=(TEXTS[1], TEXTS[2]))
    squashed = squashing.squash(updates, BASE, metadata=TEXTS[0])
    assert container.new_metadata(squashed, TEXTS[0]) == TEXTS[2]
    with pytest.raises(errors.WrongBaseError, match="metadata"):
        squashing.squash(updates, BASE, metadata=TEXTS[1])
    with pytest.raises(errors.Error, match="metadata: expected those of the base's file"):
        squashing.squash(updates, BASE)
    assert container.new_metadata(squashing.squash(updates[1:2], BASE, metadata=TEXTS[0]), TEXTS[0]) == TEXTS[0]


def test_updates_that_are_not_in_a_row_are_refused():
    updates, new = row(BASE, Packet({"a": dense()}), Packet({"b": dense()}))
    with pytest.raises(errors.WrongBaseError, match="base model: expected"):
        squashing.squash(updates, new)
    with pytest.raises(errors.WrongBaseError, match="update 3 of 3: expected one from the model"):
        squashing.squash([*updates, updates[0]], BASE)
    with pytest.raises(errors.Error, match="expected at least one, found none"):
        squashing.squash([], BASE)
    with pytest.raises(errors.CorruptUpdateError, match="damaged"):
        squashing.squash([updates[0], updates[1][:-1]], BASE)
    with pytest.raises(errors.CostError):
        squashing.squash(updates, BASE, budget=1e-9)


def test_a_result_that_is_not_as_promised_is_refused():
    updates, _ = row(BASE, Packet({"a": dense()}), Packet({"b": dense()}))
    wrong = fuzz.with_checksum(updates[1][:22] + bytes(16) + updates[1][38:-4])
    with pytest.raises(errors.CorruptUpdateError, match="result: expected the model 0000"):
        squashing.squash([updates[0], wrong], BASE)
