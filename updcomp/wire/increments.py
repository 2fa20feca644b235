"""The increment rule, by which every lossy kind changes weights, to the same bits on every machine.

p = integer * step in float64, rounded to the compute dtype (float32, or float64 for a float64 leaf); old + p in the
compute dtype, rounded to the leaf's dtype. Multiply and add are rounded separately, never fused. Where the integer is
0 or the old weight is not finite, the old bits are kept.
"""

from collections.abc import Iterator

import numpy as np

from updcomp.wire import costs, dtypes, errors, views

_SLICE = 1 << 16  # weights at a time: temporaries stay in the cache and small beside the leaf
_TILE = 1 << 8  # rows of a tile at least
_EXACT = 1 << 53
_PER_WEIGHT = 12  # operations
_PER_PLACE = 64
_PER_TILED = 24  # a weight
_PER_LINE = 64  # a row or a column
_PER_MATRIX = 256


def round_step(step: float) -> float:
    """Rounds a quantisation step to the nearest one that the wire carries: a float32 with the low 16 bits zero.

    Args:
      step: positive and finite.

    Returns:
      The step with 8 significant bits, at least the smallest normal float32.

    Raises:
      Error: the step is not positive and finite.

    >>> round_step(0.1)
    0.10009765625
    """
    if not (step > 0 and np.isfinite(np.float32(step))):
        raise errors.Error(f"step: expected a positive finite number, found {step}")
    bits = np.array(max(step, float(np.finfo(np.float32).tiny)), np.float32).view(np.uint32)
    rounded = min((int(bits) + 0x8000) >> 16 << 16, 0x7F7F0000)
    return float(np.array(rounded, np.uint32).view(np.float32))


def check_step(step: float) -> None:
    """Checks that a block's step is one that the wire carries.

    Raises:
      LeafError: it is not.
    """
    if not (step > 0 and np.isfinite(step) and round_step(step) == step):
        near = f", such as {round_step(step)}" if 0 < step < 1e38 else ""
        raise errors.LeafError(
            f"step: expected a positive number as increments.round_step returns it{near}, found {step}"
        )


