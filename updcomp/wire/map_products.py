"""Maps whose change is a product of two factors, or of a core between two bases."""

import math
from typing import Any

import numpy as np

from updcomp.wire import basis, dtypes, hashing, positions, rotations, views
from updcomp.wire.mapping import MOST_SUMMED, Map, Site, Sizes, Stream, Work


def _exact_quotient(dividend: int, divisor: int, most: int) -> int:
    """The quotient where it is whole and from 1 to `most`, else 0."""
    found, rest = divmod(dividend, max(divisor, 1))
    return found if not rest and 1 <= found <= most else 0


def _stacked(flat: Any, z: Sizes, rows: int, rank: int) -> Any:
    return flat.reshape(z.stack, rows, rank)


# factors: both of them travel.


def _factors_rank(z: Sizes) -> int:
    return _exact_quotient(z.length, z.rows, min(z.fan_in, z.fan_out))


def _factors_left(z: Sizes) -> int:
    return z.stack * z.fan_in * _factors_rank(z)


def _factors(v: Any, _: Any, z: Sizes) -> tuple[Any, ...]:
    rank, cut = _factors_rank(z), _factors_left(z)
    return _stacked(v[:cut], z, z.fan_in, rank), _stacked(v[cut:], z, z.fan_out, rank)


# half: the left factor is random signs (Konecny et al. 2016, section 2).


def _half_rank(z: Sizes) -> int:
    return _exact_quotient(z.length, z.stack * z.fan_out, min(z.fan_in, z.fan_out))


def _half_constants(site: Site) -> tuple[dtypes.Array, ...]:
    z = site.sizes
    return (Stream(site).signs(z.stack, z.fan_in, _half_rank(z)),)


def _half(v: Any, constants: Any, z: Sizes) -> tuple[Any, ...]:
    return constants[0], _stacked(v, z, z.fan_out, _half_rank(z))


# scaled: random signs whose columns and rows are scaled (VeRA).


def _scaled_rank(z: Sizes) -> int:
    return _exact_quotient(z.length - z.stack * z.fan_out, z.stack, basis.MAX_RANK)


def _both_signs(site: Site) -> tuple[dtypes.Array, ...]:
    z, stream = site.sizes, Stream(site)
    rank = _scaled_rank(z)
    return stream.signs(z.stack, z.fan_in, rank), stream.signs(z.stack, z.fan_out, rank)


def _scaled(v: Any, constants: Any, z: Sizes) -> tuple[Any, ...]:
    cut = z.stack * _scaled_rank(z)
    left, right = constants
    return left * v[:cut].reshape(z.stack, 1, -1), right * v[cut:].reshape(z.stack, z.fan_out, 1)


# mixed: each factor is a sum of random ones (NOLA).


def _even_rank(z: Sizes) -> int:
    return z.rank if z.length and not z.length % 2 and z.length <= MOST_SUMMED else 0


def _first_half(z: Sizes) -> int:
    return z.length // 2


