"""Kernels that change by a map of a short trained vector: the form that random bases, groups, waves and ties share."""

import dataclasses
import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from updcomp import arrays, quantize
from updcomp.methods.forms import Parametrised, Site
from updcomp.partition import Leaf
from updcomp.wire import basis, dtypes, increments, mapping, views
from updcomp.wire.errors import Error, LeafError
from updcomp.wire.kinds import mapped as wire
from updcomp.wire.mapping import Sizes
from updcomp.wire.maps import MAPS
from updcomp.wire.views import View

ONES, NORMAL = "ones", "normal"  # how the first part of a vector starts, that of the left factor


class Recipe(NamedTuple):
    """How a map is trained."""

    map: str  # one of `maps.MAPS`
    length: Callable[[Sizes, float], int]  # (sizes, the method's amount) -> length of the vector
    reach: Callable[[Sizes], float]  # length of the change that one unit of one value makes; training divides by it
    exact_bits: int  # of values that are not rounded in training: the device multiplies integers below 2^53
    left: str = NORMAL  # start of the left factor's part, where there is one
    seeded: bool = True


class _Fixed(NamedTuple):
    grid: quantize.Grid | None  # None: not rounded
    constants: tuple[jax.Array, ...]  # of the map
    unit: np.float32  # one over the recipe's reach


Parts = tuple[jax.Array, ...]  # of the vector: that of the left factor, if it depends on it, and the rest


