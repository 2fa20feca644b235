"""Hostile and damaged archives."""

import contextlib
import io
import warnings
import zipfile

import numpy as np
import pytest

from tests.edge.running import assert_refused, peak
from tests.wire import samples
from updcomp.edge import files
from updcomp.wire import errors, fingerprint

MODEL = {"w": np.arange(6, dtype=np.float32).reshape(2, 3), "b": samples.model()["scale"], "e": np.zeros((0, 3), "i1")}


def npy(leaf, **options):
    content = io.BytesIO()
    np.lib.format.write_array(content, leaf, **options)
    return content.getvalue()


def npy_of(header, data=b"", version=b"\1\0"):
    text = header.encode()
    return b"\x93NUMPY" + version + len(text).to_bytes(2 if version == b"\1\0" else 4, "little") + text + data


def archive(path, members, method=zipfile.ZIP_STORED):
    with warnings.catch_warnings(), zipfile.ZipFile(path, "w", method) as file:
        warnings.simplefilter("ignore")  # of names that appear twice
        for name, content in members:
            file.writestr(name, content)
    return path


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_what_numpy_writes_is_read_in_any_order_of_axes_and_bytes(tmp_path, save):
    model = {
        "f": np.asfortranarray(np.arange(24.0).reshape(2, 3, 4)),
        "big": np.arange(5, dtype=">i4"),
        "both": np.asfortranarray(np.arange(6, dtype=">f8").reshape(2, 3)),
        "zero": np.array(3, np.uint16),
        "none": np.zeros((4, 0)),
        "bfloat16": np.asfortranarray(np.arange(6, dtype="<u2").reshape(2, 3)).view([("bfloat16", "<u2")]),
    }
    save(tmp_path / "m.npz", **model)
    with files.open_model(tmp_path / "m.npz") as (read, metadata):
        assert metadata == {}
        assert read.specs["big"].dtype.str == "<i4"
        assert read.specs["f"].shape == (2, 3, 4)
        assert all(read[name].flags.c_contiguous and read[name].dtype == read.specs[name].dtype for name in model)
        assert fingerprint.of(read) == fingerprint.of(model)


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_what_was_written_into_a_pipe_is_read(tmp_path, save):
    """There the checksum and sizes of a member follow it."""

    class Pipe(io.RawIOBase):
        written = b""

        def writable(self):
            return True

        def write(self, content):
            self.written += bytes(content)
            return len(content)

    pipe = Pipe()
    save(pipe, a=np.arange(9), b=np.float32(1))
    (tmp_path / "m.npz").write_bytes(pipe.written)
    with zipfile.ZipFile(tmp_path / "m.npz") as file:
        assert all(info.flag_bits & 8 for info in file.infolist())
    read = files.read_model(tmp_path / "m.npz").model
    assert fingerprint.of(read) == fingerprint.of({"a": np.arange(9), "b": np.float32(1)})


def test_headers_of_other_writers_are_read(tmp_path):
    texts = [
        "{'shape':(2,),'fortran_order':False,'descr':'<i2'}",
        '{"descr": "<i2", "fortran_order": True, "shape": (2, )}',
    ]
    members = [
        npy_of(texts[0], b"\1\0\2\0"),
        npy_of(texts[1], b"\1\0\2\0", b"\2\0"),
        npy_of(texts[1], b"\1\0\2\0", b"\3\0"),
    ]
    archive(tmp_path / "m.npz", [(f"{i}.npy", member) for i, member in enumerate(members)])
    assert [leaf.tolist() for leaf in files.read_model(tmp_path / "m.npz").model.values()] == [[1, 2]] * 3


