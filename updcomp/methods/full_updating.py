"""Full updating: every weight is trained and sent."""

import dataclasses
from typing import Any

from updcomp import arrays, quantize
from updcomp.methods import base, rounding
from updcomp.methods.forms import Parametrised, Site
from updcomp.methods.rounding import Rounding
from updcomp.training.plans import as_trained
from updcomp.wire.kinds.dense import Dense
from updcomp.wire.kinds.raw import Raw


def full(
    *, bits: int | None = None, aux: int | None = 16, rate: float = 1.0, start: base.Initial | None = None
) -> base.Trained:
    """Sends every weight: raw, or as entropy-coded integers that training has rounded straight-through.

    Args:
      bits: of each weight's delta; None sends the new weights as they are.
      aux: bits of the aux leaves' deltas, which are raw as well if `bits` is None; None leaves them as deployed.
      rate: multiplies the task's learning rate.
      start: the model that training starts from; default the deployed one.

    Returns:
      A method.

    Raises:
      Error: an option is out of range.
    """
    base.check_options(bits=16 if bits is None else bits, aux=aux, rate=rate)
    if bits is None:
        return base.Trained("full", Weights(), aux and rounding.RAW, rate, start)
    return base.Trained("full", RoundedWeights(bits), aux, rate, start)


@dataclasses.dataclass(frozen=True)
class Weights:
    """The form of kernels whose new weights travel as they are."""

    seeded = False
    lossless = True
    rebuild = staticmethod(as_trained)

    def parametrise(self, site: Site) -> Parametrised:
        """The weights themselves."""
        return Parametrised(site.weights)

    def block(self, trained: Any, parametrised: Parametrised, site: Site) -> Raw:
        """The new weights in the leaf's dtype."""
        return Raw(arrays.to_host(trained.astype(site.held.dtype)))


@dataclasses.dataclass(frozen=True)
class RoundedWeights:
    """The form of kernels of whose weights every change is rounded and sent."""

    bits: int
    seeded = False
    lossless = False
    rebuild = staticmethod(rounding.rounded)

    def parametrise(self, site: Site) -> Parametrised:
        """The weights themselves."""
        return Parametrised(site.weights, Rounding(quantize.grid(self.bits)))

    def block(self, trained: Any, parametrised: Parametrised, site: Site) -> Dense:
        """The integers of all changes."""
        return Dense(*rounding.integers(site.old, trained, parametrised.fixed), site.leaf.view)
