"""Small matrices of small integers, coded one integer after another, each by all that came before it.

An integer is whether it is 0, its sign, and then whether its magnitude is more than 1, more than 2 and so on. How often
the integers of its row were 0 tells the first; the second is told by what the rows above make of the row so far: with
x the row and R the rows above, the sum over i < j of x_i (R^T R)_ij is far from 0 where columns go together. All
probabilities are ratios of counts.
"""

import math
from collections.abc import Callable

import numpy as np

from updcomp.wire import costs, dtypes, rans, streams

LARGEST = 1 << 12  # integers: each takes some time
_PER_INTEGER = 1 << 14  # operations
_MOST_COLUMNS = 1 << 7  # of which sums of products are kept
_ROW = 8  # integers that the whole matrix counts for in a row
_START = {1: 8, 3: 11, 7: 13, 15: 14}  # of 16 integers that are not 0 before any is known, by the bound
_EDGES = (1, 4, 9, 16, 36)  # of four times the square of a sum in units of its deviation by chance

Code = Callable[[int, int, int | None], int]
"""Codes a choice with odds of so many to so many of 0 to 1, (no, yes, choice) -> choice; None where it is read."""


def write(writer: streams.Writer, values: dtypes.Array, bound: int) -> None:
    """A matrix of integers.

    Args:
      writer: takes the choices.
      values: integers (rows, columns), of magnitudes up to the bound.
      bound: 1, 3, 7 or 15.
    """
    found: list[tuple[int, int]] = []

    def code(no: int, yes: int, choice: int | None) -> int:
        assert choice is not None, "a writer knows its choices"
        size = _size(no, yes)
        found.append((size, rans.TOTAL - size) if choice else (0, size))
        return choice

    _run(code, values.shape, bound, values.tolist())
    starts, sizes = np.array(found, np.int64).T
    writer.choices(starts, sizes)


def read(reader: streams.Reader, shape: tuple[int, int], bound: int) -> dtypes.Array:
    """The inverse of `write`: int32 of this shape."""
    return np.array(_run(lambda no, yes, _: reader.choose(_size(no, yes)), shape, bound), np.int32)


def extra_cost(shape: tuple[int, int]) -> costs.Cost:
    """2^14 operations for each integer."""
    return costs.Cost(_PER_INTEGER * shape[0] * shape[1], 0)


def _size(no: int, yes: int) -> int:
    """The interval of False, of 2^14."""
    return 1 + no * (rans.TOTAL - 2) // (no + yes)


def _run(code: Code, shape: tuple[int, int], bound: int, known: list[list[int]] | None = None) -> list[list[int]]:
    """Codes all integers of a matrix, and returns them."""
    rows, columns = shape
    counts = _Counts(code, bound)
    found = []
    above = np.zeros((columns, columns), np.int64) if 1 < columns <= _MOST_COLUMNS else None
    for i in range(rows):
        counts.row, squares = [0, 0], 0
        row = np.zeros(columns, np.int64)
        for j in range(columns):
            sign, surely = 1, 0
            if above is not None and i and j:
                sign, surely = _expect(int(row[:j] @ above[:j, j]), squares * int(above[j, j]), i)
            value = counts.integer(sign, surely, None if known is None else known[i][j])
            row[j] = value
            if above is not None:
                squares += value * value * int(above[j, j])
        if above is not None:
            above += np.outer(row, row)
        found.append(row.tolist())
    return found


class _Counts:
    """How often each choice was made."""

    def __init__(self, code: Code, bound: int) -> None:
        self._code, self._bound = code, bound
        self._sent = [16 - _START[bound], _START[bound]]  # integers that were 0, and others
        self.row = [0, 0]  # the same of its row
        self._signs = [[20, 20 + 7 * place] for place in range(len(_EDGES) + 1)]  # by how surely one is expected
        self._more = [[2, 2] for _ in range(bound)]  # by the magnitude that is exceeded or not

    def integer(self, sign: int, surely: int, known: int | None) -> int:
        """Codes an integer of which a sign is expected."""
        total = sum(self._sent)
        no, yes = (here * total + _ROW * all_ for here, all_ in zip(self.row, self._sent, strict=True))
        sent = self._code(no, yes, None if known is None else int(known != 0))
        self.row[sent] += 1
        self._sent[sent] += 1
        if not sent:
            return 0
        if not self._choose(self._signs[surely], 10, None if known is None else int(known * sign > 0)):
            sign = -sign
        magnitude = 1
        while magnitude < self._bound:
            if not self._choose(self._more[magnitude], 1, None if known is None else int(abs(known) > magnitude)):
                break
            magnitude += 1
        return sign * magnitude

    def _choose(self, odds: list[int], weight: int, choice: int | None) -> int:
        """A choice that counts so much."""
        found = self._code(odds[0], odds[1], choice)
        odds[found] += weight
        return found


def _expect(total: int, chance: int, rows: int) -> tuple[int, int]:
    """The sign that is expected, 1 where none is, and how surely; chance times the rows is the square by chance."""
    surely = 4 * total * total * rows
    place = sum(surely >= edge * chance for edge in _EDGES) if chance else 0
    return (int(math.copysign(1, total)) if place else 1), place
