"""Changes that are products of thin matrices: their leading singular vectors, and these as integers."""

import functools
from typing import NamedTuple

import numpy as np

from updcomp.wire.increments import round_step
from updcomp.wire.kinds.factors import Factors

_FIRST = 24  # singular vectors that are looked for at first
_MOST = 192
_BEYOND = 8  # columns of a sketch beyond those that are wanted
LEAST_SIDE = 8
_TINY = 1e-7  # of the largest singular value: those that are rounding errors
_NOISE = 4.5  # squared singular values of noise stay below so many times their mean
_SMALLEST_STEP = 2.0**-100  # a float32 that is no normal number does not travel
_FINEST = 2.0**-30  # step, in largest singular values: integers of 16 bits
_SPREADS = np.arange(-32, 64) / 4  # of the tables below, as logarithms


class Spectrum(NamedTuple):
    """The leading singular values of a leaf's change, as one matrix."""

    values: np.ndarray  # float64 (k,), descending
    right: np.ndarray  # float32 (columns, k), orthonormal
    shape: tuple[int, int]
    energy: float  # sum of all squared singular values

    def rest(self) -> np.ndarray:
        """float64 (k,): what the first 1, 2 ... k of them leave of the energy."""
        return np.maximum(self.energy - np.cumsum(self.values**2), 0)