def everywhere(old: dtypes.Array, integers: dtypes.Array, step: float) -> dtypes.Array:
    """Every weight incremented by integer * step.

    Args:
      old: held float leaf.
      integers: of the leaf's shape and of magnitude below 2^53, or float16; not copied whole, however they lie.
      step: float64.

    Returns:
      The new leaf.
    """
    new = np.empty_like(old)
    whole = old.ndim == 0 or integers.flags.c_contiguous
    rows = 0 if whole else max(1, _SLICE * len(old) // max(old.size, 1))
    for some in [...] if whole else _slices(len(old), rows):
        flat, target, increments = old[some].reshape(-1), new[some].reshape(-1), integers[some].reshape(-1)
        for part in _slices(len(flat)):
            target[part] = _incremented(flat[part], increments[part], step)
    return new


def everywhere_operations(spec: dtypes.Spec) -> int:
    """The operations of `everywhere`."""
    return _PER_WEIGHT * spec.size


def at(old: dtypes.Array, places: dtypes.Array, integers: dtypes.Array, step: float) -> dtypes.Array:
    """The weights at these flat positions incremented by integer * step.

    Args:
      old: held float leaf.
      places: int64 (k,), strictly ascending.
      integers: (k,).
      step: float64.

    Returns:
      The new leaf.
    """
    new = old.copy().reshape(-1)
    for part in _slices(len(places)):
        new[places[part]] = _incremented(new[places[part]], integers[part], step)
    return new.reshape(old.shape)


def at_operations(spec: dtypes.Spec, count: int) -> int:
    """The operations of `at`: copying the leaf, and each of the weights."""
    return spec.nbytes + _PER_PLACE * count


def columns(
    old: dtypes.Array, view: views.View, which: dtypes.Array, integers: dtypes.Array, step: float
) -> dtypes.Array:
    """Some columns of the leaf's matrices incremented by integer * step, a tile at a time.

    Args:
      old: held float leaf.
      view: of the leaf.
      which: int64 (k,), as `views.column_places` takes them.
      integers: (fan_in, k).
      step: float64.

    Returns:
      The new leaf.
    """
    new = old.copy().reshape(-1)
    across, fan_in = views.column_places(which, old.shape, view), len(integers)
    # A tile has neighbours along both sides, in whichever order the view's axes lie in memory.
    height = max(min(_TILE, fan_in), _SLICE // max(len(across), 1), 1)
    for some in _slices(len(across), max(1, _SLICE // height)):
        for rows in _slices(fan_in, height):
            down = views.row_places(np.arange(rows.start, min(rows.stop, fan_in)), old.shape, view)
            places = (down[:, None] + across[some]).reshape(-1)
            new[places] = _incremented(new[places], integers[rows, some].reshape(-1), step)
    return new.reshape(old.shape)


def columns_operations(spec: dtypes.Spec, count: int, lines: int) -> int:
    """The operations of `columns`: copying the leaf, each of the weights, and each row and column."""
    return spec.nbytes + _PER_TILED * count + _PER_LINE * lines


def product(old: dtypes.Array, view: views.View, left: dtypes.Array, right: dtypes.Array, step: float) -> dtypes.Array:
    """Every weight incremented by (left_i @ right_i.T) * step, the product exact, a few rows or matrices at a time.

    Args:
      old: held leaf.
      view: of the leaf.
      left: float64 (stack, fan_in, rank), integers.
      right: float64 (stack, fan_out, rank), integers.
      step: float64.

    Returns:
      The new leaf.

    Raises:
      LeafError: a sum could reach 2^53.
    """
    right = right.transpose(0, 2, 1)
    _check_exact(left, right)
    matrices = views.split(old, view)
    new = np.empty_like(matrices, order="C")
    stack, fan_in, fan_out = matrices.shape
    for group in _slices(stack, max(1, _SLICE // max(fan_in * fan_out, 1))):
        for rows in _slices(fan_in, max(1, _SLICE // max(fan_out, 1))):
            for columns in _slices(fan_out):
                increments = left[group, rows] @ right[group, :, columns]
                sums = _incremented(matrices[group, rows, columns].reshape(-1), increments.reshape(-1), step)
                new[group, rows, columns] = sums.reshape(increments.shape)
    return np.ascontiguousarray(views.join(new, old.shape, view)).reshape(old.shape)


def product_operations(spec: dtypes.Spec, stack: int, rank: int) -> int:
    """The operations of `product`."""
    return _PER_WEIGHT * spec.size + _PER_MATRIX * stack + costs.products(spec.size * rank)


def exact_product(left: dtypes.Array, right: dtypes.Array) -> dtypes.Array:
    """Left @ right of integers in float64.

    Raises:
      LeafError: a sum could reach 2^53.
    """
    _check_exact(left, right)
    return left @ right


def _incremented(old: dtypes.Array, integers: dtypes.Array, step: float) -> dtypes.Array:
    """The rule for a slice of the flat leaf, (n,), by integers (n,) or float16."""
    floats = dtypes.to_floats(old)
    increments = integers.astype(np.float64)
    increments *= step
    with np.errstate(over="ignore", invalid="ignore"):
        sums = floats + increments.astype(floats.dtype, copy=False)
        new = dtypes.round_floats(sums, old.dtype)
    kept = integers == 0
    kept |= ~np.isfinite(floats)
    np.copyto(dtypes.flat_bits(new), dtypes.flat_bits(old), where=kept)
    return new


def _slices(size: int, width: int = _SLICE) -> Iterator[slice]:
    return (slice(start, start + width) for start in range(0, size, width))


def _check_exact(left: dtypes.Array, right: dtypes.Array) -> None:
    """Checks that every partial sum of left @ right stays below 2^53: max row sum of |left| times max |right|."""
    if left.size and right.size:
        bound = int(np.abs(left).sum(axis=-1).max()) * int(np.abs(right).max())
        if bound >= _EXACT:
            raise errors.LeafError(f"product: expected sums below 2^53, found up to {bound}; use fewer bits or ranks")
