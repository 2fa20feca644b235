"""Sketched updates of federated learning: trained in full, then made small. Nothing is trained under the loss of that.

Konecny et al.: Federated Learning: Strategies for Improving Communication Efficiency (arXiv 1610.05492), section 3.
"""

import dataclasses
import math
from typing import Any

import jax
import numpy as np

from updcomp import arrays, factorize, quantize, selection
from updcomp.methods import base
from updcomp.methods.forms import Parametrised, Site
from updcomp.training.plans import as_trained
from updcomp.wire import dtypes, increments, map_flats, mapping, rotations, views
from updcomp.wire.errors import Error
from updcomp.wire.kind import Block
from updcomp.wire.kinds import mapped as wire
from updcomp.wire.kinds.seeded import Seeded
from updcomp.wire.positions import seeded

_EXACT_BITS = 31  # of values that take 32
_MOST_BITS = 8
_LEAST = 1e-15  # of a range that is not zero


def subsample(
    *, ratio: float, bits: int | None = 4, unbiased: bool = True, aux: int | None = 16, rate: float = 1.0
) -> base.Trained:
    """Sends a random part of the change that full training made.

    Args:
      ratio: share of each kernel's weights that is sent, above 0 and at most 1.
      bits: of each value, rounded after training; None: float32 as published.
      unbiased: whether values are divided by the ratio, so that the mean over seeds is the full change, as published.
      aux: bits of the aux leaves' deltas; None leaves them as deployed.
      rate: multiplies the task's learning rate.

    Returns:
      A method.

    Raises:
      Error: an option is out of range.
    """
    selection.budget(ratio, 1)
    return base.trained("subsample", Subsample(ratio, bits, unbiased), bits=bits, aux=aux, rate=rate)


def stochastic_quantize(
    *, bits: int, rotated: bool = False, coded: bool = True, aux: int | None = 16, rate: float = 1.0
) -> base.Trained:
    """Sends the change that full training made, each value rounded at random to one of 2^bits levels.

    Levels divide the range from the smallest to the largest value; the mean of the rounded value is the value.

    Args:
      bits: of each value, from 1 to 8.
      rotated: whether a structured random rotation goes before, signs and Walsh-Hadamard matrices in blocks of 2^12.
      coded: whether levels are entropy-coded; else each takes its bits, as published.
      aux: bits of the aux leaves' deltas; None leaves them as deployed.
      rate: multiplies the task's learning rate.

    Returns:
      A method.

    Raises:
      Error: an option is out of range.
    """
    if not isinstance(bits, int) or not 1 <= bits <= _MOST_BITS:
        raise Error(f"bits: expected from 1 to {_MOST_BITS}, found {bits!r}")
    form = StochasticLevels(bits, rotated, coded)
    return base.trained("stochastic_quantize", form, bits=_MOST_BITS if coded else None, aux=aux, rate=rate)


def truncated_svd(*, rank: int, bits: int | None = 4, aux: int | None = 16, rate: float = 1.0) -> base.Trained:
    """Sends the best low-rank approximation of the change that full training made.

    Args:
      rank: columns of each factor, at least 1; a kernel gets at most min(fan_in, fan_out).
      bits: of each factor's entries, rounded after training; None: float32 as published.
      aux: bits of the aux leaves' deltas; None leaves them as deployed.
      rate: multiplies the task's learning rate.

    Returns:
      A method.

    Raises:
      Error: an option is out of range.
    """
    factorize.check_rank(rank)
    return base.trained("truncated_svd", TruncatedSvd(rank, bits), bits=bits, aux=aux, rate=rate)


@dataclasses.dataclass(frozen=True)
class Sketch:
    """The form of kernels that train in full."""

    lossless = False
    rebuild = staticmethod(as_trained)

    def parametrise(self, site: Site) -> Parametrised:
        """The weights themselves."""
        return Parametrised(site.weights)

    def block(self, trained: Any, parametrised: Parametrised, site: Site) -> Block:
        """A sketch of the change."""
        return self.sketch(arrays.to_host(trained - site.old), site)

    def sketch(self, change: np.ndarray, site: Site) -> Block:
        """The block of a kernel's change, float32."""
        raise NotImplementedError