def _mixed_constants(site: Site) -> tuple[dtypes.Array, ...]:
    z, stream = site.sizes, Stream(site)
    left, right = (z.stack * rows * z.rank for rows in (z.fan_in, z.fan_out))
    return stream.signs(z.length // 2, left), stream.signs(z.length // 2, right)


def _mixed(v: Any, constants: Any, z: Sizes) -> tuple[Any, ...]:
    half = z.length // 2
    left, right = constants
    return _stacked(v[:half] @ left, z, z.fan_in, z.rank), _stacked(v[half:] @ right, z, z.fan_out, z.rank)


# grouped: each entry of a factor is one of the vector's (Uni-LoRA).


def _grouped_constants(site: Site) -> tuple[dtypes.Array, ...]:
    z, stream = site.sizes, Stream(site)
    left, right = (z.stack * rows * z.rank for rows in (z.fan_in, z.fan_out))
    return stream.groups(left, z.length // 2), stream.groups(right, z.length // 2)


def _grouped(v: Any, constants: Any, z: Sizes) -> tuple[Any, ...]:
    half = z.length // 2
    left, right = constants
    return _stacked(v[:half][left], z, z.fan_in, z.rank), _stacked(v[half:][right], z, z.fan_out, z.rank)


# waves: plane waves of random frequencies (FourierFT).


def _waves_rank(z: Sizes) -> int:
    return 2 * _exact_quotient(z.length, z.stack, z.fan_in * z.fan_out)


def _waves_constants(site: Site) -> tuple[dtypes.Array, ...]:
    z = site.sizes
    places = positions.seeded(site.seed, site.leaf_index, z.fan_in * z.fan_out, z.length // z.stack)
    sides = []
    for rows, frequencies in zip((z.fan_in, z.fan_out), np.divmod(places, z.fan_out), strict=True):
        turns, all_turns = np.arange(rows)[:, None] * frequencies % rows, np.arange(rows)
        tables = rotations.cosines(all_turns, rows), rotations.sines(all_turns, rows)
        sides.append(np.stack([table[turns] for table in tables], axis=1))
    left = sides[0].reshape(1, z.fan_in, -1)
    sides[1][:, 1] *= -1  # cos(x + y) = cos x cos y - sin x sin y
    return np.ascontiguousarray(np.broadcast_to(left, (z.stack, *left.shape[1:]))), sides[1][None]


def _waves(v: Any, constants: Any, z: Sizes) -> tuple[Any, ...]:
    left, right = constants
    return left, _stacked(right * v.reshape(z.stack, 1, 1, -1), z, z.fan_out, _waves_rank(z))


# coefficients, tied: within the basis of the deployed weights (LoRA-XS, TinyLoRA).


def _core(z: Sizes, rank: int) -> tuple[int, int, int]:
    return z.stack, min(rank, z.fan_in), min(rank, z.fan_out)


def largest_basis(z: Sizes) -> int:
    """The largest rank of a basis of such matrices."""
    return basis.max_rank((z.stack, z.fan_in, z.fan_out), views.View((1,), (2,)))


def _coefficients_rank(z: Sizes) -> int:
    low, each = min(z.fan_in, z.fan_out), z.length // max(z.stack, 1)
    rank = math.isqrt(each) if each <= low * low else each // max(low, 1)
    return rank if 1 <= rank <= largest_basis(z) and math.prod(_core(z, rank)) == z.length else 0


def _bases(site: Site, rank: int) -> tuple[dtypes.Array, dtypes.Array]:
    return basis.of(site.old, rank, seed=site.seed, index=site.leaf_index, view=site.view)


def _coefficients_constants(site: Site) -> tuple[dtypes.Array, ...]:
    return _bases(site, _coefficients_rank(site.sizes))


def _coefficients(v: Any, constants: Any, z: Sizes) -> tuple[Any, ...]:
    left, right = constants
    return left, v.reshape(_core(z, _coefficients_rank(z))), right


def _tied_rank(z: Sizes) -> int:
    return z.rank if z.rank <= largest_basis(z) and 1 <= z.length <= MOST_SUMMED else 0


def _tied_constants(site: Site) -> tuple[dtypes.Array, ...]:
    z = site.sizes
    signs = Stream(site, hashing.POSITIONS).signs(z.length, math.prod(_core(z, z.rank)))
    return *_bases(site, z.rank), signs


def _tied(v: Any, constants: Any, z: Sizes) -> tuple[Any, ...]:
    left, right, signs = constants
    return left, (v @ signs).reshape(_core(z, z.rank)), right


def _basis_work(z: Sizes, rank: int, *, drawn: int = 0) -> Work:
    stack, a, b = _core(z, rank)
    return Work(drawn, drawn + stack * z.fan_in * a * b, b, rank)


FACTORS = Map(
    0,
    "factors",
    inner_rank=_factors_rank,
    left_length=_factors_left,
    work=lambda z: Work(0, 0, _factors_rank(z)),
    expand=_factors,
)

HALF = Map(
    1,
    "half",
    inner_rank=_half_rank,
    work=lambda z: Work(z.stack * z.fan_in * _half_rank(z), 0, _half_rank(z)),
    constants=_half_constants,
    expand=_half,
)

SCALED = Map(
    2,
    "scaled",
    inner_rank=_scaled_rank,
    left_length=lambda z: z.stack * _scaled_rank(z),
    work=lambda z: Work(z.rows * _scaled_rank(z), 0, _scaled_rank(z)),
    constants=_both_signs,
    expand=_scaled,
)

MIXED = Map(
    3,
    "mixed",
    is_ranked=True,
    inner_rank=_even_rank,
    left_length=_first_half,
    work=lambda z: Work(z.length // 2 * z.rows * z.rank, z.length // 2 * z.rows * z.rank, z.rank),
    constants=_mixed_constants,
    expand=_mixed,
)

GROUPED = Map(
    4,
    "grouped",
    is_ranked=True,
    inner_rank=_even_rank,
    left_length=_first_half,
    work=lambda z: Work(4 * z.rows * z.rank, 0, z.rank),  # they are sorted
    constants=_grouped_constants,
    expand=_grouped,
)

WAVES = Map(
    5,
    "waves",
    inner_rank=_waves_rank,
    work=lambda z: Work(0, 0, _waves_rank(z), passing=z.size + z.rows * _waves_rank(z)),
    constants=_waves_constants,
    expand=_waves,
)

TIED = Map(
    6,
    "tied",
    is_ranked=True,
    inner_rank=_tied_rank,
    work=lambda z: _basis_work(z, z.rank, drawn=z.length * math.prod(_core(z, z.rank))),
    constants=_tied_constants,
    expand=_tied,
)

COEFFICIENTS = Map(
    7,
    "coefficients",
    inner_rank=_coefficients_rank,
    work=lambda z: _basis_work(z, _coefficients_rank(z)),
    constants=_coefficients_constants,
    expand=_coefficients,
)