def test_every_truncation_is_refused_and_a_flipped_bit_too_or_it_changes_nothing(tmp_path):
    path, expected = tmp_path / "m.npz", fingerprint.of(MODEL)
    files.write_model(path, MODEL)
    whole = path.read_bytes()
    for size in range(len(whole)):
        path.write_bytes(whole[:size])
        with pytest.raises(errors.FileError, match="not a model file"):
            files.read_model(path)
    refused = 0
    for bit in range(8 * len(whole)):
        flipped = bytearray(whole)
        flipped[bit // 8] ^= 1 << bit % 8
        path.write_bytes(flipped)
        try:
            assert fingerprint.of(files.read_model(path).model) == expected
        except errors.Error as error:
            assert "\n" not in str(error)
            refused += 1
    assert refused > 4 * len(whole)


def test_a_flipped_bit_of_a_deflated_archive_too(tmp_path):
    np.savez_compressed(tmp_path / "m.npz", w=np.arange(300) % 7)
    whole, expected = (tmp_path / "m.npz").read_bytes(), fingerprint.of({"w": np.arange(300) % 7})
    for bit in range(8 * len(whole)):
        flipped = bytearray(whole)
        flipped[bit // 8] ^= 1 << bit % 8
        (tmp_path / "m.npz").write_bytes(flipped)
        with contextlib.suppress(errors.Error):
            assert fingerprint.of(files.read_model(tmp_path / "m.npz").model) == expected


@pytest.mark.parametrize(("method", "number"), [(zipfile.ZIP_BZIP2, 12), (zipfile.ZIP_LZMA, 14)])
def test_a_bomb_of_another_compression_is_not_unpacked(tmp_path, method, number):
    archive(tmp_path / "m.npz", [("w.npy", npy(np.zeros(1 << 24, np.uint8)))], method)
    assert (tmp_path / "m.npz").stat().st_size < 8000
    assert (
        peak(
            lambda: assert_refused(
                tmp_path / "m.npz", f"leaf 'w': .*expected it stored or deflated, found method {number}"
            )
        )
        < 1 << 20
    )


def test_pickles_are_never_loaded(tmp_path):
    np.savez(tmp_path / "m.npz", w=np.array([{}], object))
    with pytest.raises(errors.DtypeError, match=r"m\.npz: leaf 'w': dtype object"):
        files.read_model(tmp_path / "m.npz")


def test_leaves_that_are_no_numbers_are_refused(tmp_path):
    np.savez(tmp_path / "m.npz", w=np.array(["text"]))
    with pytest.raises(errors.DtypeError, match=r"m\.npz: leaf 'w': dtype"):
        files.read_model(tmp_path / "m.npz")


WORD = npy(np.int32([1]))
FIELDS = "{'descr':'<i4','fortran_order':False,'shape':(1,)}"


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ([("w", WORD)], "a name that ends in .npy"),
        ([("w.npy", WORD), ("w.npy", WORD)], "twice"),
        ([("w.npy", WORD + b"x")], "expected 132 bytes as its shape says, found 133"),
        ([("w.npy", WORD[:-1])], "expected 132 bytes as its shape says, found 131"),
        ([("w.npy", b"")], "expected a .npy of version 1 to 3"),
        ([("w.npy", WORD[:6] + b"\4\0" + WORD[8:])], "expected a .npy of version 1 to 3"),
        ([("w.npy", npy_of(FIELDS + " " * 10_000, b"1234"))], "expected a header of at most 10000 bytes"),
        ([("w.npy", npy_of("[]", b"1234"))], "expected descr, fortran_order and shape"),
        ([("w.npy", npy_of(FIELDS.replace("'shape'", "'form'"), b"1234"))], "expected descr, fortran_order and shape"),
        ([("w.npy", npy_of(FIELDS.replace("(1,)", "[1]"), b"1234"))], "expected shape and order"),
        ([("w.npy", npy_of(FIELDS.replace("False", "0"), b"1234"))], "expected shape and order"),
        ([("w.npy", npy_of(FIELDS.replace("(1,)", "(True,)"), b"1234"))], "expected integers"),
        ([("w.npy", npy_of(FIELDS.replace("(1,)", "(-1,)"), b"1234"))], "expected integers"),
        ([("w.npy", npy_of(FIELDS.replace("(1,)", "(1.0,)"), b"1234"))], "expected integers"),
        ([("w.npy", npy_of(FIELDS.replace("(1,)", f"({'1,' * 65})"), b"1234"))], "expected at most 64 axes, found 65"),
        ([("w.npy", npy_of(FIELDS.replace("(1,)", f"({'9' * 5000},)"), b"1234"))], "not a model file"),
        ([("w.npy", npy_of(FIELDS.replace("(1,)", f"(0,{2**62},{2**62})")))], "expected less than 2.63 bytes"),
        ([("w.npy", npy_of(FIELDS.replace("(1,)", "(" * 4000), b"1234"))], "not a model file"),
        ([("w.npy", npy_of(FIELDS.replace("(1,)", "-" * 9000 + "1"), b"1234"))], "m.npz: "),
        ([("w.npy", npy_of(FIELDS.replace("'<i4'", "r'\\d'"), b"1234"))], "not a model file"),
        ([("w.npy", npy_of(FIELDS.replace("'<i4'", "'\\d'"), b"1234"))], "not a model file"),
        ([("w.npy", npy_of(FIELDS.replace("'<i4'", "('<i4',(3,))"), b"1234"))], "dtype"),
        ([("w.npy", npy_of(FIELDS.replace("(1,)", "(1L,)"), b"1234"))], "not a model file"),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_members_that_are_no_plain_npy_are_refused(tmp_path, members, message):
    archive(tmp_path / "m.npz", members)
    with pytest.raises(errors.Error, match=message) as caught:
        files.read_model(tmp_path / "m.npz")
    assert str(caught.value).startswith(str(tmp_path / "m.npz"))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("flag", [1, 1 << 5, 1 << 6])
def test_encrypted_members_are_refused(tmp_path, flag):
    archive(tmp_path / "m.npz", [("w.npy", WORD)])
    content = bytearray((tmp_path / "m.npz").read_bytes())
    for start, at in ((b"PK\3\4", 6), (b"PK\1\2", 8)):
        content[content.index(start) + at] |= flag
    (tmp_path / "m.npz").write_bytes(content)
    with pytest.raises(errors.FileError, match="expected one that is not encrypted"):
        files.read_model(tmp_path / "m.npz")


def test_a_name_with_a_nul_is_refused(tmp_path):
    archive(tmp_path / "m.npz", [("aXb.npy", WORD)])
    content = (tmp_path / "m.npz").read_bytes().replace(b"aXb.npy", b"a\0b.npy")
    (tmp_path / "m.npz").write_bytes(content)
    with pytest.raises(errors.FileError, match=r"'a\\x00b.npy'.*without NUL"):
        files.read_model(tmp_path / "m.npz")


def test_members_that_share_bytes_are_refused(tmp_path):
    """A whole member within the bytes of another: many of them would be more than the file by any factor."""
    inner = archive(tmp_path / "inner.npz", [("inner.npy", WORD)]).read_bytes()
    with zipfile.ZipFile(tmp_path / "inner.npz") as file:
        (info,) = file.infolist()
    with zipfile.ZipFile(tmp_path / "m.npz", "w") as file:
        file.writestr("outer.npy", npy(np.frombuffer(inner, np.uint8)))
        info.header_offset = file.fp.tell() - len(inner)
        file.filelist.append(info)
        file.NameToInfo[info.filename] = info
    with np.load(tmp_path / "m.npz") as accepted:
        assert accepted["inner"].tolist() == [1]
    # Newer versions of zipfile see it first.
    with pytest.raises(errors.FileError, match=r"npz member 'inner.npy': expected it at |Overlapped entries"):
        files.read_model(tmp_path / "m.npz")


def test_a_member_larger_than_its_bytes_can_be_is_refused(tmp_path):
    header = npy_of(FIELDS.replace("(1,)", f"({1 << 40},)"))
    archive(tmp_path / "m.npz", [("w.npy", header)], zipfile.ZIP_DEFLATED)
    with zipfile.ZipFile(tmp_path / "m.npz", "a") as file:
        file.filelist[0].file_size = len(header) + (4 << 40)
        file._didModify = True
    with pytest.raises(errors.FileError, match=f"{len(header) + (4 << 40)} bytes cannot be in "):
        files.read_model(tmp_path / "m.npz")


def test_a_directory_beyond_8_mib_is_not_read(tmp_path):
    path = tmp_path / "m.npz"
    with zipfile.ZipFile(path, "w") as file:
        for i in range(150):
            file.writestr(f"{i:03d}{'x' * 60_000}.npy", b"")
    assert peak(lambda: assert_refused(path, "expected a directory of at most 8388608 bytes, found 9")) < 1 << 20
    with pytest.raises(errors.FileError, match="expected at most 8388608 bytes of names"):
        files.write_model(path, {f"{i:03d}{'x' * 60_000}": np.int8(1) for i in range(150)})