@dataclasses.dataclass(frozen=True)
class Subsample(Sketch):
    """A random part of it."""

    ratio: float
    bits: int | None
    unbiased: bool
    seeded = True

    def sketch(self, change: np.ndarray, site: Site) -> Block:
        """Values at positions from the seed."""
        count = selection.budget(self.ratio, change.size)
        values = change.reshape(-1)[seeded(site.seed, site.number, change.size, count)]
        values = values * np.float32(change.size / count if self.unbiased else 1)
        if self.bits is None:
            return wire.Mapped("places", *quantize.to_exact_integers(values, _EXACT_BITS), width=wire.WIDEST)
        return Seeded(*quantize.to_integers(values, self.bits))


@dataclasses.dataclass(frozen=True)
class StochasticLevels(Sketch):
    """Levels that are drawn."""

    bits: int
    rotated: bool
    coded: bool

    @property
    def seeded(self) -> bool:
        """Whether there is a rotation, from the seed."""
        return self.rotated

    def sketch(self, change: np.ndarray, site: Site) -> Block:
        """Levels of the change, or of its rotation."""
        values, name = change.reshape(-1).astype(np.float64), "levels"
        if self.rotated:
            name, size = "rotated", rotations.padded(change.size)
            held = dtypes.hold(arrays.to_host(site.held))
            sizes = wire.sizes_of(held.shape, site.leaf.view, 1 + size)
            constants = map_flats.ROTATED.constants(mapping.Site(held, site.leaf.view, site.seed, site.number, sizes))
            padded = np.concatenate([values, np.zeros(size - len(values))])
            values = rotations.forth(padded, constants) / (len(constants[1]) * len(constants[2]))
        uniform = np.asarray(jax.random.uniform(site.key, values.shape), np.float64)
        levels, step = stochastic_levels(values, self.bits, uniform)
        return wire.Mapped(name, levels, step, width=0 if self.coded else self.bits)


def stochastic_levels(values: np.ndarray, bits: int, uniform: np.ndarray) -> tuple[np.ndarray, float]:
    """Levels of a range, drawn so that their mean is the value.

    A value x between the levels a < b becomes b with probability (x - a) / (b - a).

    Args:
      values: float64 (n,), finite.
      bits: of each level.
      uniform: float64 (n,), random from 0 to 1.

    Returns:
      int32 (1 + n,): an offset c and the levels q, from -2^(bits - 1) on; and a step s: (256 q + c) s is the value
      that is read.

    Konecny et al. (arXiv 1610.05492), section 3, probabilistic quantization.

    >>> levels, step = stochastic_levels(np.array([-1.0, 0.5, 1.0]), 1, np.array([0.3, 0.6, 0.9]))
    >>> np.round((256 * levels[1:] + levels[0]) * step, 1).tolist()
    [-1.0, 1.0, 1.0]
    """
    lowest, highest, many = float(values.min()), float(values.max()), 2**bits - 1
    # One unit more than the range needs, so that an offset of whole units covers it, and a step rounded upwards.
    least = max((highest - lowest) / (map_flats.OFFSET_UNITS * many - 1), abs(lowest) * 2.0**-30, _LEAST)
    step = increments.round_step(least * (1 + 2.0**-7))
    offset = math.floor(lowest / step)
    levels = (values / step - offset) / map_flats.OFFSET_UNITS
    drawn = np.clip(np.floor(levels) + (uniform < levels - np.floor(levels)), 0, many).astype(np.int64)
    half = 2 ** (bits - 1)
    return np.concatenate([[offset + map_flats.OFFSET_UNITS * half], drawn - half]).astype(np.int32), step


@dataclasses.dataclass(frozen=True)
class TruncatedSvd(Sketch):
    """Its leading singular directions."""

    rank: int
    bits: int | None
    seeded = False

    def sketch(self, change: np.ndarray, site: Site) -> Block:
        """Both factors."""
        view = site.leaf.view
        rank = min(self.rank, *views.shape_of(change.shape, view)[1:])
        factors = factorize.truncated_svd(jax.numpy.asarray(change), rank, view=view)
        if self.bits is None:
            return factorize.to_plain_block(factors, view=view)
        return factorize.to_block(factors, self.bits, view=view)
