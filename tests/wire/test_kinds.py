"""The conformance table of block kinds: every kind of every version passes it, or is not a kind."""

import math
import platform
import subprocess
import sys
import threading

import numpy as np
import pytest

from tests.wire import samples
from updcomp.wire import (
    apply,
    container,
    contexts,
    dtypes,
    errors,
    fingerprint,
    header,
    kind,
    packet,
    streams,
    versions,
)
from updcomp.wire.kinds.dense import KIND, Dense

PACKETS = samples.packets()
KINDS = sorted(versions.NEWEST.kinds.items())


def test_every_kind_has_its_row():
    """A new kind fails here until `samples.packets` has a packet of it under its name."""
    assert {found.name for _, found in KINDS} <= PACKETS.keys()


@pytest.mark.parametrize("field", kind.Kind._fields)
def test_a_kind_that_lacks_anything_fails_when_it_is_made(field):
    fields = KIND._asdict()
    del fields[field]
    with pytest.raises(TypeError, match=field):
        kind.Kind(**fields)


@pytest.mark.parametrize("number", sorted(versions.VERSIONS))
def test_a_number_stands_for_one_kind_and_a_name_for_one_number(number):
    kinds = versions.VERSIONS[number].kinds
    assert all(0 <= key == found.number < 16 for key, found in kinds.items())
    assert len({found.name for found in kinds.values()}) == len(kinds)


def test_two_kinds_of_one_number_are_none():
    with pytest.raises(ValueError, match="expected distinct numbers"):
        versions.numbered(KIND, KIND)


@pytest.mark.parametrize("row", KINDS, ids=lambda row: row[1].name)
class TestKind:
    """What holds for every block of every kind."""

    def blocks(self, row):
        base = samples.model()
        sent = PACKETS[row[1].name]
        return [(name, block, dtypes.hold(base[name])) for name, block in packet.held(sent).blocks.items()]

    def test_the_block_finds_its_kind(self, row):
        for _, block, _ in self.blocks(row):
            assert versions.kind_of(block).block is row[1].block

    def test_holding_twice_is_holding_once(self, row):
        for _, block, _ in self.blocks(row):
            again = row[1].hold(block)
            assert all(a is b for a, b in zip(again, block, strict=True))

    def test_it_is_applied_by_the_rule_of_its_file(self, row):
        for name, block, old in self.blocks(row):
            row[1].check(block, old)
            new = row[1].apply(block, old, 5, sorted(samples.model()).index(name))
            assert (new.shape, new.dtype) == (old.shape, old.dtype)
            assert (dtypes.flat_bits(new) != dtypes.flat_bits(old)).any()
            assert fingerprint.of({"w": old}) == fingerprint.of({"w": dtypes.hold(samples.model()[name])})

    def test_it_is_coded_and_its_header_says_what_it_has(self, row):
        base = samples.model()
        for name, block, _ in self.blocks(row):
            update = container.encode(packet.Packet({name: block}, 5), base)
            (head,) = header.parse(update).heads
            assert head.kind in (row[1], versions.NEWEST.kinds[0])  # exact blocks may travel raw
            assert (head.size is not None) == head.kind.sized
            assert (head.step > 0) == head.kind.stepped
            new = container.apply_update(update, base)
            assert fingerprint.of(new) == fingerprint.of(apply.apply(packet.Packet({name: block}, 5), base))

    def test_its_cost_is_said_and_a_small_budget_refuses_it(self, row):
        base = samples.model()
        for name, block, _ in self.blocks(row):
            update = container.encode(packet.Packet({name: block}, 5), base)
            (cost,) = samples.costs_of(update, base)
            assert cost.operations > 0
            with pytest.raises(errors.CostError, match="cost: expected at most"):
                container.apply_update(update, base, budget=cost.operations / 2e9 / 2)

    def test_a_leaf_of_another_shape_is_refused(self, row):
        for name, block, old in self.blocks(row):
            other = np.zeros((old.size + 1,), np.float32)
            if row[1].sized and row[1].stepped:
                other = np.zeros((0,), np.float32)
            with pytest.raises(errors.Error, match=f"leaf '{name}'"):
                apply.apply(packet.Packet({name: block}), {name: other})


def test_something_else_than_a_block_is_refused_by_name():
    with pytest.raises(errors.LeafError, match="leaf 'w': block: expected one of Raw, Exact.*found tuple"):
        packet.held(packet.Packet({"w": (1, 2)}))


def one_block(values, view=None):
    base = {"w": np.zeros(np.shape(values), np.float32)}
    return container.encode(packet.Packet({"w": Dense(np.array(values, np.int32), 1.0, view)}), base), base


@pytest.mark.parametrize("value", [2, 7, 255])
@pytest.mark.parametrize("name", ["raw", "exact"])
def test_a_boolean_is_0_or_1(name, value):
    base = {"w": np.zeros(64, np.bool_)}
    new = base["w"].copy()
    new.view(np.uint8)[5] = value
    block = versions.NEWEST.kinds[0 if name == "raw" else 1].block(new)
    with pytest.raises(errors.Error, match=f"booleans: expected bytes of 0 and 1, found {value}"):
        container.encode(packet.Packet({"w": block}), base)
    parts = header.parse(container.encode(packet.Packet({"w": block._replace(new=np.ones(64, bool))}), base))
    if name == "raw":
        damaged = parts._replace(
            raw=bytes([value]) * 64, heads=[parts.heads[0]._replace(kind=versions.NEWEST.kinds[0])]
        )
        damaged = damaged._replace(extra=b"", lanes=0, coded=b"")
        with pytest.raises(errors.LeafError, match="leaf 'w': booleans"):
            container.apply_update(header.pack(damaged), base)


