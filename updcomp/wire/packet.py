"""What an update says, before it becomes bytes: one block of integers per sent leaf.

A packet is exact and small: everything in it is an integer, a step of sixteen bits, or the bits of a new leaf. Both
sides turn it into weights with the same NumPy code (`updcomp.wire.apply`), so what the server evaluates is what the
device runs. A leaf without a block stays as it is. Kernels are read as matrices of shape (fan_in, fan_out):
every axis but the last is flattened.
"""

from typing import NamedTuple

import numpy as np

from updcomp.wire.errors import Error


class Raw(NamedTuple):
    """The leaf's new bits, as they are."""

    new: np.ndarray  # shape and dtype of the leaf


class Exact(NamedTuple):
    """The leaf's new bits, coded as differences of bit patterns from the old ones: lossless for every dtype."""

    new: np.ndarray  # shape and dtype of the leaf


class Half(NamedTuple):
    """new = old + delta."""

    delta: np.ndarray  # float16, shape of the leaf


class Dense(NamedTuple):
    """new = old + values * step."""

    values: np.ndarray  # int32, shape of the leaf
    step: float  # as `round_step` returns it


class Sparse(NamedTuple):
    """new[positions] = old[positions] + values * step."""

    positions: np.ndarray  # int64 (k,), strictly ascending indices into the flattened leaf
    values: np.ndarray  # int32 (k,)
    step: float


class Seeded(NamedTuple):
    """As `Sparse`, at the k positions that `positions.seeded` draws from the packet's seed: they cost no bytes."""

    values: np.ndarray  # int32 (k,), in ascending order of position
    step: float


class Magnitude(NamedTuple):
    """As `Sparse`, at the k largest deployed magnitudes (`positions.largest`): they cost no bytes."""

    values: np.ndarray  # int32 (k,), in ascending order of position
    step: float


class Factors(NamedTuple):
    """new = old + (left @ right.T) * step, the leaf seen as a matrix."""

    left: np.ndarray  # int32 (fan_in, rank)
    right: np.ndarray  # int32 (fan_out, rank)
    step: float


class Coefficients(NamedTuple):
    """new = old + (A @ values @ B.T) * step, with A and B from `basis.of` the old leaf: they cost no bytes."""

    values: np.ndarray  # int32 (min(rank, fan_in), min(rank, fan_out))
    rank: int
    step: float


Block = Raw | Exact | Half | Dense | Sparse | Seeded | Magnitude | Factors | Coefficients


class Packet(NamedTuple):
    """An update as blocks by leaf name."""

    blocks: dict[str, Block]  # leaf name -> block; leaves without one are kept
    seed: int = 0  # uint32; seeds the positions of `Seeded` blocks and the random start of `basis.of`


def plain_bytes(update: Packet) -> int:
    """What an update takes without any coding: four bytes for each number that travels.

    For sparse blocks that is int32 positions and float32 values, the form in which partial updates are usually counted.

    Args:
      update: a packet.

    Returns:
      Bytes.

    >>> plain_bytes(Packet({"w": Sparse(np.array([3, 8]), np.array([1, -1], np.int32), 0.5)}))
    16
    """
    fields = (field for block in update.blocks.values() for field in block)
    return sum(4 * field.size for field in fields if isinstance(field, np.ndarray))


def round_step(step: float) -> float:
    """Rounds a quantisation step to the nearest one that the wire carries: a float32 with the low 16 bits zero.

    Args:
      step: positive and finite.

    Returns:
      The step with 8 significant bits, at least the smallest normal float32.

    Raises:
      Error: the step is not positive and finite.

    >>> round_step(0.1)
    0.10009765625
    """
    if not (step > 0 and np.isfinite(np.float32(step))):
        raise Error(f"step: expected a positive finite number, found {step}")
    bits = np.array(max(step, float(np.finfo(np.float32).tiny)), np.float32).view(np.uint32)
    rounded = min((int(bits) + 0x8000) >> 16 << 16, 0x7F7F0000)
    return float(np.array(rounded, np.uint32).view(np.float32))