@dataclasses.dataclass(frozen=True)
class MappedVector:
    """The form: what trains is the vector, in one part, or in two where both factors of a product depend on it."""

    recipe: Recipe
    amount: float
    bits: int | None  # of each value; None: not rounded, and four plain bytes each
    rank: int = 1  # of ranked maps
    share: int = 1  # so many kernels in a row, in the order of their names, have one vector; 0: all of them
    lossless = False

    @property
    def seeded(self) -> bool:
        """Whether its map has something random."""
        return self.recipe.seeded

    @property
    def rebuild(self) -> "_Rebuild":
        """How a kernel is made of the vector."""
        return _Rebuild(self.recipe.map, self.rank)

    def parametrise(self, site: Site) -> Parametrised:
        """A vector whose map is zero, and what the device derives for it."""
        sizes, held = self._sizes(site), dtypes.hold(arrays.to_host(site.held))
        chosen = MAPS[self.recipe.map]
        if not chosen.inner_rank(sizes):
            found = f"found {sizes.length} for shape {site.old.shape}"
            raise LeafError(f"values: expected fewer, {found}; give a smaller size, or leave the kernel out by a rule")
        there = mapping.Site(held, site.leaf.view, site.seed, site.number, sizes)
        unit = np.float32(increments.round_step(1 / self.recipe.reach(sizes)))
        fixed = _Fixed(quantize.grid(self.bits) if self.bits else None, _to_jax(chosen.constants(there)), unit)
        tie = None if self.share == 1 else (self, self.share and site.place // self.share)
        return Parametrised(self._start(site, chosen.left_length(sizes), sizes.length), fixed, tie=tie)

    def block(self, trained: Parts, parametrised: Parametrised, site: Site) -> wire.Mapped:
        """The integers of the vector."""
        fixed, sizes = parametrised.fixed, self._sizes(site)
        if self.bits is None:
            values, step, width = *_exact(trained, float(fixed.unit), self.recipe.exact_bits), wire.WIDEST
        else:
            found, wire_step = _integers(trained, fixed)
            values, step, width = arrays.to_host(found).astype(np.int32), float(wire_step), 0
        return wire.Mapped(self.recipe.map, values, step, sizes.rank, width, site.leaf.view)

    def _sizes(self, site: Site) -> Sizes:
        sizes = _sizes(site.old.shape, site.leaf.view, 0, self.recipe.map, self.rank)
        return sizes._replace(length=self.recipe.length(sizes, self.amount))

    def _start(self, site: Site, left: int, count: int) -> Parts:
        """The left part as the recipe says, and zeros: the product of both is zero."""
        rest = jnp.asarray(np.zeros(count - left, np.float32))
        if not left:
            return (rest,)
        if self.recipe.left == ONES:
            return jnp.asarray(np.ones(left, np.float32)), rest
        random = np.random.default_rng(np.asarray(jax.random.key_data(site.key)).tolist())  # compiles nothing
        first = random.normal(size=left)
        return jnp.asarray((first / np.sqrt(np.mean(first**2))).astype(np.float32)), rest


@dataclasses.dataclass(frozen=True)
class _Rebuild:
    """W + the map of the rounded vector; equal by value, so that nothing compiles twice."""

    map: str
    rank: int

    def __call__(self, trained: Parts, fixed: _Fixed, old: jax.Array, leaf: Leaf) -> jax.Array:
        """The new kernel."""
        values = jnp.concatenate(_rounded(trained, fixed))
        sizes = _sizes(old.shape, leaf.view, len(values), self.map, self.rank)
        change = MAPS[self.map].expand(values, fixed.constants, sizes)
        if len(change) == 1:
            return old + change[0].reshape(old.shape) * fixed.unit
        left, right = change[0], change[-1]
        if len(change) == 3:
            left = left @ change[1]
        return old + views.join(left @ right.mT * fixed.unit, old.shape, leaf.view)


def check_rank(rank: int) -> None:
    """Checks a rank that travels as an exponent.

    Raises:
      Error: it is no power of two, or out of range.
    """
    if not isinstance(rank, int) or not 1 <= rank <= basis.MAX_RANK or rank & (rank - 1):
        raise Error(f"rank: expected a power of two from 1 to {basis.MAX_RANK}, found {rank!r}")


def check_size(size: int) -> None:
    """Checks the length of a vector.

    Raises:
      Error: it is no integer, or below 1.
    """
    if not isinstance(size, int) or size < 1:
        raise Error(f"size: expected at least 1, found {size!r}")


def _sizes(shape: tuple[int, ...], view: View, count: int, name: str, rank: int) -> Sizes:
    """What the map goes by in this kernel, of the rank asked for, or the largest power of two that it can have."""
    sizes = wire.sizes_of(shape, view, count)
    if not MAPS[name].is_ranked:
        return sizes
    largest = max(1, basis.max_rank(shape, view))
    return sizes._replace(rank=min(rank, 1 << (largest.bit_length() - 1)))


def _to_jax(constants: tuple[dtypes.Array, ...]) -> tuple[jax.Array, ...]:
    return tuple(jnp.asarray(part.astype(np.float32 if part.dtype.kind == "f" else np.int32)) for part in constants)


def _steps(trained: Parts, fixed: _Fixed) -> tuple[list[jax.Array], jax.Array, jax.Array]:
    """The step of each part, their product with the unit, and that as it travels."""
    steps = [quantize.dynamic_step(part, fixed.grid) for part in trained]  # type: ignore[arg-type]
    exact = jnp.prod(jnp.stack(steps)) * fixed.unit
    return steps, exact, jax.lax.reduce_precision(exact, exponent_bits=8, mantissa_bits=7)


def _rounded(trained: Parts, fixed: _Fixed) -> list[jax.Array]:
    """The parts as the wire carries them; the first one takes up what rounding the step of all changes."""
    if fixed.grid is None:
        return list(trained)
    steps, exact, said = _steps(trained, fixed)
    found = [quantize.straight_through(part, step, fixed.grid) for part, step in zip(trained, steps, strict=True)]
    return [found[0] * (said / exact), *found[1:]]


@jax.jit
def _integers(trained: Parts, fixed: _Fixed) -> tuple[jax.Array, jax.Array]:
    steps, _, said = _steps(trained, fixed)
    pairs = zip(trained, steps, strict=True)
    return jnp.concatenate([quantize.levels(part, step, fixed.grid) for part, step in pairs]), said  # type: ignore[arg-type]


def _exact(trained: Parts, unit: float, bits: int) -> tuple[np.ndarray, float]:
    """Integers of at most so many bits, the same whatever the unit, and the step of what they make."""
    # The parts' steps are powers of two and leave the unit as it is, so that tied kernels have one and the same vector.
    values, steps = zip(*(quantize.to_exact_integers(part, bits) for part in trained), strict=True)
    return np.concatenate(values), math.prod(steps) * unit
