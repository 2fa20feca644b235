import contextlib
import json
import os
import struct

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

from tests.wire import samples
from updcomp.edge import files
from updcomp.wire import errors, fingerprint

IN_SAFETENSORS = {name: leaf for name, leaf in samples.model().items() if leaf.dtype != np.complex128}


def file_of(header, data=b"", length=None):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def entry(dtype="F32", shape=(1,), offsets=(0, 4)):
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


@pytest.mark.parametrize("suffix", files.SUFFIXES)
def test_models_of_every_dtype_return_with_their_bits(tmp_path, suffix):
    path = tmp_path / f"model{suffix}"
    files.write_model(path, IN_SAFETENSORS, {"note": "kept"})
    read = files.read_model(path)
    assert fingerprint.of(read.model) == fingerprint.of(IN_SAFETENSORS)
    assert read.metadata == ({"note": "kept"} if suffix == ".safetensors" else {})
    assert all(leaf.flags.aligned for leaf in read.model.values())
    assert os.listdir(tmp_path) == [path.name]
    first = path.read_bytes()
    files.write_model(path, read.model, read.metadata)
    assert path.read_bytes() == first


def test_the_safetensors_package_reads_what_we_write_and_we_what_it_writes(tmp_path):
    plain = {name: leaf for name, leaf in IN_SAFETENSORS.items() if leaf.dtype.names is None}
    files.write_model(tmp_path / "ours.safetensors", plain)
    theirs = safetensors.numpy.load_file(tmp_path / "ours.safetensors")
    assert fingerprint.of(theirs) == fingerprint.of(plain)
    safetensors.numpy.save_file(plain, tmp_path / "theirs.safetensors", metadata={"format": "pt"})
    read = files.read_model(tmp_path / "theirs.safetensors")
    assert fingerprint.of(read.model) == fingerprint.of(plain)
    assert read.metadata == {"format": "pt"}


@pytest.mark.parametrize(
    ("name", "expected"), [("bfloat16", "BF16"), ("float8_e4m3fn", "F8_E4M3"), ("float8_e5m2", "F8_E5M2")]
)
def test_small_floats_have_the_names_that_the_safetensors_package_knows(tmp_path, name, expected):
    leaf = np.arange(4).astype(getattr(ml_dtypes, name))
    files.write_model(tmp_path / "m.safetensors", {"w": leaf})
    ((_, theirs),) = safetensors.deserialize((tmp_path / "m.safetensors").read_bytes())
    assert theirs["dtype"] == expected
    assert theirs["shape"] == [4]
    assert bytes(theirs["data"]) == leaf.tobytes()
    assert fingerprint.of(files.read_model(tmp_path / "m.safetensors").model) == fingerprint.of({"w": leaf})


def test_npz_names_may_be_any_and_numpy_reads_them(tmp_path):
    model = {"file": np.float32([1]), "a/b.npy": np.float32(2), "": np.int8([3])}
    files.write_model(tmp_path / "m.npz", model)
    assert fingerprint.of(files.read_model(tmp_path / "m.npz").model) == fingerprint.of(model)
    with np.load(tmp_path / "m.npz") as archive:
        assert archive["file"].tolist() == [1]