def spectrum(matrix: np.ndarray, *, seed: int = 0) -> Spectrum | None:
    """The leading singular values of a matrix, as many as stand out from noise.

    A randomised range finder with one power iteration: Y = M (M^T (M G)) for normal G of few columns, its orthonormal
    basis Q, and the decomposition of the small Q^T M. The number of columns grows as long as the last squared singular
    value found is above what a random matrix of the energy that is left would have.

    Args:
      matrix: float (rows, columns), finite.
      seed: of G.

    Returns:
      At most 192 of them; None of a matrix that is too thin, or zero.

    Paper: Halko, Martinsson, Tropp (2011), arXiv 0909.4061, algorithm 4.4.

    >>> found = spectrum(np.outer(np.arange(20.0), np.ones(30)))
    >>> float(round(found.values[0] ** 2 / found.energy, 6))
    1.0
    """
    side = min(matrix.shape)
    energy = float(np.einsum("ij,ij->", matrix, matrix, dtype=np.float64, casting="unsafe"))
    if side < LEAST_SIDE or not energy:
        return None
    count = _FIRST
    while True:
        count = min(count, side // 2)
        values, right = _sketched(matrix, count, seed)
        left = max(energy - float((values**2).sum()), 0)
        if count in (side // 2, _MOST) or values[-1] ** 2 <= _NOISE * left / max(side - count, 1):
            return Spectrum(values, right, matrix.shape, energy)
        count = min(2 * count, _MOST)


def _sketched(matrix: np.ndarray, count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    start = np.random.default_rng(seed).standard_normal((matrix.shape[1], count + _BEYOND), np.float32)
    basis = _orthonormal(matrix @ start.astype(matrix.dtype, copy=False))
    basis = _orthonormal(matrix @ (basis.T @ matrix).T)
    small = (basis.T @ matrix).astype(np.float64)
    squares, turn = np.linalg.eigh(small @ small.T)
    values = np.sqrt(np.maximum(squares[::-1][:count], 0))
    right = small.T @ turn[:, ::-1][:, :count] / np.maximum(values, values[0] * _TINY)
    return values, right.astype(np.float32)


def _orthonormal(columns: np.ndarray) -> np.ndarray:
    """An orthonormal basis of what the columns span, by way of their few products, which is all matrix products."""
    wide = columns.astype(np.float64)
    squares, turn = np.linalg.eigh(wide.T @ wide)
    scale = 1 / np.sqrt(np.maximum(squares, squares[-1] * _TINY**2))
    return (wide @ (turn * scale)).astype(columns.dtype)


def best(found: Spectrum, slope: float) -> tuple[int, float]:
    """The rank and the step of the least error + slope * bits, as normal factors would have them.

    Factors share a singular value s_k equally, so that columns have norms sqrt(s_k / step) in steps. An integer of
    standard deviation t takes h(t) bits and leaves an error d(t), both of a rounded normal number; an error of an entry
    of one factor counts times the squared norm of the other's column. The step is where error and bits balance at high
    rates: 6 slope / log(2) over the mean of the singular values sent.

    Args:
      found: of the change.
      slope: squared error that a bit is worth.

    Returns:
      (rank, step before it is rounded).
    """
    ranks = np.arange(1, len(found.values) + 1)
    steps = 6 * slope / np.log(2) / (np.cumsum(found.values) / ranks)
    steps = np.maximum(steps, found.values[0] * _FINEST)  # a change of low rank has nothing else to lose
    norms = np.sqrt(found.values[None, :] / steps[:, None])  # of the columns k of each rank's factors
    error, bits = np.zeros_like(norms), np.zeros_like(norms)
    for side in found.shape:
        spread = norms / np.sqrt(side)
        error += side * _of_normal(spread, 1) * (norms * steps[:, None]) ** 2
        bits += side * _of_normal(spread, 0)
    sent = ranks[:, None] >= ranks
    lost = found.rest() + (np.minimum(error, found.values**2) * sent).sum(axis=1)
    chosen = int(np.argmin(lost + slope * (bits * sent).sum(axis=1)))
    return chosen + 1, float(steps[chosen])


def _of_normal(spread: np.ndarray, which: int) -> np.ndarray:
    """Bits (0) or squared error (1) of a normal number of this standard deviation rounded to an integer."""
    return np.interp(np.log2(np.maximum(spread, 2.0**-8)), _SPREADS, _table()[which])


@functools.cache
def _table() -> tuple[np.ndarray, np.ndarray]:
    grid = np.arange(-6, 6, 1 / 512)  # standard deviations
    weights = np.exp(-(grid**2) / 2)
    weights /= weights.sum()
    found = []
    for spread in 2.0**_SPREADS:
        values = grid * spread
        integers = np.rint(values)
        shares = np.bincount((integers - integers.min()).astype(np.int64), weights)
        shares = shares[shares > 0]
        found.append((-(shares * np.log2(shares)).sum(), ((values - integers) ** 2 * weights).sum()))
    return np.array([bits for bits, _ in found]), np.array([error for _, error in found])


class Right(NamedTuple):
    """The right factor in integers, and what gives the best left one."""

    integers: np.ndarray  # int32 (columns, rank)
    solve: np.ndarray  # float64 (columns, rank): changes @ solve are the rows of the left factor, before rounding
    step: float


def rounded_right(found: Spectrum, rank: int, step: float) -> Right | None:
    """The right factor rounded, and the least-squares left one given that.

    Args:
      found: of the change.
      rank: number of columns.
      step: of the product.

    Returns:
      None where nothing is left of a factor, or the step cannot travel.
    """
    if not _SMALLEST_STEP <= step <= 1 / _SMALLEST_STEP:
        return None
    scaled = found.right[:, :rank].astype(np.float64) * np.sqrt(found.values[:rank] / step)
    step = round_step(step)  # of the product; the right factor may have any scale
    integers = np.rint(scaled)
    integers = integers[:, (integers != 0).any(axis=0)]
    if not integers.shape[1]:
        return None
    gram = integers.T @ integers
    gram[np.diag_indices_from(gram)] *= 1 + _TINY
    solve = np.linalg.solve(gram, integers.T).T / step
    return Right(integers.astype(np.int32), solve, step)


def left(changes: np.ndarray, right: Right) -> np.ndarray:
    """int32 (rows, rank): the left factor of some rows of the change."""
    return np.rint(changes @ right.solve.astype(changes.dtype)).astype(np.int32)


def block(matrix: np.ndarray, right: Right) -> Factors | None:
    """The block of a leaf's change.

    >>> matrix = np.outer(np.arange(20.0), np.ones(30))
    >>> found = block(matrix, rounded_right(spectrum(matrix), 1, 0.01))
    >>> bool(np.abs(found.left @ found.right.T * found.step - matrix).max() < 0.5)
    True
    """
    rows = left(matrix, right)
    used = (rows != 0).any(axis=0)
    return Factors(rows[:, used], right.integers[:, used], right.step) if used.any() else None
