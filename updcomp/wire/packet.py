"""What an update says, before it becomes bytes: one block of integers per sent leaf.

A packet is exact and small: everything in it is an integer, a step of sixteen bits, or the bits of a new leaf. Both
sides turn it into weights with the same NumPy code (`updcomp.wire.apply`), so what the server evaluates is what the
device runs. A leaf without a block stays as it is. A block's view says how its leaf is read as matrices of shape
(fan_in, fan_out), one or a stack of them; by default the last axis is fan_out and the others are flattened.
"""

import operator
from typing import Any, NamedTuple

import numpy as np

from updcomp.wire.errors import Error, LeafError, of_leaf
from updcomp.wire.views import View


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
    view: View | None = None  # the matrix as which the values are coded, its rows those of the whole stack


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
    """new_i = old_i + (left_i @ right_i.T) * step for each matrix i of the leaf."""

    left: np.ndarray  # int32 (stack * fan_in, rank), the rows of left_0, then those of left_1 ...
    right: np.ndarray  # int32 (stack * fan_out, rank)
    step: float
    view: View | None = None


class Coefficients(NamedTuple):
    """new_i = old_i + (A_i @ values_i @ B_i.T) * step, A and B from `basis.of` the old leaf: they cost no bytes."""

    values: np.ndarray  # int32 (stack * min(rank, fan_in), min(rank, fan_out)), values_0, then values_1 ...
    rank: int
    step: float
    view: View | None = None


Block = Raw | Exact | Half | Dense | Sparse | Seeded | Magnitude | Factors | Coefficients


class Packet(NamedTuple):
    """An update as blocks by leaf name."""

    blocks: dict[str, Block]  # leaf name -> block; leaves without one are kept
    seed: int = 0  # uint32; seeds the positions of `Seeded` blocks and the random start of `basis.of`


_DTYPES: dict[str, Any] = {"values": np.int32, "left": np.int32, "right": np.int32, "positions": np.int64}


def held(packet: Packet) -> Packet:
    """The packet with NumPy arrays of the dtypes above, made from arrays of any kind that hold the same integers.

    Args:
      packet: its fields are anything that `np.asarray` takes, such as JAX arrays; integers may have any width.

    Returns:
      The same packet; arrays that are right already are the same objects.

    Raises:
      LeafError: a field holds floats, or integers that its dtype does not; the message names the leaf and the field.

    >>> held(Packet({"w": Dense(np.array([3, -1]), 0.5)})).blocks["w"].values.dtype
    dtype('int32')
    """
    blocks = {}
    for name, block in packet.blocks.items():
        with of_leaf(name):
            blocks[name] = _held(block)
    return packet._replace(blocks=blocks)


def _held(block: Block) -> Block:
    if not isinstance(block, Block):
        raise LeafError(f"block: expected one of packet's kinds such as Dense, found {type(block).__name__}")
    fields: dict[str, Any] = {}
    for field, value in block._asdict().items():
        match field:
            case "step":
                fields[field] = float(value)
            case "rank":
                fields[field] = operator.index(value)
            case "view":
                if value is not None and not isinstance(value, View):
                    raise LeafError(f"view: expected a View as views.of_words returns it, found {value!r}")
            case "new" | "delta":
                fields[field] = np.asarray(value)
            case _:
                fields[field] = _integers(field, np.asarray(value))
    return block._replace(**fields)


def _integers(field: str, array: "np.ndarray[Any, Any]") -> "np.ndarray[Any, Any]":
    dtype = np.dtype(_DTYPES[field])
    if array.dtype == dtype:
        return array
    if array.dtype.kind not in "iu":
        raise LeafError(f"{field}: expected integers that fit {dtype}, found {array.dtype}")
    lowest, highest = int(array.min(initial=0)), int(array.max(initial=0))
    if lowest < np.iinfo(dtype).min or highest > np.iinfo(dtype).max:
        raise LeafError(f"{field}: expected integers that fit {dtype}, found {lowest} to {highest}")
    return array.astype(dtype)


def plain_bytes(packet: Packet) -> int:
    """What an update takes without any coding: four bytes for each number that travels.

    For sparse blocks that is int32 positions and float32 values, the form in which partial updates are usually counted.

    Args:
      packet: what an update says.

    Returns:
      Bytes.

    >>> plain_bytes(Packet({"w": Sparse(np.array([3, 8]), np.array([1, -1], np.int32), 0.5)}))
    16
    """
    fields = (field for block in held(packet).blocks.values() for field in block)
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
