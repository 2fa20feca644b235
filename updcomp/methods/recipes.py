"""How each map of `updcomp.wire.maps` is trained: the length of its vector, and of the change that one value makes."""

import math

from updcomp import selection
from updcomp.methods.mapped import ONES, Recipe
from updcomp.wire import basis, map_products, rotations
from updcomp.wire.mapping import Sizes

_BASIS = 2.0 ** (2 * basis.FRACTION)  # length of the product of a column of A and one of B
_WAVE = 2.0 ** (2 * basis.FRACTION) / math.sqrt(2)  # root mean square of a wave


def _rank(z: Sizes, rank: float) -> int:
    return min(int(rank), z.fan_in, z.fan_out)


def _coefficients(z: Sizes, rank: float) -> int:
    largest = min(int(rank), map_products.largest_basis(z))
    return z.stack * min(largest, z.fan_in) * min(largest, z.fan_out)


HALF = Recipe("half", lambda z, rank: z.stack * z.fan_out * _rank(z, rank), lambda z: math.sqrt(z.fan_in), 20)
SCALED = Recipe(
    "scaled",
    lambda z, rank: z.stack * (int(rank) + z.fan_out),
    lambda z: math.sqrt(z.fan_in * (z.length / z.stack - z.fan_out)),
    20,
    left=ONES,
)
MIXED = Recipe(
    "mixed",
    lambda z, size: 2 * -(-int(size) // 2),
    lambda z: math.sqrt(z.length / 2 * z.size * z.rank),
    16,
)
GROUPED = Recipe(
    "grouped",
    lambda z, size: 2 * -(-int(size) // 2),
    lambda z: math.sqrt(z.fan_in * max(1.0, 2 * z.stack * z.fan_out * z.rank / z.length)),
    20,
)
WAVES = Recipe(
    "waves",
    lambda z, size: z.stack * min(int(size), z.fan_in * z.fan_out),
    lambda z: _WAVE * math.sqrt(z.fan_in * z.fan_out),
    14,
)
TIED = Recipe(
    "tied",
    lambda z, size: int(size),
    lambda z: _BASIS * math.sqrt(z.stack * min(z.rank, z.fan_in) * min(z.rank, z.fan_out)),
    16,
)
COEFFICIENTS = Recipe("coefficients", _coefficients, lambda z: _BASIS, 16, seeded=False)
PLACES = Recipe("places", lambda z, ratio: selection.budget(ratio, z.size), lambda z: 1.0, 28)
SPREAD = Recipe("spread", lambda z, size: int(size), lambda z: math.sqrt(rotations.block(z.size)), 28)
