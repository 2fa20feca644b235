import io
import os

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

from tests.edge.running import peak
from tests.wire import samples
from updcomp.edge import applying, files
from updcomp.wire import container, dtypes, errors, fingerprint, packet

IN_SAFETENSORS = {name: leaf for name, leaf in samples.model().items() if leaf.dtype != np.complex128}
LARGE = {f"{i:02d}": np.full(1 << 20, i, np.uint8) for i in range(16)}


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


@pytest.mark.parametrize("suffix", files.SUFFIXES)
def test_an_open_model_says_what_its_leaves_are_and_reads_each_when_asked(tmp_path, suffix):
    files.write_model(tmp_path / f"m{suffix}", IN_SAFETENSORS)
    with files.open_model(tmp_path / f"m{suffix}") as (model, _):
        assert list(model) == sorted(IN_SAFETENSORS)
        assert len(model) == len(IN_SAFETENSORS)
        assert dtypes.specs(model) == dtypes.specs(IN_SAFETENSORS)
        assert fingerprint.of(model) == fingerprint.of(IN_SAFETENSORS)
        assert model["conv"] is not model["conv"]
        with pytest.raises(KeyError):
            model["another"]


@pytest.mark.parametrize("suffix", files.SUFFIXES)
def test_models_are_read_written_and_updated_leaf_by_leaf(tmp_path, suffix):
    old, new, copy = (tmp_path / f"{name}{suffix}" for name in ("old", "new", "copy"))
    files.write_model(old, LARGE)
    update = container.encode(packet.Packet({}), LARGE)

    def copied():
        with files.open_model(old) as (model, _):
            files.write_model(copy, model)

    leaf = 1 << 20
    assert peak(copied) < 6 * leaf
    assert peak(lambda: applying.apply_file(old, update, new)) < 8 * leaf
    assert old.read_bytes() == new.read_bytes() == copy.read_bytes()


@pytest.mark.parametrize("suffix", files.SUFFIXES)
@pytest.mark.parametrize("change", [lambda path: path.write_bytes(path.read_bytes()[:-1]), lambda path: path.touch()])
def test_a_file_that_changes_while_it_is_read_is_an_error(tmp_path, suffix, change):
    path = tmp_path / f"m{suffix}"
    files.write_model(path, LARGE)
    os.utime(path, (0, 0))
    with files.open_model(path) as (model, _):
        assert model["00"][0] == 0
        change(path)
        with pytest.raises(errors.FileError, match="m.*: "):
            model["15"]


def test_leaves_may_be_written_in_any_order(tmp_path):
    specs = dtypes.specs(IN_SAFETENSORS)
    files.write_model(tmp_path / "sorted.safetensors", IN_SAFETENSORS)
    files.write_leaves(tmp_path / "any.safetensors", specs, reversed(list(IN_SAFETENSORS.items())))
    assert (tmp_path / "any.safetensors").read_bytes() == (tmp_path / "sorted.safetensors").read_bytes()
    files.write_leaves(tmp_path / "any.npz", specs, reversed(list(IN_SAFETENSORS.items())))
    assert fingerprint.of(files.read_model(tmp_path / "any.npz").model) == fingerprint.of(IN_SAFETENSORS)


ZERO = np.zeros(1, np.float32)


def broken():
    yield "a", ZERO
    raise errors.CorruptUpdateError("in the middle")


@pytest.mark.parametrize("suffix", files.SUFFIXES)
@pytest.mark.parametrize(
    ("leaves", "message"),
    [
        (lambda: [("a", ZERO)], "'b'.*no such leaf"),
        (lambda: [("a", ZERO)] * 2, "'a'.*twice"),
        (lambda: [("c", ZERO)], "'c'.*no such leaf"),
        (lambda: [("a", ZERO.astype(np.float64))], "'a'"),
        (lambda: [("a", ZERO[None])], "'a'"),
        (broken, "in the middle"),
    ],
    ids=["missing", "twice", "unknown", "dtype", "shape", "error"],
)
def test_nothing_is_written_unless_every_leaf_comes_once_as_announced(tmp_path, suffix, leaves, message):
    (tmp_path / f"m{suffix}").write_bytes(b"old")
    with pytest.raises(errors.Error, match=message):
        files.write_leaves(tmp_path / f"m{suffix}", dtypes.specs({"a": ZERO, "b": ZERO}), leaves())
    assert os.listdir(tmp_path) == [f"m{suffix}"]
    assert (tmp_path / f"m{suffix}").read_bytes() == b"old"


