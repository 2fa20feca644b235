"""Which model this is: 16 bytes that change with any name, dtype, shape or bit of it."""

import hashlib
import struct

from updcomp.wire import dtypes

SIZE = 16


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
    leaf = dtypes.hold(leaf)
    digest = hashlib.sha256()
    for text in (name.encode(errors="surrogatepass"), dtypes.name(leaf.dtype).encode()):
        digest.update(struct.pack("<I", len(text)) + text)
    digest.update(struct.pack(f"<I{leaf.ndim}Q", leaf.ndim, *leaf.shape))
    digest.update(dtypes.flat_bits(leaf).data)
    return digest.digest()


def of_digests(digests: dict[str, bytes]) -> bytes:
    """The first 16 bytes of SHA-256 over the leaves' digests in sorted order of their names."""
    return hashlib.sha256(b"".join(digests[name] for name in sorted(digests))).digest()[:SIZE]


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
    return of_digests({name: leaf_digest(name, leaf) for name, leaf in model.items()})