def test_a_misaligned_safetensors_file_is_read_into_aligned_leaves(tmp_path):
    header = {"a": entry("U8", [1], [0, 1]), "b": entry("F32", [1], [1, 5])}
    (tmp_path / "m.safetensors").write_bytes(file_of(header, b"\7" + np.float32(1.5).tobytes()))
    model = files.read_model(tmp_path / "m.safetensors").model
    assert model["b"].tolist() == [1.5]
    assert model["b"].flags.aligned


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not safetensors"),
        (b"1234", "not safetensors"),
        (file_of({}, length=2**40), "header"),
        (file_of({}, length=3), "header"),
        (file_of(b"[1, 2]"), "object"),
        (file_of(b"{" * 50_000), "JSON"),
        (file_of(b"[" * 50_000), "JSON"),
        (file_of(b'{"a": 1, "a": 2}'), "twice"),
        (file_of(b"\xff\xfe"), "JSON"),
        (file_of({"w": 3}), "'w'"),
        (file_of({"w": {"dtype": "F32", "shape": [1]}}), "data_offsets"),
        (file_of({"w": entry(offsets=[0, 4, 8])}), "data_offsets"),
        (file_of({"w": entry(dtype="F4")}, b"1234"), "'F4'"),
        (file_of({"w": entry(dtype=["F32"])}, b"1234"), "expected one of"),
        (file_of({"w": entry(shape="1")}, b"1234"), "integers"),
        (file_of({"w": entry(shape=[-1])}, b"1234"), "integers"),
        (file_of({"w": entry(shape=[True])}, b"1234"), "integers"),
        (file_of({"w": entry(shape=[1.0])}, b"1234"), "integers"),
        (file_of({"w": entry(shape=[2])}, b"1234"), "expected 8 bytes"),
        (file_of({"w": entry(shape=[2**62, 4])}, b"1234"), "bytes"),
        (file_of({"w": entry("F32", [0] + [2**62] * 3, [0, 0])}), "shape"),
        (file_of({"w": entry("F32", [0] * 100, [0, 0])}), "shape"),
        (file_of({"w": entry(offsets=[4, 8])}, b"12345678"), "'w'"),
        (file_of({"w": entry()}, b"12345678"), "expected 4 bytes"),
        (file_of({"w": entry()}, b"12"), "expected 4 bytes"),
        (file_of({"a": entry(), "b": entry()}, b"1234"), "'b'"),
        (file_of({"__metadata__": {"a": 1}}), "__metadata__"),
    ],
)
def test_damaged_safetensors_files_are_named(tmp_path, content, message):
    path = tmp_path / "m.safetensors"
    path.write_bytes(content)
    with pytest.raises(errors.FileError, match=message) as caught:
        files.read_model(path)
    assert str(caught.value).startswith(str(path))
    assert "\n" not in str(caught.value)


def test_every_truncation_and_many_damages_of_a_npz_file_are_a_file_error_or_a_model(tmp_path):
    path = tmp_path / "m.npz"
    files.write_model(path, {"w": np.arange(6, dtype=np.float32), "b": samples.model()["scale"]})
    whole = path.read_bytes()
    for size in range(len(whole)):
        path.write_bytes(whole[:size])
        with pytest.raises(errors.FileError, match="not a model file"):
            files.read_model(path)
    for at in range(0, len(whole)):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 0x11]) + whole[at + 1 :])
        with contextlib.suppress(errors.Error):
            files.read_model(path)


def test_pickles_are_never_loaded(tmp_path):
    np.savez(tmp_path / "m.npz", w=np.array([{}], object))
    with pytest.raises(errors.FileError, match="allow_pickle"):
        files.read_model(tmp_path / "m.npz")


def test_npz_leaves_that_are_no_numbers_are_refused(tmp_path):
    np.savez(tmp_path / "m.npz", w=np.array(["text"]))
    with pytest.raises(errors.DtypeError, match=r"m\.npz: dtype"):
        files.read_model(tmp_path / "m.npz")


def test_safetensors_has_no_complex128_and_no_leaf_of_the_metadatas_name(tmp_path):
    for name, leaf in (("w", np.zeros(1, complex)), ("__metadata__", np.zeros(1, np.float32))):
        with pytest.raises(errors.FileError, match="npz"):
            files.write_model(tmp_path / "m.safetensors", {name: leaf})
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("path", ["model.pt", "model", "model.npz.gz"])
def test_unknown_suffixes_list_the_known_ones(tmp_path, path):
    for use in (files.read_model, lambda p: files.write_model(p, {})):
        with pytest.raises(errors.FileError, match=r"\.safetensors or \.npz"):
            use(tmp_path / path)


def test_a_file_is_replaced_through_links_and_only_whole(tmp_path):
    (tmp_path / "target.npz").write_bytes(b"old")
    (tmp_path / "link.npz").symlink_to(tmp_path / "target.npz")

    def fail(file):
        file.write(b"partial")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        files.replace_file(tmp_path / "link.npz", fail)
    assert (tmp_path / "target.npz").read_bytes() == b"old"
    assert sorted(os.listdir(tmp_path)) == ["link.npz", "target.npz"]
    files.replace_file(tmp_path / "link.npz", lambda file: file.write(b"new"))
    assert (tmp_path / "target.npz").read_bytes() == b"new"
    assert (tmp_path / "link.npz").is_symlink()


def test_devices_are_not_replaced():
    with pytest.raises(errors.FileError, match="folder or device"):
        files.replace_file("/dev/null", lambda file: None)
