"""Hostile and damaged headers."""

import json
import os
import struct

import numpy as np
import pytest

from tests.edge.running import assert_refused, peak
from updcomp.edge import files
from updcomp.wire import errors


def file_of(header, data=b"", length=None):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def entry(dtype="F32", shape=(1,), offsets=(0, 4)):
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


def text_of(dtype='"F32"', shape="[1]", offsets="[0,4]"):
    return f'{{"w":{{"dtype":{dtype},"shape":{shape},"data_offsets":{offsets}}}}}'.encode()


def read(tmp_path, content):
    (tmp_path / "m.safetensors").write_bytes(content)
    return files.read_model(tmp_path / "m.safetensors")


def test_a_misaligned_file_is_read_into_aligned_leaves(tmp_path):
    header = {"a": entry("U8", [1], [0, 1]), "b": entry("F32", [1], [1, 5])}
    model = read(tmp_path, file_of(header, b"\7" + np.float32(1.5).tobytes())).model
    assert model["b"].tolist() == [1.5]
    assert model["b"].flags.aligned


def test_a_header_may_have_space_anywhere_but_before_it_and_unknown_fields(tmp_path):
    header = (
        b'{ "__metadata__" : { "a" : "\\u00e9" , "b":"" } ,\n\t"w" : {"extra":[[1]], "data_offsets":[0, 4],'
        b'"shape":[ 1 ] , "dtype" : "F32" } }  \n '
    )
    model, metadata = read(tmp_path, file_of(header, np.float32(2).tobytes()))
    assert model["w"].tolist() == [2.0]
    assert metadata == {"a": "é", "b": ""}
    assert read(tmp_path, file_of(b"{}")) == ({}, {})
    assert read(tmp_path, file_of(b'{ "__metadata__": { } }')) == ({}, {})


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not safetensors"),
        (b"1234", "not safetensors"),
        (file_of({}, length=2**40), "header"),
        (file_of({}, length=3), "header"),
        (file_of(b""), "object"),
        (file_of(b"[1, 2]"), "object"),
        (file_of(b" {}"), "object"),
        (file_of(b"\n{}"), "object"),
        (file_of(b"{} {}"), "more behind its end"),
        (file_of(b"{}\0"), "more behind its end"),
        (file_of(b'{"a"'), "':'"),
        (file_of(b'{"__metadata__":{},}'), "text"),
        (file_of(b'{"__metadata__":{}'), "','"),
        (file_of(b"{1:2}"), "text"),
        (file_of(b"{" * 50_000), "JSON"),
        (file_of(b"[" * 50_000), "JSON"),
        (file_of(b'{"w":' + b"[" * 50_000), "characters"),
        (file_of(b'{"w":' + b"[" * 3000 + b"}"), "JSON"),
        (file_of(b'{"__metadata__":' + b"[" * 50_000), "'{'"),
        (file_of(b'{"__metadata__":{},"__metadata__":{}}'), "'__metadata__' appears twice"),
        (file_of(text_of()[:-1] + b"," + text_of()[1:], b"1234"), "'w' appears twice"),
        (file_of(text_of('"F32","dtype":"F32"'), b"1234"), "twice"),
        (file_of(b'{"__metadata__":{"a":"","a":""}}'), "'a' appears twice"),
        (file_of(b"\xff\xfe"), "JSON"),
        (file_of(b'{"\xff":{}}'), "JSON"),
        (file_of({"w": 3}), "'w'"),
        (file_of({"w": None}), "'w'"),
        (file_of({"w": []}), "'w'"),
        (file_of({"w": {"dtype": "F32", "shape": [1]}}), "data_offsets"),
        (file_of({"w": entry(offsets=[0, 4, 8])}), "data_offsets"),
        (file_of({"w": entry(offsets=7)}), "data_offsets"),
        (file_of({"w": entry(offsets=[False, 4])}), "data_offsets"),
        (file_of({"w": entry(offsets=[-4, 0])}), "'w'"),
        (file_of({"w": entry(dtype="F4")}, b"1234"), "'F4'"),
        (file_of({"w": entry(dtype=["F32"])}, b"1234"), "expected one of"),
        (file_of({"w": entry(shape="1")}, b"1234"), "integers"),
        (file_of({"w": entry(shape=3)}, b"1234"), "shape"),
        (file_of({"w": entry(shape=[-1])}, b"1234"), "integers"),
        (file_of({"w": entry(shape=[True])}, b"1234"), "integers"),
        (file_of({"w": entry(shape=[None])}, b"1234"), "integers"),
        (file_of({"w": entry(shape=[[1]])}, b"1234"), "integers"),
        (file_of({"w": entry(shape=[1.0])}, b"1234"), "1.0 in place of an integer"),
        (file_of(text_of(shape="[1e3]"), b"1234"), "1e3 in place of an integer"),
        (file_of(text_of(shape="[NaN]"), b"1234"), "NaN in place of an integer"),
        (file_of(text_of(offsets="[0,Infinity]"), b"1234"), "Infinity in place of an integer"),
        (file_of({"w": entry(shape=[2])}, b"1234"), "expected 8 bytes"),
        (file_of({"w": entry(shape=[2**62, 4])}, b"1234"), "bytes"),
        (file_of({"w": entry(shape=[2**63])}, b"1234"), "integers"),
        (file_of({"w": entry("F32", [0] + [2**62] * 3, [0, 0])}), "shape"),
        (file_of({"w": entry("F32", [0] * 65, [0, 0])}), "expected at most 64 axes, found 65"),
        (file_of({"w": entry("F32", [0] * 50_000, [0, 0])}), "expected an entry of at most 4096 characters"),
        (file_of(text_of(shape="[" + "9" * 20 + "]"), b"1234"), "a number of 20 digits"),
        (file_of(text_of(shape="[" + "9" * 4300 + "]"), b"1234"), "expected an entry of at most 4096 characters"),
        (file_of({"w": entry(offsets=[4, 8])}, b"12345678"), "'w'"),
        (file_of({"w": entry()}, b"12345678"), "expected 4 bytes"),
        (file_of({"w": entry()}, b"12"), "expected 4 bytes"),
        (file_of({"a": entry(), "b": entry()}, b"1234"), "'b'"),
        (file_of({"__metadata__": {"a": 1}}), "__metadata__"),
        (file_of({"__metadata__": {"a": {}}}), "__metadata__"),
        (file_of({"__metadata__": 3}), "'{'"),
        (file_of(b'{"__metadata__":{"a":"\\ud800"}}'), r"UTF-8 can encode, found '\\ud800'"),
        (file_of(b'{"__metadata__":{"\\udc00":""}}'), "UTF-8 can encode"),
        (file_of(text_of().replace(b'"w"', b'"\\ud800"'), b"1234"), "UTF-8 can encode"),
    ],
    ids=lambda value: None if isinstance(value, str) else repr(value[8:48]),
)
def test_damaged_files_are_named(tmp_path, content, message):
    with pytest.raises(errors.FileError, match=message) as caught:
        read(tmp_path, content)
    assert str(caught.value).startswith(str(tmp_path / "m.safetensors"))
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 1000


