"""Positions in a matrix, row by row: columns where there were many have more, and so do rows once they have some.

Column j has the weight w_j = 1 + 2 (positions that it has so far), and a row's rate is unknown: it is exponential at
first, and known better with every position. So after c positions in a row, the next lies beyond a sum of weights s,
counted from the row's beginning, with the probability ((b + s_0) / (b + s))^(c + 1), where s_0 is the sum up to the
last one and b that of all columns by the mean number of positions of rows that have some.
"""

import numpy as np

from updcomp.wire import costs, dtypes, errors, rans, streams

LARGEST = 1 << 15  # positions: each takes some time
_MOST_COLUMNS = 1 << 10  # each has a slot of 2^14 at least
_PER_POSITION = 1 << 16  # operations
_PER_ROW = 1 << 14


def is_possible(count: int, shape: tuple[int, int]) -> bool:
    """Whether so many positions in a matrix of this shape can be coded like this."""
    return 0 < count <= LARGEST and 1 < shape[1] <= _MOST_COLUMNS


def extra_cost(count: int, shape: tuple[int, int]) -> costs.Cost:
    """2^16 operations for each position, 2^14 for each row."""
    return costs.Cost(_PER_POSITION * count + _PER_ROW * shape[0], 0)


def write(writer: streams.Writer, places: dtypes.Array, shape: tuple[int, int]) -> None:
    """Positions whose number both sides know.

    Args:
      writer: takes the choices.
      places: int64 (k,), strictly ascending, in the flattened matrix.
      shape: (rows, columns).
    """
    state, starts, sizes = _State(shape[1]), list[int](), list[int]()
    rows, columns = np.divmod(places, shape[1])
    ends = np.cumsum(np.bincount(rows, minlength=shape[0]))
    begin = 0
    for end in ends.tolist():
        if begin == len(places):
            break
        found = columns[begin:end].tolist()
        no = state.interval()
        starts.append(no if found else 0)
        sizes.append(rans.TOTAL - no if found else no)
        state.open(bool(found))
        for column in [*found, shape[1]] if found else []:
            if state.is_over or (column == shape[1] and end == len(places)):
                break
            bounds = state.bounds()
            option = column - state.next
            starts.append(int(bounds[option]))
            sizes.append(int(bounds[option + 1] - bounds[option]))
            state.take(column)
        begin = end
    writer.choices(np.array(starts), np.array(sizes))


def read(reader: streams.Reader, count: int, shape: tuple[int, int]) -> dtypes.Array:
    """The inverse of `write`: int64 (count,)."""
    state, found = _State(shape[1]), list[int]()
    for row in range(shape[0]):
        if len(found) == count:
            break
        is_open = bool(reader.choose(state.interval()))
        state.open(is_open)
        while is_open and not state.is_over and len(found) < count:
            column = state.next + reader.choose_among(state.bounds())
            state.take(column)
            if column == shape[1]:
                break
            found.append(row * shape[1] + column)
    if len(found) < count:
        raise errors.CorruptUpdateError(f"positions: expected {count}, found {len(found)}")
    return np.array(found, np.int64)


class _State:
    """What is known after some of the positions."""

    def __init__(self, columns: int) -> None:
        self._weights = np.ones(columns, np.int64)
        self._rows = [[1, 1], [1, 1]]  # rows with none and with some, after such a row
        self._last = 0  # whether the row before has some
        self._some, self._positions = 1, 2  # rows that have some, and positions in them
        self.next = 0  # the first column that the row's next position can be in
        self._taken: list[int] = []  # columns of this row

    def interval(self) -> int:
        """The interval of a row that has none."""
        none, some = self._rows[self._last]
        return 1 + none * (rans.TOTAL - 2) // (none + some)

    def open(self, has_some: bool) -> None:
        """Begins a row."""
        self._weights[self._taken] += 2
        self._rows[self._last][has_some] += 1
        self._last = int(has_some)
        self.next, self._taken = 0, []
        if has_some:
            self._sums = np.concatenate([[0], np.cumsum(self._weights)])
            self._spread = float(self._sums[-1] * self._some // self._positions + 1)
            self._some += 1

    @property
    def is_over(self) -> bool:
        """Whether no column is left."""
        return self.next == len(self._weights)

    def bounds(self) -> dtypes.Array:
        """int64: where the intervals of the columns from the next on begin, then that of the row's end, and 2^14."""
        sums = self._spread + self._sums[self.next :]
        beyond = _power(sums[0] / sums, len(self._taken) + 1)
        reached = 1.0 - beyond
        if not self._taken:
            reached /= reached[-1]  # there is one
        options = len(reached) - (not self._taken)
        bounds = np.floor(reached * (rans.TOTAL - options)).astype(np.int64) + np.arange(len(reached))
        return np.append(bounds, rans.TOTAL) if self._taken else bounds

    def take(self, column: int) -> None:
        """A position in this row, or its end."""
        if column < len(self._weights):
            self._taken.append(column)
            self._positions += 1
            self.next = column + 1


def _power(base: dtypes.Array, exponent: int) -> dtypes.Array:
    """By squaring, in this order of operations."""
    found = np.ones_like(base)
    while exponent:
        if exponent & 1:
            found *= base
        base = base * base
        exponent >>= 1
    return found
