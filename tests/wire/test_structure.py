"""Updates whose leaves come and go."""

import jax.numpy as jnp
import numpy as np
import pytest

import updcomp
from tests.wire import fuzz, samples
from updcomp.wire import canonical, container, dtypes, errors, fingerprint, header, packet, structure
from updcomp.wire.kinds.dense import Dense
from updcomp.wire.structure import Structure

BASE = {"a": np.float32([1, 2]), "gone": np.ones(3, np.float16), "wide": np.arange(6, dtype=np.int32)}
NEW = {
    "a": np.float32([1, 2.5]),
    "b": np.zeros((2, 0), np.float32),
    "more": np.linspace(0, 1, 300, dtype=np.float32).reshape(30, 10),
    "none": np.zeros(4, np.int8),
    "wide": np.arange(6, dtype=np.int32).reshape(2, 3),
}


def encoded(old=BASE, new=NEW, **options):
    return updcomp.encode(updcomp.diff(old, new, allow_new=True, **options), old)


def forged(told, **fields):
    """An update of the base with this structure, whatever it says."""
    parts = header.parse(container.encode(packet.Packet({}, structure=told), BASE))
    return header.pack(parts._replace(**fields))


def test_leaves_come_go_and_take_other_shapes_and_dtypes():
    update = encoded()
    for found in (updcomp.apply(update, BASE), dict(container.apply_leaves(update, BASE))):
        assert fingerprint.of(found) == fingerprint.of(NEW)
        assert found.keys() == NEW.keys()
    back = encoded(NEW, BASE)
    assert fingerprint.of(updcomp.apply(back, NEW)) == fingerprint.of(BASE)
    told = updcomp.inspect(update, BASE)
    assert told["removed"] == ["gone"]
    assert told["added"]["more"] == {"shape": [30, 10], "dtype": "float32"}
    assert {block["leaf"] for block in told["blocks"]} == {"a", "more", "wide"}


def test_a_packet_comes_back_as_it_was():
    sent = samples.restructured()
    base = samples.model()
    found = container.decode(container.encode(sent, base), base)
    assert found.structure == sent.structure
    assert found.blocks.keys() == sent.blocks.keys()


@pytest.mark.parametrize("options", [{"step": 0.01}, {"max_bytes": 400}, {"max_bytes": 400, "compact": True}])
def test_lossy_updates_may_add_leaves(options):
    packet = updcomp.diff(BASE, NEW, allow_new=True, **options)
    update = updcomp.encode(packet, BASE, compact="compact" in options)
    found = updcomp.apply(update, BASE)
    assert len(update) <= options.get("max_bytes", 2000)
    assert {name: leaf.shape for name, leaf in found.items()} == {name: leaf.shape for name, leaf in NEW.items()}
    assert np.abs(found["more"] - NEW["more"]).max() < 0.3
    assert found["wide"].tolist() == NEW["wide"].tolist()


def test_a_tree_of_dicts_grows_and_keeps_the_arrays_that_stay():
    old = {"layer": {"w": jnp.ones(3, jnp.bfloat16), "b": jnp.zeros(2)}}
    new = {"layer": {"w": old["layer"]["w"]}, "adapter": {"a": jnp.full((2, 2), 3, jnp.bfloat16)}}
    found = updcomp.apply(encoded(old, new), old)
    assert found["layer"]["w"] is old["layer"]["w"]
    assert found.keys() == {"layer", "adapter"}
    assert found["layer"].keys() == {"w"}
    assert found["adapter"]["a"].dtype == jnp.bfloat16
    assert (found["adapter"]["a"] == 3).all()
    with pytest.raises(errors.LeafError, match="expected a tree of dicts"):
        updcomp.apply(encoded({"0": old["layer"]["b"]}, {"1": old["layer"]["b"]}), [old["layer"]["b"]])


def test_a_tree_keeps_what_its_arrays_cannot_hold_and_its_empty_dicts():
    old = {"a": {"none": {}}, "w": jnp.ones(3)}
    new = {**old, "exact": np.array([1 / 3]), "k": np.array([2**40 + 1])}
    found = updcomp.apply(encoded(old, new), old)
    assert found["exact"].tolist() == [1 / 3]
    assert found["k"].tolist() == [2**40 + 1]
    assert found["a"] == {"none": {}}


def test_leaves_of_another_base_are_refused():
    update = encoded()
    for base in (NEW, {"a": BASE["a"]}, BASE | {"other": np.ones(1)}):
        with pytest.raises(errors.WrongBaseError):
            updcomp.apply(update, base)


SPEC = dtypes.Spec((2,), np.dtype("<f4"))


