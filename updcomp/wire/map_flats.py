"""Maps whose change is a flat array: values at places, levels, and rotations of both."""

from typing import Any

import numpy as np

from updcomp.wire import dtypes, positions, rotations
from updcomp.wire.mapping import Map, Site, Sizes, Stream, Work

OFFSET_UNITS = 256  # a level in units of its offset


def _table(site: Site, size: int) -> tuple[dtypes.Array, ...]:
    """For each of `size` things, which value it has, and whether it has one."""
    places = positions.seeded(site.seed, site.leaf_index, size, site.sizes.length)
    table, has = np.zeros(size, np.int64), np.zeros(size)
    table[places], has[places] = np.arange(len(places)), 1.0
    return table, has


def _places(v: Any, constants: Any, _: Sizes) -> tuple[Any, ...]:
    table, has = constants
    return (v[table] * has,)


def _levels(v: Any, _: Any, __: Sizes) -> tuple[Any, ...]:
    return (OFFSET_UNITS * v[1:] + v[:1],)


def _rotation_constants(site: Site) -> tuple[dtypes.Array, ...]:
    padded = rotations.padded(site.sizes.size)
    return Stream(site).signs(padded), *rotations.hadamard(site.sizes.size)


def _rotated(v: Any, constants: Any, z: Sizes) -> tuple[Any, ...]:
    return (rotations.back(OFFSET_UNITS * v[1:] + v[:1], constants, z.size),)


def _spread_constants(site: Site) -> tuple[dtypes.Array, ...]:
    return *_table(site, rotations.padded(site.sizes.size)), *_rotation_constants(site)


def _spread(v: Any, constants: Any, z: Sizes) -> tuple[Any, ...]:
    table, has, *rotation = constants
    return (rotations.back(v[table] * has, rotation, z.size),)


def _rotation_work(z: Sizes, *, draws: int) -> Work:
    padded = rotations.padded(z.size)
    return Work(draws * padded, rotations.PRODUCTS * padded, 0)


PLACES = Map(
    8,
    "places",
    inner_rank=lambda z: int(1 <= z.length <= z.size),
    work=lambda z: Work(z.size, 0, 0),
    constants=lambda site: _table(site, site.sizes.size),
    expand=_places,
)

LEVELS = Map(
    9,
    "levels",
    has_offset=True,
    inner_rank=lambda z: int(z.length == 1 + z.size),
    work=lambda z: Work(0, 0, 0),
    expand=_levels,
)

ROTATED = Map(
    10,
    "rotated",
    has_offset=True,
    inner_rank=lambda z: int(z.length == 1 + rotations.padded(z.size)),
    work=lambda z: _rotation_work(z, draws=1),
    constants=_rotation_constants,
    expand=_rotated,
)

SPREAD = Map(
    11,
    "spread",
    inner_rank=lambda z: int(1 <= z.length <= rotations.padded(z.size)),
    work=lambda z: _rotation_work(z, draws=2),
    constants=_spread_constants,
    expand=_spread,
)
