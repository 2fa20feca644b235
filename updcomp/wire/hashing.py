"""Random numbers that any language reproduces: the splitmix64 finaliser of a key and a counter."""

import numpy as np

from updcomp.wire import dtypes

_GOLDEN = 0x9E3779B97F4A7C15
_MASK = (1 << 64) - 1

POSITIONS = 0  # streams of one leaf that must not resemble each other
BASIS = 1


def _mix(z: dtypes.Array) -> dtypes.Array:
    """The finaliser of splitmix64, a bijection of uint64, in place."""
    z ^= z >> np.uint64(30)
    z *= np.uint64(0xBF58476D1CE4E5B9)
    z ^= z >> np.uint64(27)
    z *= np.uint64(0x94D049BB133111EB)
    z ^= z >> np.uint64(31)
    return z


def stream_key(seed: int, index: int, purpose: int) -> int:
    """The key of one leaf's stream: mix(mix(seed + G) + 2 index + purpose), G = 0x9E3779B97F4A7C15, modulo 2^64.

    Args:
      seed: uint32, the packet's.
      index: of the leaf in sorted name order.
      purpose: `POSITIONS` or `BASIS`.

    Returns:
      A uint64.
    """
    key = int(_mix(np.array([(seed + _GOLDEN) & _MASK], np.uint64))[0])
    return int(_mix(np.array([(key + 2 * index + purpose) & _MASK], np.uint64))[0])


def hashes(key: int, start: int, stop: int) -> dtypes.Array:
    """mix(key + (i + 1) G) for start <= i < stop; no two i of one key give the same.

    Returns:
      uint64 (stop - start,).
    """
    z = np.arange(start + 1, stop + 1, dtype=np.uint64)
    z *= np.uint64(_GOLDEN)
    z += np.uint64(key)
    return _mix(z)


def signs(key: int, start: int, count: int) -> dtypes.Array:
    """-1 where the top bit of `hashes` is set, else 1.

    Returns:
      float64 (count,).
    """
    return 1.0 - 2.0 * (hashes(key, start, start + count) >> np.uint64(63)).astype(np.float64)