@pytest.mark.parametrize(
    ("told", "message"),
    [
        (Structure({"a": SPEC}, ()), "'a': expected one to be added, found it in the base"),
        (Structure({}, ("other",)), "'other': expected one of the base"),
        (Structure({"a": dtypes.Spec((3,), np.dtype("<f4"))}, ("a",)), "'a': expected one of the base"),
    ],
)
def test_a_structure_that_is_none_of_the_base_is_refused(told, message):
    with pytest.raises(errors.CorruptUpdateError, match=message):
        container.encode(packet.Packet({}, structure=told), BASE)
    update = forged(Structure({}, ("gone",)), structure=told)
    with pytest.raises(errors.CorruptUpdateError, match=message):
        container.apply_update(update, BASE)


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"[]",
        b"[{},[]]",
        b"[{},{}]",
        b'[{}, ["gone"]]',
        b'[{},["gone","a"]]',
        b'[{},["gone","gone"]]',
        b'[{},["gone"]]x',
        b'[{},["gone"],[]]',
        b'[{"z":["float32",4]},["gone"],1]',
        b'[{"z":["float32",2,1]},[]]',
        b'[{"z":["float32",4,-1]},[]]',
        b'[{"z":["float32",4,1.5]},[]]',
        b'[{"z":["float32",4,true]},[]]',
        b'[{"z":["object",16,1]},[]]',
        b'[{"z":["no name",1,1]},[]]',
        b'[{"z":["float32",4,4294967296,4294967296]},[]]',
        b'[{"z":["float32",4' + 65 * b",1" + b"]},[]]",
        b'[{"z":7},[]]',
        b'[{"z":["(1,,2)f4",8,1]},[]]',
        b'[{"z":["float32",4,0,4611686018427387904]},[]]',
        b'{"z":["float32",4,1]}',
        b"[" * 100_000,
        b'[{"' + b"z" * (1 << 20) + b'":["float32",4,1]},[]]',
    ],
)
def test_a_structure_has_one_text(text, monkeypatch):
    monkeypatch.setattr(canonical, "text_of", lambda _: text)
    monkeypatch.setattr(canonical, "LONGEST", 1 << 30)
    update = container.encode(packet.Packet({}, structure=Structure({}, ("gone",))), BASE)
    monkeypatch.undo()
    with pytest.raises(errors.CorruptUpdateError, match="^leaves: expected"):
        container.apply_update(update, BASE)


def test_more_than_the_model_may_not_come_before_its_bytes_are_there(monkeypatch):
    large = Structure({"z": dtypes.Spec((1 << 27,), np.dtype("<f4"))}, ())
    monkeypatch.setattr(structure, "check_cost", lambda *_: None)
    update = forged(Structure({}, ("gone",)), structure=large)
    monkeypatch.undo()
    assert len(update) < 100
    with pytest.raises(errors.CostError, match="added ones, found 536,870,912; allow a budget of at least 8 "):
        container.apply_update(update, BASE)
    with pytest.raises(errors.CostError, match="added ones"):
        container.encode(packet.Packet({}, structure=large), BASE)


def test_updates_that_change_leaves_are_not_squashed():
    with pytest.raises(errors.Error, match="update 1 of 2: expected one of the base's own leaves"):
        updcomp.squash([encoded(), encoded(NEW, BASE)], BASE)


def test_a_compact_update_is_twenty_bytes_shorter():
    for base, packets in samples.suites()[:1]:
        sent = packets[-2]
        full, short = (container.encode(sent, base, compact=compact) for compact in (False, True))
        assert len(short) == len(full) - 20
        expected = fingerprint.of(container.apply_update(full, base))
        assert fingerprint.of(container.apply_update(short, base)) == expected
        assert updcomp.inspect(short)["result"] == expected.hex()[:16]


def test_damage_of_a_compact_update_is_noticed_or_gives_the_very_model():
    update, expected = encoded_compact(), fingerprint.of(container.apply_update(encoded_compact(), BASE))
    refused = 0
    for mutated in (*fuzz.truncations(update), *fuzz.bit_flips(update)):
        try:
            found = container.apply_update(mutated, BASE)
        except errors.Error:
            refused += 1
        else:  # such as the same integers under another prior
            assert fingerprint.of(found) == expected
    assert refused > 500


def encoded_compact():
    blocks = {"a": Dense(np.int32([3, -1]), 0.5)}
    return container.encode(packet.Packet(blocks), BASE, compact=True)


def test_a_compact_update_knows_its_base_and_says_that_it_may_be_damaged():
    with pytest.raises(errors.WrongBaseError, match="or fetch it again if it may be damaged"):
        container.apply_update(encoded_compact(), NEW)
    old, middle = BASE, updcomp.apply(encoded_compact(), BASE)
    second = updcomp.encode(updcomp.diff(middle, old), middle)
    for compact in (False, True):
        squashed = updcomp.squash([encoded_compact(), second], BASE, compact=compact)
        assert fingerprint.of(updcomp.apply(squashed, BASE)) == fingerprint.of(BASE)
        assert header.parse(squashed).is_compact == compact
