"""Any bytes give a model or `updcomp.Error`: mutated updates, `python -m tests.wire.fuzz --count=100000`."""

import argparse
import binascii
import collections
import itertools
import struct
import time
import tracemalloc
from collections.abc import Callable, Iterator

import numpy as np

from tests.wire import samples
from updcomp.wire import container, dtypes, errors

_FINGERPRINTS_END = 38
_ABSURD = (b"\xff\xff\xff\xff\x0f", b"\xff\xff\xff\xff\x7f", b"\x80\x80\x80\x80\x40", b"\xff" * 8, b"\0" * 8)


def with_checksum(body: bytes) -> bytes:
    """The body and its CRC, so that a mutation is not caught by it."""
    return body + struct.pack("<I", binascii.crc32(body))


def truncations(update: bytes) -> Iterator[bytes]:
    """Every proper prefix, and every proper prefix of the body with its own checksum."""
    for size in range(len(update)):
        yield update[:size]
    for size in range(len(update) - 4):
        yield with_checksum(update[:size])


def bit_flips(update: bytes) -> Iterator[bytes]:
    """Every single bit flipped; then the same in the body with the checksum fixed."""
    for data, finish in ((update, bytes), (update[:-4], with_checksum)):
        for bit in range(8 * len(data)):
            mutated = bytearray(data)
            mutated[bit // 8] ^= 1 << bit % 8
            yield finish(bytes(mutated))


def random_edits(updates: list[bytes], rng: np.random.Generator) -> Iterator[bytes]:
    """Without end: a few bytes behind the fingerprints replaced, removed, inserted or spliced, the checksum fixed."""
    while True:
        update = updates[rng.integers(len(updates))]
        body = bytearray(update[:-4])
        for _ in range(rng.integers(1, 4)):
            at = int(rng.integers(min(_FINGERPRINTS_END, len(body)), len(body) + 1))
            match rng.integers(6):
                case 0:
                    body[at : at + 1] = rng.bytes(1)
                case 1:
                    del body[at : at + int(rng.integers(1, 9))]
                case 2:
                    body[at:at] = rng.bytes(int(rng.integers(1, 9)))
                case 3:
                    body[at:at] = _ABSURD[rng.integers(len(_ABSURD))]
                case 4:
                    body[at : at + 4] = _ABSURD[rng.integers(len(_ABSURD))]
                case _:
                    other = updates[rng.integers(len(updates))]
                    body[at:] = other[int(rng.integers(_FINGERPRINTS_END, len(other) - 4)) : -4]
        yield with_checksum(bytes(body))


def outcome(mutated: bytes, base: dict[str, np.ndarray], apply: Callable = container.apply_update) -> str:
    """'model' or the error's class; any other exception passes through."""
    try:
        new = apply(mutated, base)
    except errors.Error as error:
        return type(error).__name__ if len(str(error).splitlines()) == 1 else f"message {error!s}"
    assert dtypes.specs(new) == container.new_specs(mutated, base)
    return "model"


def main() -> None:
    """Runs random edits and prints what came of them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    suites = [
        (
            base,
            random_edits([container.encode(packet, base) for packet in packets], np.random.default_rng(options.seed)),
        )
        for base, packets in samples.suites()
    ]
    outcomes: collections.Counter[str] = collections.Counter()
    slowest = 0.0
    tracemalloc.start()
    for _, (base, edits) in zip(range(options.count), itertools.cycle(suites), strict=False):
        start = time.perf_counter()
        outcomes[outcome(next(edits), base)] += 1
        slowest = max(slowest, time.perf_counter() - start)
    peak = tracemalloc.get_traced_memory()[1]
    print(f"{options.count} mutated updates: {dict(outcomes)}")
    print(f"peak memory {peak / 2**20:.1f} MiB, slowest {slowest * 1000:.0f} ms, no other exception")


if __name__ == "__main__":
    main()