@pytest.mark.parametrize("number", sorted(versions.VERSIONS))
def test_lanes_that_do_nothing_are_refused_in_version_2_and_read_in_version_1(number):
    base, new = ({"w": np.array(values, np.float32)} for values in ([0, 0, 0], [1, -2, 3]))
    writer = streams.Writer()
    if number >= 4:
        writer.symbol(0, 3)  # the mode
    contexts.write_matrix(writer, np.int32([1, -2, 3]), (1, 3))
    lanes, coded = writer._coded.finish(4)  # of which a segment of three uses three
    prints = fingerprint.of(base), fingerprint.of(new)
    heads = [kind.Head(KIND, 0, 1.0)]
    update = header.pack(
        header.Parts(versions.VERSIONS[number], *prints, 0, heads, b"", writer._extra.finish(), lanes, coded)
    )
    if number == 1:
        assert container.apply_update(update, base)["w"].tolist() == [1, -2, 3]
    else:
        with pytest.raises(errors.CorruptUpdateError, match="expected at most 3 lanes, found 4"):
            container.apply_update(update, base)


FLUSHING = """
import ctypes, sys
import numpy as np
from updcomp.wire import container, errors
base = {"w": np.full(3, 1.5 * 2.0**-126, np.float32)}
environment = (ctypes.c_uint32 * 8)()
libm = ctypes.CDLL("libm.so.6")
libm.fegetenv(environment)
environment[7] |= 0x8040  # flush to zero, denormals are zero
libm.fesetenv(environment)
try:
    container.apply_update(bytes.fromhex(sys.argv[1]), base)
except errors.CorruptUpdateError as error:
    print(error)
"""


@pytest.mark.skipif(platform.machine() != "x86_64" or sys.platform != "linux", reason="sets the control word of x86-64")
def test_a_process_that_flushes_subnormals_is_told_so():
    base = {"w": np.full(3, 1.5 * 2.0**-126, np.float32)}
    tiny = container.encode(packet.Packet({"w": Dense(np.int32([-1, -1, 0]), 2.0**-126)}), base)
    assert container.apply_update(tiny, base)["w"].tolist() == [2.0**-127, 2.0**-127, 1.5 * 2.0**-126]
    done = subprocess.run([sys.executable, "-c", FLUSHING, tiny.hex()], capture_output=True, text=True, check=True)
    assert "subnormal numbers as 0" in done.stdout
    assert "process without it" in done.stdout


def test_leaves_come_one_at_a_time_and_no_more_than_one_is_read_at_a_time():
    base = samples.model()
    update = container.encode(PACKETS["together"], base)

    class Lazy(dict):
        reads = 0
        specs = dtypes.specs(base)

        def __getitem__(self, name):
            self.reads += 1
            return super().__getitem__(name)

    lazy = Lazy(base)
    names = []
    for name, leaf in container.apply_leaves(update, lazy):
        names.append(name)
        assert lazy.reads == len(base) + len(names)
        assert (leaf.shape, dtypes.hold(leaf).dtype) == (lazy.specs[name].shape, lazy.specs[name].dtype)
    assert names == sorted(base)


def test_leaves_of_a_result_that_is_another_end_in_an_error():
    update, base = one_block([1, 0, 2])
    leaves = container.apply_leaves(header.pack(header.parse(update)._replace(result=bytes(16))), base)
    assert next(leaves)[0] == "w"
    with pytest.raises(errors.CorruptUpdateError, match="result"):
        next(leaves)


def test_everything_is_allowed_with_an_infinite_budget():
    for sent in PACKETS.values():
        base = samples.model()
        new = container.apply_update(container.encode(sent, base, budget=math.inf), base, budget=math.inf)
        assert fingerprint.of(new) == fingerprint.of(apply.apply(sent, base))


def test_what_is_read_twice_is_hashed_twice():
    """A leaf that an update keeps may change between the two readings."""
    base = {"kept": np.zeros(4, np.float32), "w": np.zeros(3, np.float32)}
    update = container.encode(packet.Packet({"w": Dense(np.int32([1, 0, 2]), 0.5)}), base)

    class Failing(dict):
        reads = 0

        def __getitem__(self, name):
            self.reads += name == "kept"
            return super().__getitem__(name) + (name == "kept" and self.reads > 1)

    with pytest.raises(errors.CorruptUpdateError, match="result: expected the model"):
        list(container.apply_leaves(update, Failing(base)))


def test_a_process_without_threads_to_spare_hashes_without(monkeypatch):
    def fail(self):
        raise RuntimeError("can't start new thread")

    leaf = np.arange(1 << 19, dtype=np.float32)
    expected = fingerprint.of({"w": leaf})
    monkeypatch.setattr(threading.Thread, "start", fail)
    assert fingerprint.of({"w": leaf}) == expected
