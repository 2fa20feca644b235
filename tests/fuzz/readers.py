"""Model files: any bytes under a name that ends in `.safetensors` or `.npz`."""

import atexit
import binascii
import functools
import io
import json
import os
import random
import shutil
import struct
import tempfile
import warnings
import zipfile
import zlib
from pathlib import Path

import numpy as np

from tests.fuzz import mutation, target, texts
from tests.wire import samples
from updcomp.edge import files
from updcomp.wire import dtypes, errors

FOLDER = "UPDCOMP_FUZZ_FOLDER"  # variable: where a process that cannot tidy up has its folder

_MODELS: tuple[dict[str, np.ndarray], ...] = (
    {"w": np.float32([[1, 2], [3, 4]])},
    {"a": np.zeros((0, 3), np.float32), "step": np.array(7), "texts/é": np.arange(3, dtype=np.uint8)},
    {name: leaf for name, leaf in samples.model().items() if "/" not in name and leaf.dtype.names is None},
    {},
)
NPZ_WORDS = (
    *(b"PK\1\2", b"PK\3\4", b"PK\5\6", b"PK\6\6", b"PK\6\7", b".npy", b"\x93NUMPY\1\0", b"\x93NUMPY\3\0"),
    *(b"'descr': '<f4'", b"'fortran_order': True", b"'shape': (2, 2)", b"(9999999999,)", b"(0,-1)", b"'|O'", b"'<U9'"),
    *(b"[('bfloat16', '<u2')]", b"'<f4', (2,)", b"1" * 100, b"(" * 100, b"\x08\0", b"\x0c\0", b"\xff\xff\xff\xff"),
)


@functools.cache
def folder() -> Path:
    """A folder of this process, in memory where there is one; it goes with the process."""
    memory = Path("/dev/shm")
    chosen = os.environ.get(FOLDER) or (memory if memory.is_dir() else None)
    path = Path(tempfile.mkdtemp(prefix="updcomp-fuzz-", dir=chosen))
    atexit.register(shutil.rmtree, path, ignore_errors=True)
    return path


def read_safetensors(data: bytes) -> str:
    """Reads any bytes as `.safetensors`."""
    return _read(data, ".safetensors")


def read_npz(data: bytes) -> str:
    """Reads any bytes as `.npz`; what is accepted is what NumPy reads."""
    outcome = _read(data, ".npz")
    if outcome == "accepted":
        with np.load(io.BytesIO(data), allow_pickle=False) as archive:
            model = files.read_model(folder() / "model.npz").model
            assert sorted(model) == sorted(archive), "other leaves than NumPy reads"
            for name, leaf in model.items():
                assert leaf.tobytes() == archive[name].tobytes(), f"leaf {name!r}: other values than NumPy reads"
    return outcome


def _read(data: bytes, suffix: str) -> str:
    path = folder() / f"model{suffix}"
    path.write_bytes(data)
    try:
        model = files.read_model(path).model
    except errors.Error as error:
        return target.refused(error)
    assert all(leaf.tobytes() == dtypes.hold(leaf).tobytes() for leaf in model.values()), "a leaf that is not held"
    return "accepted"


def safetensors_seeds() -> list[bytes]:
    """Small models, one with metadata."""
    return [_written(".safetensors", model, {"of": "a seed"} if i == 0 else {}) for i, model in enumerate(_MODELS)]


def npz_seeds() -> list[bytes]:
    """Small models, stored and deflated."""
    deflated = io.BytesIO()
    np.savez_compressed(deflated, w=np.zeros((4, 4), np.float32), f=np.asfortranarray(np.eye(2, 3)))
    return [*(_written(".npz", model) for model in _MODELS), deflated.getvalue()]


def _written(suffix: str, model: dict[str, np.ndarray], metadata: dict[str, str] | None = None) -> bytes:
    path = folder() / f"seed{suffix}"
    files.write_model(path, model, metadata)
    return path.read_bytes()


