"""What training some neurons may take, and what it took."""

import math
from typing import NamedTuple

from updcomp.neurons import Cost
from updcomp.partition import Partition
from updcomp.wire.errors import Error
from updcomp.wire.packet import Packet

Share = float | int


class Budget(NamedTuple):
    """What training may take: whole numbers, or as floats up to 1.0 shares of training all neurons; None: anything."""

    weights: Share | None
    flops: Share | None
    memory: Share | None

    def check(self) -> None:
        """Checks the numbers.

        Raises:
          Error: one is neither.
        """
        for name, share in self._asdict().items():
            is_number = isinstance(share, int | float) and not isinstance(share, bool)
            if share is not None and not (is_number and 0 < share <= (2**63 if isinstance(share, int) else 1)):
                expected = "expected a whole number above 0, or a share above 0.0 and up to 1.0 of all neurons'"
                raise Error(f"{name}: {expected}, found {share!r}")

    def limits(self, full: Cost) -> Cost:
        """In absolute numbers, where training all neurons takes `full`."""
        pairs = zip(self, full, strict=True)
        return Cost(*(math.inf if s is None else s * most if isinstance(s, float) else float(s) for s, most in pairs))


class Options(NamedTuple):
    """Those of `methods.neurons`."""

    selection: str
    budget: Budget
    bits: int
    rate: float
    probe: int
    shapes: int
    microbatches: int


class Spent(NamedTuple):
    """What training took."""

    weights: int  # that trained at a time, the most of any epoch
    backward_flops: float  # of a batch, the most of any epoch: the compiled step's beyond the forward pass
    peak_bytes: int  # of a step or of choosing, the most of any epoch
    step_seconds: float  # median over the epochs of their mean
    choosing_share: float  # seconds of choosing, compilation aside, for each second of steps; median over the epochs
    compiled: int  # shapes of chosen columns, those that proved to cost too much included


class Outcome(NamedTuple):
    """What a training gave."""

    packet: Packet
    spent: Spent
    full: Cost  # what training all neurons takes: `spent.peak_bytes / full.memory` is the share of it
    partitions: tuple[Partition, ...]  # of each epoch since the last start: what trained; leaves have depths
