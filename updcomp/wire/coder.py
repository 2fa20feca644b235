"""How a format version codes the integers of lossy blocks; each kind is made for one of these."""

from collections.abc import Callable
from typing import NamedTuple

from updcomp.wire import costs, dtypes, streams


class Coder(NamedTuple):
    """A way to code integers: matrices of int32, signed ones at some positions, and these positions."""

    write_matrix: Callable[[streams.Writer, dtypes.Array, tuple[int, int]], None]  # takes (rows, columns)
    read_matrix: Callable[[streams.Reader, tuple[int, int]], dtypes.Array]  # its inverse: int32 of this shape
    matrix_cost: Callable[[int, int, int], costs.Cost]  # of reading rows x columns in so many lanes
    write_values: Callable[[streams.Writer, dtypes.Array], None]  # takes int32 (k,)
    read_values: Callable[[streams.Reader, int], dtypes.Array]  # its inverse: int32 (k,)
    values_cost: Callable[[int, int], costs.Cost]  # of reading k of them in so many lanes
    write_positions: Callable[[streams.Writer, dtypes.Array, tuple[int, ...]], None]  # takes int64 (k,), leaf's shape
    read_positions: Callable[[streams.Reader, int, tuple[int, ...]], dtypes.Array]  # its inverse: int64 (k,)
    positions_cost: Callable[[int, int], costs.Cost]  # of reading k of them in so many lanes