def edit_safetensors(data: bytes, rng: random.Random) -> bytes:
    """A value of the header replaced, removed, added or doubled, and the sizes made right."""
    text, payload = _split(data)
    try:
        header = texts.edit_json(json.loads(text), rng)
        said = json.dumps(header, separators=(",", ":"), ensure_ascii=rng.randrange(2) == 0)
        text = said.encode(errors="surrogatepass")
    except (ValueError, RecursionError):
        return data
    if rng.randrange(4) == 0:  # a name twice
        text = text[:1] + text[1:-1] + b"," + text[1:] if len(text) > 2 else text
    text += b" " * rng.choice((0, 0, -len(text) % 8, 1))
    if rng.randrange(4):
        try:
            size = max(entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__")
            payload = payload[:size].ljust(min(size, mutation.MOST), b"\x3f")
        except (AttributeError, KeyError, IndexError, TypeError, ValueError):
            pass
    return len(text).to_bytes(8, "little") + text + payload


def repair_safetensors(data: bytes) -> bytes:
    """The header's length made that of its text, which ends at the last brace."""
    text, payload = _split(data)
    return len(text).to_bytes(8, "little") + text + payload


def _split(data: bytes) -> tuple[bytes, bytes]:
    """(the header's text, what follows)."""
    size = int.from_bytes(data[:8], "little")
    if size > len(data) - 8 or not data[8 : 8 + size].rstrip(b" ").endswith(b"}"):
        size = data.rfind(b"}") - 7
    size = max(size, 0)
    return data[8 : 8 + size], data[8 + size :]


def edit_npz(data: bytes, rng: random.Random) -> bytes:
    """A member changed, renamed, doubled or compressed otherwise, in an archive that is right."""
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            members = [(name, archive.read(name)) for name in archive.namelist()[:8]]
    except Exception:  # zipfile raises many types
        return data
    if not members:
        return data
    at = rng.randrange(len(members))
    name, content = members[at]
    match rng.randrange(5):
        case 0:
            names = (name[:-4], name + ".npy", "/" + name, "../" + name, "é.npy", ".npy", name[:1])
            members[at] = (rng.choice(names), content)
        case 1:
            members.append((name, content))
        case 2:
            members[at] = (name, content + rng.randbytes(rng.randrange(1, 9)))
        case 3:
            members[at] = (name, bytes(rng.choice((100, 3000, 1 << 20))) if rng.randrange(4) else content[:-1])
        case 4:
            members[at] = (name, mutation.mutate(content, rng, (), NPZ_WORDS))
    methods = (zipfile.ZIP_STORED, zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA)
    out = io.BytesIO()
    try:
        with warnings.catch_warnings(), zipfile.ZipFile(out, "w") as archive:
            warnings.simplefilter("ignore")  # a name twice
            for name, content in members:
                archive.writestr(zipfile.ZipInfo(name), content, rng.choice(methods))
    except Exception:
        return data
    return out.getvalue()


def repair_npz(data: bytes) -> bytes:
    """The CRC of every member that can be read made right, in the directory and before the member."""
    out, at = bytearray(data), data.find(b"PK\1\2")
    while 0 <= at <= len(data) - 46:
        method, size = struct.unpack_from("<H", data, at + 10)[0], struct.unpack_from("<I", data, at + 20)[0]
        local = struct.unpack_from("<I", data, at + 42)[0]
        if data[local : local + 4] == b"PK\3\4" and local + 30 <= len(data):
            start = local + 30 + sum(struct.unpack_from("<HH", data, local + 26))
            content = data[start : start + size]
            if method == zipfile.ZIP_DEFLATED:
                content = _inflated(content)
            crc = struct.pack("<I", binascii.crc32(content))
            out[at + 16 : at + 20] = out[local + 14 : local + 18] = crc
        at = data.find(b"PK\1\2", at + 4)
    return bytes(out)


def _inflated(content: bytes) -> bytes:
    try:
        return zlib.decompressobj(-15).decompress(content, 1 << 22)
    except zlib.error:
        return b""
