"""What each format version knows. An update says its version, and is read by that version's table for ever."""

from typing import NamedTuple

from updcomp.wire import errors
from updcomp.wire.kind import Block, Kind
from updcomp.wire.kinds import coefficients, columns, dense, exact, factors, half, magnitude, raw, seeded, sparse

VIEWS = 1  # flag: blocks say their views; else all are the default one
METADATA = 2  # flag: the update covers the metadata of the model's file


class Version(NamedTuple):
    """A format version."""

    number: int
    kinds: dict[int, Kind]  # by number
    flags: int  # those that it knows
    sizes_in_header: bool  # else a size is the first number of its block
    idle_lanes: bool  # whether a coded section may have more lanes than its longest chunk has tokens


def numbered(*kinds: Kind) -> dict[int, Kind]:
    """A table of kinds.

    Raises:
      ValueError: two of them have the same number.
    """
    table = {kind.number: kind for kind in kinds}
    if len(table) < len(kinds):
        raise ValueError(f"kinds: expected distinct numbers, found {[kind.number for kind in kinds]}")
    return table


_FIRST = (raw.KIND, exact.KIND, half.KIND, dense.KIND, sparse.KIND, seeded.KIND, magnitude.KIND, factors.KIND)
_KINDS_1 = numbered(*_FIRST, coefficients.KIND)
_KINDS_2 = numbered(*_KINDS_1.values(), columns.KIND)  # a new kind goes here
VERSIONS = {
    1: Version(1, _KINDS_1, flags=0, sizes_in_header=False, idle_lanes=True),
    2: Version(2, _KINDS_2, flags=VIEWS | METADATA, sizes_in_header=True, idle_lanes=False),
}
NEWEST = VERSIONS[max(VERSIONS)]  # the one that is written
_BY_BLOCK = {kind.block: kind for kind in NEWEST.kinds.values()}


def is_block(value: object) -> bool:
    """Whether this is a block of a kind that the newest version knows."""
    return type(value) in _BY_BLOCK


def kind_of(block: Block) -> Kind:
    """The kind of a block.

    Raises:
      LeafError: it is no block.
    """
    if not is_block(block):
        names = ", ".join(kind.__name__ for kind in _BY_BLOCK)
        raise errors.LeafError(f"block: expected one of {names}, found {type(block).__name__}")
    return _BY_BLOCK[type(block)]
