"""What applying an update takes, known from its header and the shapes of the leaves, before any of it is paid.

Operations are counted, not timed: one is about a nanosecond of one core of a server of the 2020s. `FORMAT.md` has the
formulas; writers and readers share them, so that no writer makes by default what a reader refuses by default.
"""

import math
from collections.abc import Mapping
from typing import NamedTuple

from updcomp.wire import dtypes, errors, models, rans

PER_BLOCK = 1 << 17
_PER_STEP = 1 << 13  # of the entropy coder: a token for each lane
_PER_TOKEN = 24
_PER_SEGMENT = 1 << 17
_PER_CONTEXT = 1 << 13  # its prior
_PER_SEARCH = 96  # a token's, where a table of its context would cost more
_PER_PRODUCT = 8  # products of an operation
_CONTEXTS = 64
_TOKEN_BYTES = 56  # temporaries of a token in the chunk that is decoded

_OPERATIONS = 2_000_000_000  # for each full share of a model
_PER_LEAF = 1 << 20  # operations that a leaf adds to them, however small
_WORKING_BYTES = 64 << 20
_SHARE = 100_000_000  # bytes of a model; smaller ones are allowed as much
_LEAST_WIDTH = 4  # bytes that a weight counts at least: a narrow one takes as long


class Cost(NamedTuple):
    """Of decoding and applying a block."""

    operations: int
    working_bytes: int  # beside the old and the new leaf


def tokens(count: int, lanes: int, *, contexts: int = _CONTEXTS) -> Cost:
    """Of decoding a segment.

    operations = 2^17 + 2^13 contexts + 24 n, and for each chunk of t tokens 2^13 ceil(t / lanes) + min(96 t, 2^14
    contexts), with at most n contexts; working bytes = 56 tokens of the longest chunk. Nothing if n = 0.

    Args:
      count: n, number of tokens.
      lanes: of the coded section.
      contexts: the most that the segment can have.

    Returns:
      The cost.

    >>> tokens(64, 1, contexts=1)
    Cost(operations=671232, working_bytes=3584)
    """
    if not count:
        return Cost(0, 0)
    contexts = min(contexts, count)
    sizes = [part.stop - part.start for part in models.chunks(count)]
    steps = sum(-(-size // max(lanes, 1)) for size in sizes)
    tables = sum(min(_PER_SEARCH * size, contexts << rans.PRECISION) for size in sizes)
    operations = _PER_SEGMENT + _PER_CONTEXT * contexts + _PER_TOKEN * count + _PER_STEP * steps + tables
    return Cost(operations, _TOKEN_BYTES * max(sizes))


def rounds(count: int, many: int, lanes: int, *, contexts: int) -> Cost:
    """Of decoding a segment in rounds, in pieces of which only the sum of their tokens is known.

    With r = max(1, bit_length(n) - 6) rounds and at most n contexts: operations = pieces (2^17 + 2^13 (contexts + r)) +
    24 n + 2^13 ceil(n / lanes) + min(96 n, pieces r 2^14 contexts); their working bytes are the caller's.

    Args:
      count: n, number of tokens of all pieces.
      many: pieces.
      lanes: of each piece.
      contexts: the most that a piece can have.
    """
    if not count:
        return Cost(0, 0)
    longest, contexts = max(1, count.bit_length() - 6), min(contexts, count)
    tables = min(_PER_SEARCH * count, many * longest * contexts << rans.PRECISION)
    each = _PER_SEGMENT + _PER_CONTEXT * contexts + _PER_STEP * longest
    return Cost(many * each + _PER_TOKEN * count + _PER_STEP * -(-count // max(lanes, 1)) + tables, 0)


def products(count: int) -> int:
    """The operations of so many products of a matrix product."""
    return count // _PER_PRODUCT


def total(*parts: Cost, operations: int = 0, working_bytes: int = 0) -> Cost:
    """The cost of a block: its parts one after another, then the rest, with what stays in memory meanwhile."""
    return Cost(
        PER_BLOCK + operations + sum(part.operations for part in parts),
        working_bytes + max((part.working_bytes for part in parts), default=0),
    )


def allowed(specs: Mapping[str, dtypes.Spec], budget: float) -> Cost:
    """What an update may take in all: in proportion to the model, and no less than one of 100 MB may.

    With m = max(1, bytes of the model / 10^8), weights of less than 4 bytes counted as 4: budget (m 2 10^9 + 2^20
    leaves) operations; budget (2 bytes of the largest leaf + m 64 MiB) working bytes, beside the update itself.

    Args:
      specs: of the model's leaves.
      budget: factor; 1 is the default, infinity allows everything.

    Returns:
      The limits; 2^63 - 1 where everything is allowed.

    Raises:
      Error: the budget is not positive.

    >>> allowed({}, 1.0)
    Cost(operations=2000000000, working_bytes=67108864)
    """
    if not budget > 0:
        raise errors.Error(f"budget: expected a positive factor, found {budget}; 1 is the default")
    share = max(_SHARE, sum(max(spec.nbytes, _LEAST_WIDTH * spec.size) for spec in specs.values()))
    largest = max((spec.nbytes for spec in specs.values()), default=0)
    limits = (_OPERATIONS * share // _SHARE + _PER_LEAF * len(specs), 2 * largest + _WORKING_BYTES * share // _SHARE)
    return Cost(*(max(1, int(min(limit * budget, float((1 << 63) - 1024)))) for limit in limits))


def largest_update(specs: Mapping[str, dtypes.Spec]) -> int:
    """The most bytes that an update of such a model has: those of its leaves, 16 more for each, and 2 MiB."""
    return sum(spec.nbytes for spec in specs.values()) + 16 * len(specs) + (2 << 20)


class Account:
    """Adds up what an update takes, block by block, and refuses what is beyond the budget before it is paid."""

    def __init__(self, specs: Mapping[str, dtypes.Spec], extra_bytes: int, budget: float) -> None:
        """With nothing paid yet.

        Args:
          specs: of the model's leaves.
          extra_bytes: size of the update's extra bits, of which a decoder holds a copy.
          budget: factor of `allowed`.
        """
        self._allowed = allowed(specs, budget)
        self._budget = budget
        self._operations = 0
        self._held = extra_bytes

    def charge(self, cost: Cost) -> None:
        """Adds a block, unless it is refused.

        Raises:
          CostError: it goes beyond the budget.
        """
        operations = self._operations + cost.operations
        charged = (
            (operations / self._allowed.operations, operations, "operations"),
            (
                (self._held + cost.working_bytes) / self._allowed.working_bytes,
                self._held + cost.working_bytes,
                "bytes of working memory",
            ),
        )
        share, found, unit = max(charged)
        if share > 1:
            raise errors.CostError(
                f"cost: expected at most {found / share:,.0f} {unit} to apply it to this model, found {found:,}; "
                f"send less (lower ranks, fewer weights), or allow a budget of at least "
                f"{math.ceil(10 * self._budget * share) / 10:g} on both sides (budget=, --budget=)"
            )
        self._operations = operations
