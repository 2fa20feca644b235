"""How far the rows and the columns of a matrix move."""

import numpy as np

from updcomp.wire import dtypes

_SWEEPS = 4


def logs(magnitudes: dtypes.Array) -> tuple[dtypes.Array, dtypes.Array]:
    """Logarithms of x, y such that x_i y_j is about the mean of |values_ij|, by alternating maximum likelihood.

    For a Laplace distribution of scale x_i y_j the best x_i is the mean over j of |values_ij| / y_j, and the other way
    round. Half a unit is added to every sum, so that a row of zeros has a logarithm.

    Args:
      magnitudes: float32 (rows, columns), >= 0.

    Returns:
      log2 of x, float32 (rows,), and of y, float32 (columns,).

    >>> rows, columns = logs(np.full((300, 400), 8, np.float32))
    >>> np.round(rows[0] + columns[0], 1).item()
    3.0
    """
    y = np.ones(magnitudes.shape[1], np.float32)
    for _ in range(_SWEEPS):
        # Not by BLAS, whose threads wait for each other longer than this takes.
        x = (np.einsum("ij,j->i", magnitudes, 1 / y) + 0.5) / len(y)
        y = (np.einsum("ij,i->j", magnitudes, 1 / x) + 0.5) / len(x)
    return np.log2(x), np.log2(y)
