"""Sparse updates at positions that both sides know before training, so that only values travel."""

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np

from updcomp import arrays, quantize, selection
from updcomp.methods import base, recipes, rounding
from updcomp.methods.forms import Parametrised, Site
from updcomp.methods.mapped import MappedVector
from updcomp.methods.rounding import Rounding
from updcomp.wire import dtypes, positions
from updcomp.wire.kinds.magnitude import Magnitude
from updcomp.wire.kinds.seeded import Seeded


def random_mask(*, ratio: float, bits: int | None = 4, aux: int | None = 16, rate: float = 20.0) -> base.Trained:
    """Trains a random share of each kernel, drawn from a seed that travels in place of the positions.

    The *structured random mask* of Konecny et al.: Federated Learning (arXiv 1610.05492), section 2.

    Args:
      ratio: share of each kernel's weights that is sent, above 0 and at most 1.
      bits: of each sent weight's delta, rounded straight-through; None: float32 as published.
      aux: bits of the aux leaves' deltas; None leaves them as deployed.
      rate: multiplies the task's learning rate; few weights have to move far.

    Returns:
      A method.

    Raises:
      Error: an option is out of range.
    """
    if bits is None:
        selection.budget(ratio, 1)
        return base.trained("random_mask", MappedVector(recipes.PLACES, ratio, None), bits=None, aux=aux, rate=rate)
    return _fixed_mask("random_mask", FixedMask(ratio, bits, _seeded, Seeded, seeded=True), aux, rate)


def magnitude_mask(*, ratio: float, bits: int = 4, aux: int | None = 16, rate: float = 20.0) -> base.Trained:
    """Trains the weights of largest deployed magnitude in each kernel: the device finds the same ones.

    Args:
      ratio: share of each kernel's weights that is sent, above 0 and at most 1.
      bits: of each sent weight's delta, rounded straight-through.
      aux: bits of the aux leaves' deltas; None leaves them as deployed.
      rate: multiplies the task's learning rate; few weights have to move far.

    Returns:
      A method.

    Raises:
      Error: an option is out of range.
    """
    return _fixed_mask("magnitude_mask", FixedMask(ratio, bits, _largest, Magnitude, seeded=False), aux, rate)


@dataclasses.dataclass(frozen=True)
class FixedMask:
    """The form of kernels of which a part trains that both sides know."""

    ratio: float
    bits: int
    positions: Callable[[np.ndarray, Site, int], np.ndarray]  # (held leaf, its site, count) -> ascending positions
    kind: type[Seeded] | type[Magnitude]
    seeded: bool
    lossless = False
    rebuild = staticmethod(rounding.rounded)

    def parametrise(self, site: Site) -> Parametrised:
        """The weights, of which the mask moves its part."""
        leaf = dtypes.hold(arrays.to_host(site.held))
        mask = np.zeros(leaf.size, bool)
        mask[self.positions(leaf, site, selection.budget(self.ratio, leaf.size))] = True
        placed = arrays.to_devices(mask.reshape(leaf.shape), site.held.sharding)
        return Parametrised(site.weights, Rounding(quantize.grid(self.bits), placed), placed)

    def block(self, trained: Any, parametrised: Parametrised, site: Site) -> Seeded | Magnitude:
        """The integers at the mask's positions."""
        return self.kind(*rounding.integers(site.old, trained, parametrised.fixed))


def _fixed_mask(name: str, form: FixedMask, aux: int | None, rate: float) -> base.Trained:
    base.check_options(bits=form.bits, aux=aux, rate=rate)
    selection.budget(form.ratio, 1)
    return base.Trained(name, form, aux, rate)


def _seeded(leaf: np.ndarray, site: Site, count: int) -> np.ndarray:
    return positions.seeded(site.seed, site.number, leaf.size, count)


def _largest(leaf: np.ndarray, site: Site, count: int) -> np.ndarray:
    return positions.largest(leaf, count)