@pytest.mark.parametrize("suffix", files.SUFFIXES)
@pytest.mark.parametrize("name", ["", "a/b.npy", "file", "größe", "\U0001f600", "x" * 65_531, '"\\\n', "../../etc"])
def test_names_may_be_any_text(tmp_path, suffix, name):
    files.write_model(tmp_path / f"m{suffix}", {name: np.float32([1])})
    assert list(files.read_model(tmp_path / f"m{suffix}").model) == [name]


@pytest.mark.parametrize(
    ("path", "name", "metadata", "message"),
    [
        ("m.safetensors", "\ud800", {}, r"UTF-8 can encode, found '\\ud800'"),
        ("m.npz", "\ud800", {}, r"UTF-8 can encode, found '\\ud800'"),
        ("m.safetensors", "w", {"\udfff": "text"}, "UTF-8 can encode"),
        ("m.safetensors", "w", {"name": "\udfff"}, "UTF-8 can encode"),
        ("m.safetensors", "w", {"name": 3}, "UTF-8 can encode, found 3"),
        ("m.safetensors", "__metadata__", {}, "of this name; use .npz"),
        ("m.safetensors", "x" * (8 << 20), {}, "expected at most 8388608 bytes of names and metadata"),
        ("m.npz", "a\0b", {}, "expected a name without NUL"),
        ("m.npz", "x" * 65_532, {}, "expected a name without NUL and of at most 65531 bytes, found 65532"),
        ("m.npz", "ä" * 32_766, {}, "expected a name without NUL and of at most 65531 bytes"),
    ],
    ids=str,
)
def test_what_could_not_be_read_back_is_not_written(tmp_path, path, name, metadata, message):
    with pytest.raises(errors.FileError, match=message) as caught:
        files.write_model(tmp_path / path, {name: np.float32([1])}, metadata)
    assert str(caught.value).startswith(str(tmp_path / path))
    assert os.listdir(tmp_path) == []


def test_a_safetensors_name_may_have_a_nul_and_be_long(tmp_path):
    model = {"a\0b": np.int8([1]), "x" * 100_000: np.int8([2])}
    files.write_model(tmp_path / "m.safetensors", model)
    assert fingerprint.of(files.read_model(tmp_path / "m.safetensors").model) == fingerprint.of(model)


def test_safetensors_has_no_complex128(tmp_path):
    with pytest.raises(errors.FileError, match="npz"):
        files.write_model(tmp_path / "m.safetensors", {"w": np.zeros(1, complex)})
    assert os.listdir(tmp_path) == []


def test_an_npz_has_dtypes_of_latin_names_alone(tmp_path):
    with pytest.raises(errors.FileError, match="'w'"):
        files.write_model(tmp_path / "m.npz", {"w": np.zeros(1, [("\u0394", "|u1")])})
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("path", ["model.pt", "model", "model.npz.gz"])
def test_unknown_suffixes_list_the_known_ones(tmp_path, path):
    for use in (files.read_model, lambda p: files.write_model(p, {})):
        with pytest.raises(errors.FileError, match=r"\.safetensors or \.npz"):
            use(tmp_path / path)


@pytest.mark.parametrize("suffix", files.SUFFIXES)
def test_a_boolean_is_the_byte_0_or_1(tmp_path, suffix):
    path = tmp_path / f"m{suffix}"
    files.write_model(path, {"w": np.array([True, False])})
    assert files.read_model(path).model["w"].tolist() == [True, False]
    files.write_model(path, {"w": np.uint8([1, 7]).view(bool)})
    with pytest.raises(errors.FileError, match=r"leaf 'w': expected bytes of 0 and 1, found 7"):
        files.read_model(path)


def test_the_bytes_of_model_files_stay_as_they_were(tmp_path):
    """Of the same model: what NumPy's own writer gives, sorted, with a fixed date; wide dtypes first."""
    model = {"b": np.arange(3, dtype=np.int16), "a": np.float32(1)}
    files.write_model(tmp_path / "m.safetensors", model, {"k": "v"})
    header = (
        b'{"__metadata__":{"k":"v"},"a":{"dtype":"F32","shape":[],"data_offsets":[0,4]},'
        b'"b":{"dtype":"I16","shape":[3],"data_offsets":[4,10]}}'
    )
    header += b" " * (-len(header) % 8)
    content = len(header).to_bytes(8, "little") + header + model["a"].tobytes() + model["b"].tobytes()
    assert (tmp_path / "m.safetensors").read_bytes() == content
    files.write_model(tmp_path / "m.npz", model)
    for name, leaf in model.items():
        member = io.BytesIO()
        np.lib.format.write_array(member, leaf)
        assert member.getvalue() in (tmp_path / "m.npz").read_bytes()
        with np.load(tmp_path / "m.npz") as archive:
            assert archive[name].tobytes() == leaf.tobytes()
