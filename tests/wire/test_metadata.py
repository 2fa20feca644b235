"""The texts of model files travel, compressed and counted, and what is checked covers them."""

import json
import zlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from updcomp.wire import container, errors, header, inspection, packet
from updcomp.wire.kinds.dense import Dense

TEXTS = st.dictionaries(st.text(max_size=8), st.text(max_size=20), max_size=4)
BASE = {"w": np.zeros(3, np.float32)}
SENT = packet.Packet({"w": Dense(np.int32([1, 0, 2]), 0.5)})


def encode(old, new):
    return container.encode(SENT, BASE, metadata=(old, new))


@given(TEXTS, TEXTS)
def test_texts_return_and_others_are_refused(old, new):
    update = encode(old, new)
    assert container.new_metadata(update, old) == new
    change = header.parse(update).change
    assert (change is None) == (not old and not new)
    if change is not None:
        assert (change.changes == b"") == (old == new)
        with pytest.raises(errors.WrongBaseError, match="metadata: expected the texts that the update was made from"):
            container.new_metadata(update, {**old, "another": "text"})


def test_only_what_changes_travels_and_is_counted():
    old = {"labels": json.dumps([f"class {i}" for i in range(1000)]), "format": "pt"}
    new = {**old, "version": "2"}
    update = encode(old, new)
    told = inspection.inspect(update)
    assert told["metadata"] == {"version": "2"}
    assert told["bytes_by_part"]["metadata"] < 40
    assert sum(told["bytes_by_part"].values()) == len(update)
    assert len(update) - len(encode({}, {})) < 45
    assert inspection.inspect(encode(new, old))["metadata"] == {"version": None}


def test_an_update_that_says_nothing_of_them_keeps_them():
    update = container.encode(SENT, BASE)
    assert container.new_metadata(update, {"a": "b"}) == {"a": "b"}
    assert "metadata" not in inspection.inspect(update)
    assert encode({}, {}) == update


def test_weights_in_memory_have_none_to_check():
    assert container.apply_update(encode({"a": "1"}, {"a": "2"}), BASE)["w"].tolist() == [0.5, 0, 1]


def with_changes(text, compressed=None):
    parts = header.parse(encode({"a": "1"}, {"a": "2"}))
    compressor = zlib.compressobj(9, zlib.DEFLATED, -15)
    body = compressor.compress(text) + compressor.flush() if compressed is None else compressed
    return header.pack(parts._replace(change=parts.change._replace(changes=body)))


@pytest.mark.parametrize(
    "update",
    [
        with_changes(b'{"a":"3"}'),
        pytest.param(with_changes(b'{"a": "2"}'), id="spaces"),
        pytest.param(with_changes(b'{"b":"1","a":"2"}'), id="unsorted"),
        pytest.param(with_changes(b'{"a":"1","a":"2"}'), id="twice"),
        pytest.param(with_changes(b'{"a":2}'), id="number"),
        pytest.param(with_changes(b'["a"]'), id="list"),
        pytest.param(with_changes(b"{}"), id="nothing"),
        pytest.param(with_changes(b'{"a":"2"'), id="cut"),
        pytest.param(with_changes(b"[" * 100_000), id="deep"),
        pytest.param(with_changes(b'{"a":"' + b"x" * (1 << 21) + b'"}'), id="bomb"),
        pytest.param(with_changes(b"", b"\xff\xff"), id="no deflate"),
        pytest.param(with_changes(b"", b""), id="empty"),
    ],
)
def test_damaged_or_other_texts_are_refused(update):
    with pytest.raises((errors.CorruptUpdateError, errors.WrongBaseError), match="metadata"):
        container.new_metadata(update, {"a": "1"})


def test_trailing_bytes_behind_the_texts_are_refused():
    good = header.parse(encode({"a": "1"}, {"a": "2"}))
    longer = header.pack(good._replace(change=good.change._replace(changes=good.change.changes + b"\0")))
    with pytest.raises(errors.CorruptUpdateError, match="another end"):
        container.new_metadata(longer, {"a": "1"})


def test_texts_beyond_a_mebibyte_do_not_travel():
    with pytest.raises(errors.Error, match="metadata: changes: expected at most 1048576 bytes"):
        encode({}, {"notes": "x" * (1 << 20)})


def test_a_change_that_changes_nothing_is_refused():
    parts = header.parse(encode({"a": "1", "b": "2"}, {"a": "2", "b": "2"}))
    compressor = zlib.compressobj(9, zlib.DEFLATED, -15)
    body = compressor.compress(b'{"a":"2","b":"2"}') + compressor.flush()
    idle = header.pack(parts._replace(change=parts.change._replace(changes=body)))
    with pytest.raises(errors.WrongBaseError, match="metadata"):
        container.new_metadata(idle, {"a": "1", "b": "2"})
