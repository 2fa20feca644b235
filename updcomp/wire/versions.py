"""What each format version knows. An update says its version, and is read by that version's table for ever."""

from typing import NamedTuple

from updcomp.wire import contexts, errors
from updcomp.wire.kind import Block, Kind
from updcomp.wire.kinds import (
    changes,
    coefficients,
    columns,
    dense,
    differences,
    exact,
    factors,
    half,
    magnitude,
    mapped,
    raw,
    seeded,
    sparse,
)

VIEWS = 1  # flag: blocks say their views; else all are the default one
METADATA = 2  # flag: the update covers the metadata of the model's file
SEED = 4  # flag: the header says the seed; else it is 0
RAW = 8  # flag: there is a raw section
EXTRA = 16  # flag: there are extra bits
STRUCTURE = 32  # flag: leaves come or go
COMPACT = 64  # flag: fingerprints of 8 bytes each, and no checksum


class Version(NamedTuple):
    """A format version."""

    number: int
    kinds: dict[int, Kind]  # by number
    flags: int  # those that it knows
    sizes_in_header: bool  # else a size is the first number of its block
    is_short: bool  # whether flags say which fields are left out, and a lane that is alone begins with 0
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


_LOSSY = (dense, sparse, seeded, magnitude, factors, coefficients)
_KINDS_1 = numbered(raw.KIND, differences.KIND, half.KIND, *(kind.of(contexts.CODER) for kind in _LOSSY))
_KINDS_2 = numbered(*_KINDS_1.values(), columns.of(contexts.CODER))
_FLAGS_3 = VIEWS | METADATA | SEED | RAW | EXTRA
_FLAGS_4 = _FLAGS_3 | STRUCTURE | COMPACT
_KINDS_3 = _KINDS_2 | numbered(exact.KIND, changes.KIND)
_KINDS_4 = _KINDS_3 | numbered(*(kind.KIND for kind in (*_LOSSY, columns, mapped)))  # a new kind goes here
VERSIONS = {
    1: Version(1, _KINDS_1, flags=0, sizes_in_header=False, is_short=False, idle_lanes=True),
    2: Version(2, _KINDS_2, flags=VIEWS | METADATA, sizes_in_header=True, is_short=False, idle_lanes=False),
    3: Version(3, _KINDS_3, flags=_FLAGS_3, sizes_in_header=True, is_short=True, idle_lanes=False),
    4: Version(4, _KINDS_4, flags=_FLAGS_4, sizes_in_header=True, is_short=True, idle_lanes=False),
}
NEWEST = VERSIONS[max(VERSIONS)]  # the one that is written
# Of two kinds with the same block, the first one chooses.
_BY_BLOCK: dict[type, Kind] = {}
for _kind in NEWEST.kinds.values():
    _BY_BLOCK.setdefault(_kind.block, _kind)


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