def test_every_truncation_is_refused_and_every_flipped_bit_of_the_header_is_an_error_or_a_model(tmp_path):
    whole = file_of({"__metadata__": {"a": "b"}, "w": entry(), "v": entry("BOOL", [2, 1], [4, 6])}, b"1234\0\1")
    for size in range(len(whole)):
        with pytest.raises(errors.FileError):
            read(tmp_path, whole[:size])
    outcomes = set()
    for bit in range(8 * len(whole)):
        flipped = bytearray(whole)
        flipped[bit // 8] ^= 1 << bit % 8
        try:
            outcomes.add(len(read(tmp_path, flipped).model))
        except errors.FileError:
            outcomes.add(None)
    assert outcomes == {2, None}


def test_a_header_beyond_8_mib_is_not_read(tmp_path):
    path = tmp_path / "m.safetensors"
    with path.open("wb") as file:
        file.write(struct.pack("<Q", 98_000_000))
        file.truncate(98_000_008)
    assert peak(lambda: assert_refused(path, "expected a header of at most 8388608 bytes, found 98000000")) < 1 << 20


def test_a_hostile_header_of_8_mib_takes_little_memory(tmp_path):
    """Read at once, these lists take 180 MB."""
    path = tmp_path / "m.safetensors"
    path.write_bytes(file_of(b'{"w":[' + b"[]," * 2_790_000 + b"[]]}"))
    assert peak(lambda: assert_refused(path, "'w'")) < 40 << 20


def test_a_leaf_beyond_the_end_of_the_file_takes_no_memory(tmp_path):
    path = tmp_path / "m.safetensors"
    path.write_bytes(file_of({"w": entry("U8", [1 << 40], [0, 1 << 40])}, b"1234"))
    with pytest.raises(errors.FileError, match=f"expected {1 << 40} bytes of leaves, found 4"):
        files.read_model(path)
    os.truncate(path, path.stat().st_size - 4 + (1 << 40))
    with files.open_model(path) as (model, _):
        assert model.specs["w"].nbytes == 1 << 40
