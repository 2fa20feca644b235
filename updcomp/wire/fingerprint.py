"""Which model this is: 16 bytes that change with any name, dtype, shape or bit of it."""

import contextlib
import hashlib
import struct
import threading
from typing import Any

from updcomp.wire import dtypes

SIZE = 16
SHORT_SIZE = 8  # of a compact update
_LARGE = 1 << 20  # bytes for which a thread pays


def leaf_digest(name: str, leaf: dtypes.Array) -> bytes:
    """SHA-256 of one leaf.

    digest = SHA-256(len(name) name  len(dtype) dtype  ndim shape...  bytes): lengths and ndim are uint32, axes uint64,
    all little-endian, texts UTF-8, so that no two leaves give the same input.

    Args:
      name: the leaf's.
      leaf: any array that can be a leaf.

    Returns:
      32 bytes.
    """
    digests = Digests()
    digests.add(name, leaf)
    return digests.finish()[name]


class Digests:
    """The digests of leaves that come one after another, each large one hashed while the next is made and hashed."""

    def __init__(self) -> None:
        """Without leaves."""
        self._hashes: dict[str, Any] = {}
        self._thread: threading.Thread | None = None

    def add(self, name: str, leaf: dtypes.Array) -> None:
        """Adds a leaf, which must not change before the next is added; no more than two are held at a time."""
        leaf = dtypes.hold(leaf)
        digest, bits = _begun(name, leaf), dtypes.flat_bits(leaf).data
        self._hashes[name] = digest
        earlier, self._thread = self._thread, None
        # A process that may have no more threads does without.
        with contextlib.suppress(RuntimeError):
            if leaf.nbytes >= _LARGE:
                thread = threading.Thread(target=digest.update, args=(bits,))
                thread.start()
                self._thread = thread
        if self._thread is None:
            digest.update(bits)
        if earlier is not None:
            earlier.join()

    def finish(self) -> dict[str, bytes]:
        """`leaf_digest` of every leaf by name."""
        self.wait()
        return {name: digest.digest() for name, digest in self._hashes.items()}

    def wait(self) -> None:
        """Until the last leaf is hashed; it is no longer held then."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None


def _begun(name: str, leaf: dtypes.Array) -> Any:
    """The hash of all but the leaf's bytes."""
    digest = hashlib.sha256()
    for text in (name.encode(errors="surrogatepass"), dtypes.name(leaf.dtype).encode()):
        digest.update(struct.pack("<I", len(text)) + text)
    digest.update(struct.pack(f"<I{leaf.ndim}Q", leaf.ndim, *leaf.shape))
    return digest


def of_leaves(model: dtypes.Model, *, read_ahead: bool = False) -> dict[str, bytes]:
    """`leaf_digest` of every leaf by name.

    Args:
      model: leaf name -> array.
      read_ahead: whether a lazy model's next leaf is read while one is hashed: faster, with two of them in memory.
    """
    digests = Digests()
    for name in model:
        digests.add(name, model[name])
        if not read_ahead:
            digests.wait()
    return digests.finish()


def of_digests(digests: dict[str, bytes]) -> bytes:
    """The first 16 bytes of SHA-256 over the leaves' digests in sorted order of their names."""
    return hashlib.sha256(b"".join(digests[name] for name in sorted(digests))).digest()[:SIZE]


def agree(one: bytes, other: bytes) -> bool:
    """Whether two fingerprints are of the same model, as far as the shorter of them says.

    >>> agree(b"12345678", b"1234567890123456")
    True
    """
    size = min(len(one), len(other))
    return one[:size] == other[:size]


def of(model: dtypes.Model) -> bytes:
    """The model's fingerprint: the first 16 bytes of SHA-256 over `leaf_digest` of every leaf in sorted name order.

    A leaf that an update keeps need not be read again for the new model's fingerprint: its digest is the same.

    Args:
      model: leaf name -> array.

    Returns:
      16 bytes.

    >>> import numpy as np
    >>> of({"w": np.float32([1])}) == of({"w": np.float32([1]).view("<u4")})
    False
    """
    return of_digests(of_leaves(model, read_ahead=True))
