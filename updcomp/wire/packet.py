"""What an update says, before it becomes bytes: one block of integers per sent leaf.

A packet is exact: everything in it is an integer, a step of sixteen bits, or the bits of a new leaf. Both
sides turn it into weights with the same NumPy code (`updcomp.wire.apply`), so what the server evaluates is what the
device runs. A leaf without a block stays as it is. A block's view says how its leaf is read as matrices of shape
(fan_in, fan_out), one or a stack of them; by default the last axis is fan_out and the others are flattened.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

import numpy as np

from updcomp.wire import versions
from updcomp.wire.errors import of_leaf
from updcomp.wire.kind import Block
from updcomp.wire.structure import Structure


class Packet(NamedTuple):
    """An update as blocks by leaf name."""

    blocks: Mapping[str, Block]  # leaf name -> block of one of `updcomp.wire.kinds`; leaves without one are kept
    seed: int = 0  # uint32; seeds the positions of `Seeded` blocks and the random start of `basis.of`
    structure: Structure | None = None  # leaves that come and go; blocks are relative to `structure.start` then
    compact: bool = False  # whether it is encoded with short fingerprints, also if `encode` is not told so


class LazyBlocks(Mapping[str, Block]):
    """Blocks that are made whenever they are asked for, and not kept: of models that are larger than the host's memory.

    >>> LazyBlocks({"w": lambda: (1, 2)})["w"]
    (1, 2)
    """

    def __init__(self, makers: Mapping[str, Callable[[], Block]]) -> None:
        """Makes nothing yet.

        Args:
          makers: leaf name -> function that makes its block, the same at every call.
        """
        self._makers = makers

    def __getitem__(self, name: str) -> Block:
        return self._makers[name]()

    def __iter__(self) -> Iterator[str]:
        return iter(self._makers)

    def __contains__(self, name: object) -> bool:  # a Mapping's own would get the value
        return name in self._makers

    def __len__(self) -> int:
        return len(self._makers)


def held(packet: Packet) -> Packet:
    """The packet with NumPy arrays of the blocks' dtypes, made from arrays of any kind that hold the same integers.

    Args:
      packet: its fields are anything that `np.asarray` takes, such as JAX arrays; integers may have any width.

    Returns:
      The same packet; arrays that are right already are the same objects.

    Raises:
      LeafError: no block, or a field holds floats or integers that its dtype does not; the message names the leaf.

    >>> from updcomp.wire.kinds.dense import Dense
    >>> held(Packet({"w": Dense(np.array([3, -1]), 0.5)})).blocks["w"].values.dtype
    dtype('int32')
    """
    blocks = {}
    for name, block in packet.blocks.items():
        with of_leaf(name):
            blocks[name] = versions.kind_of(block).hold(block)
    return packet._replace(blocks=blocks)


def plain_bytes(packet: Packet) -> int:
    """What an update takes without any coding: four bytes for each number that travels.

    For sparse blocks that is int32 positions and float32 values, the form in which partial updates are usually counted.

    Args:
      packet: what an update says.

    Returns:
      Bytes.

    >>> from updcomp.wire.kinds.sparse import Sparse
    >>> plain_bytes(Packet({"w": Sparse(np.array([3, 8]), np.array([1, -1], np.int32), 0.5)}))
    16
    """
    held_blocks = (versions.kind_of(block).hold(block) for block in packet.blocks.values())
    return sum(4 * field.size for block in held_blocks for field in block if isinstance(field, np.ndarray))
