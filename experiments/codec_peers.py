"""Other ways to send the difference of two models, as people do it: each takes leaves, gives bytes, and is verified.

Packages that are not installed are left out, with a note. None of them checks which model it starts from.
"""

import importlib
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from updcomp.wire import dtypes

Leaves = list[np.ndarray]  # flat bit patterns


class Peer(NamedTuple):
    """A codec of differences."""

    encode: Callable[[Leaves, Leaves], Any]  # old, new -> anything with bytes in it
    decode: Callable[[Any, Leaves], Leaves]  # that, old -> new
    most_bytes: float = float("inf")  # of a case that it takes in minutes


def size_of(made: Any) -> int:
    """All bytes in what a peer made."""
    if isinstance(made, bytes | bytearray | memoryview):
        return len(made)
    return sum(map(size_of, made)) if isinstance(made, list | tuple) else 0


def peers() -> tuple[dict[str, Peer], list[str]]:
    """Those that are installed, by name, and notes of the others."""
    found: dict[str, Peer] = {}
    notes = []
    for names, package, make in (
        ("zstd", "zstandard", _zstd),
        ("bsdiff4", "bsdiff4", _bsdiff),
        ("z4ai", "z4ai", _z4ai),
        ("ZipNN delta", "zipnn", _zipnn),
    ):
        try:
            found |= make(importlib.import_module(package))
        except ImportError:
            notes.append(f"{names}: {package} is not installed; pip install {package}")
    if shutil.which("zstd"):
        found["zstd -19 --patch-from"] = Peer(_patch, _unpatch, most_bytes=5e7)
    else:
        notes.append("zstd -19 --patch-from: the program zstd is not installed")
    return found, notes


def joined(leaves: Leaves) -> bytes:
    """All leaves as one file."""
    return b"".join(leaf.tobytes() for leaf in leaves)


def _split(data: bytes, like: Leaves) -> Leaves:
    """The inverse of `joined`."""
    found, at = [], 0
    for leaf in like:
        found.append(np.frombuffer(data, leaf.dtype, len(leaf), at))
        at += leaf.nbytes
    return found


def planes(leaf: np.ndarray) -> bytes:
    """The first bytes of all weights, then the second ones and so on."""
    return np.ascontiguousarray(leaf.view(np.uint8).reshape(-1, leaf.itemsize).T).tobytes()


def _unplaned(data: bytes, like: np.ndarray) -> np.ndarray:
    planes = np.frombuffer(data, np.uint8).reshape(like.itemsize, -1)
    return np.ascontiguousarray(planes.T).reshape(-1).view(like.dtype)


def _zstd(zstandard: Any) -> dict[str, Peer]:
    def pack(data: bytes, level: int) -> bytes:
        return bytes(zstandard.ZstdCompressor(level=level).compress(data))

    def unpack(data: bytes) -> bytes:
        return bytes(zstandard.ZstdDecompressor().decompress(data))

    def by_planes(level: int) -> Peer:
        return Peer(
            lambda old, new: [pack(planes(a ^ b), level) for a, b in zip(old, new, strict=True)],
            lambda made, old: [_unplaned(unpack(one), leaf) ^ leaf for one, leaf in zip(made, old, strict=True)],
        )

    def places(level: int, *, gaps: bool) -> Peer:
        def encode(old: Leaves, new: Leaves) -> list[tuple[bytes, bytes]]:
            made = []
            for a, b in zip(old, new, strict=True):
                where = np.flatnonzero(a != b)
                said = np.diff(where, prepend=0) if gaps else where
                made.append((pack(planes(said.astype("<u4")), level), pack(planes(b[where]), level)))
            return made

        def decode(made: list[tuple[bytes, bytes]], old: Leaves) -> Leaves:
            new = []
            for (first, second), leaf in zip(made, old, strict=True):
                said = _unplaned(unpack(first), np.zeros(0, "<u4")).astype(np.int64)
                changed = leaf.copy()
                changed[np.cumsum(said) if gaps else said] = _unplaned(unpack(second), leaf)
                new.append(changed)
            return new

        return Peer(encode, decode)

    return {
        "zstd -19 of the new file": Peer(
            lambda _, new: pack(joined(new), 19), lambda made, old: _split(unpack(made), old)
        ),
        "XOR, byte planes, zstd -1": by_planes(1),
        "XOR, byte planes, zstd -19": by_planes(19),
        "gaps + values, byte planes, zstd -1": places(1, gaps=True),
        "gaps + values, byte planes, zstd -19": places(19, gaps=True),
        "int32 positions + values, zstd -3": places(3, gaps=False),
    }


def _bsdiff(bsdiff4: Any) -> dict[str, Peer]:
    return {
        "bsdiff4": Peer(
            lambda old, new: bsdiff4.diff(joined(old), joined(new)),
            lambda made, old: _split(bsdiff4.patch(joined(old), made), old),
            most_bytes=1e7,
        )
    }


def _z4ai(z4ai: Any) -> dict[str, Peer]:
    return {
        "z4ai": Peer(
            lambda old, new: [
                z4ai.compress_delta(b.tobytes(), a.tobytes(), dtype=_z4ai_name(a))
                for a, b in zip(old, new, strict=True)
            ],
            lambda made, old: [
                np.frombuffer(z4ai.decompress_delta(one, leaf.tobytes()), leaf.dtype)
                for one, leaf in zip(made, old, strict=True)
            ],
        )
    }


def _z4ai_name(leaf: np.ndarray) -> str | None:
    return {2: "bfloat16", 4: "float32"}.get(leaf.itemsize)


def _zipnn(zipnn: Any) -> dict[str, Peer]:
    def codec(leaf: np.ndarray) -> Any:
        kind = {2: "bfloat16", 4: "float32"}.get(leaf.itemsize, "byte")
        return zipnn.ZipNN(input_format="byte", bytearray_dtype=kind, delta_compressed_type="byte")

    return {
        "ZipNN delta": Peer(
            lambda old, new: [
                bytes(codec(a).compress(bytearray(b.tobytes()), delta_second_data=bytearray(a.tobytes())))
                for a, b in zip(old, new, strict=True)
            ],
            lambda made, old: [
                np.frombuffer(
                    bytes(codec(leaf).decompress(bytearray(one), delta_second_data=bytearray(leaf.tobytes()))),
                    leaf.dtype,
                )
                for one, leaf in zip(made, old, strict=True)
            ],
        )
    }


def _run(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True)


def _patch(old: Leaves, new: Leaves) -> bytes:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "old").write_bytes(joined(old))
        (folder / "new").write_bytes(joined(new))
        _run("zstd", "-19", "--long=27", f"--patch-from={folder / 'old'}", str(folder / "new"), "-o", f"{folder}/made")
        return (folder / "made").read_bytes()


def _unpatch(made: bytes, old: Leaves) -> Leaves:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "old").write_bytes(joined(old))
        (folder / "made").write_bytes(made)
        _run("zstd", "-d", "--long=27", f"--patch-from={folder / 'old'}", f"{folder}/made", "-o", f"{folder}/new")
        return _split((folder / "new").read_bytes(), old)


def flat(model: dict[str, np.ndarray]) -> Leaves:
    """The leaves of a model as peers take them."""
    return [dtypes.flat_bits(dtypes.hold(leaf)) for _, leaf in sorted(model.items())]
