"""Old model + packet -> new model, to the same bits on every machine.

Every lossy kind adds increments by one rule: p = integer * step in float64, rounded to the compute dtype (float32, or
float64 for a float64 leaf); old + p in the compute dtype, rounded to the leaf's dtype. Multiply and add are rounded
separately, never fused. Where the integer is 0 or the old weight is not finite, the old bits are kept.
"""

from collections.abc import Iterator

import numpy as np

from updcomp.wire import basis, dtypes, errors, packet, positions, views

_SLICE = 1 << 16  # weights at a time: temporaries stay in the cache and small beside the leaf
_EXACT = 1 << 53
_PRODUCT_SCALE = 2.0 ** (-2 * basis.FRACTION)


def apply(sent: packet.Packet, model: dtypes.Model) -> dtypes.Model:
    """The new model.

    Args:
      sent: blocks by leaf name.
      model: the deployed one, leaf name -> array; it is not changed.

    Returns:
      A new dict; leaves without a block are the same array objects.

    Raises:
      LeafError: a block's leaf is missing, or its arrays do not fit the leaf.
      DtypeError: a lossy block for a leaf that is not float16, bfloat16, float32 or float64.

    >>> model = {"w": np.float32([1, 2])}
    >>> apply(packet.Packet({"w": packet.Dense(np.int32([0, -1]), step=0.5)}), model)["w"].tolist()
    [1.0, 1.5]
    """
    new = dict(model)
    indices = leaf_indices(model)
    for name, block in packet.held(sent).blocks.items():
        if name not in model:
            raise errors.LeafError(f"leaf {name!r}: expected one of {sorted(model)}, found no such leaf in the model")
        with errors.of_leaf(name):
            new[name] = apply_block(block, dtypes.hold(model[name]), seed=sent.seed, index=indices[name])
    return new


def leaf_indices(model: dtypes.Model) -> dict[str, int]:
    """Every leaf's index: its place in the sorted order of names."""
    return {name: index for index, name in enumerate(sorted(model))}


def apply_block(block: packet.Block, old: dtypes.Array, *, seed: int, index: int) -> dtypes.Array:
    """The new leaf.

    Args:
      block: for this leaf, as `packet.held` returns it.
      old: as `dtypes.hold` returns it.
      seed: the packet's.
      index: of the leaf in sorted name order.

    Returns:
      A new array of the same shape and dtype.
    """
    check_block(block, old)
    match block:
        case packet.Raw(new) | packet.Exact(new):
            return dtypes.hold(new)
        case packet.Half(delta):
            return _add_everywhere(old, delta.reshape(-1), 1.0)
        case packet.Dense(values, step):
            return _add_everywhere(old, values.reshape(-1), step)
        case packet.Sparse(places, values, step):
            return _add_at(old, places, values, step)
        case packet.Seeded(values, step):
            return _add_at(old, positions.seeded(seed, index, old.size, len(values)), values, step)
        case packet.Magnitude(values, step):
            return _add_at(old, positions.largest(old, len(values)), values, step)
        case packet.Factors(left, right, step, view):
            view = views.resolve(view, old.ndim)
            stack, fan_in, fan_out = views.shape_of(old.shape, view)
            rank = left.shape[1]  # not -1 in the shapes below: a leaf may be empty
            left, right = left.reshape(stack, fan_in, rank), right.reshape(stack, fan_out, rank)
            return _add_product(old, view, left.astype(np.float64), right.astype(np.float64), step)
        case packet.Coefficients(values, rank, step, view):
            view = views.resolve(view, old.ndim)
            left, right = basis.of(old, rank, seed=seed, index=index, view=view)
            values = values.reshape(len(left), left.shape[2], right.shape[2]).astype(np.float64)
            return _add_product(old, view, _exact_product(left, values), right, step * _PRODUCT_SCALE)


def check_block(block: packet.Block, old: dtypes.Array) -> None:
    """Checks that a block fits its leaf.

    Raises:
      LeafError: a shape, dtype, count, position or step that the leaf or the format does not take.
      DtypeError: a lossy block for a leaf without floats.
    """
    if isinstance(block, packet.Raw | packet.Exact):
        new = dtypes.hold(block.new)
        _expect("new", (new.shape, dtypes.name(new.dtype)), (old.shape, dtypes.name(old.dtype)))
        return
    dtypes.compute_dtype(old)
    for field in ("values", "left", "right"):
        if hasattr(block, field):
            _expect(f"dtype of {field}", getattr(block, field).dtype, np.dtype(np.int32))
    if not isinstance(block, packet.Half):
        _check_step(block.step)
    match block:
        case packet.Half(delta):
            _expect("delta", (delta.shape, delta.dtype), (old.shape, np.dtype(np.float16)))
            if not np.isfinite(delta).all():
                raise errors.NonFiniteError("delta: expected finite numbers, found NaN or infinity")
        case packet.Dense(values, _, view):
            _expect("shape of values", values.shape, old.shape)
            views.check(views.resolve(view, old.ndim), old.ndim)
        case packet.Sparse(places, values):
            _expect("shape of positions", places.shape, values.shape)
            _check_positions(places, old.size)
        case packet.Seeded(values) | packet.Magnitude(values):
            if values.ndim != 1 or len(values) > old.size:
                raise errors.LeafError(f"values: expected at most {old.size} in one axis, found shape {values.shape}")
        case packet.Factors(left, right, _, view):
            stack, fan_in, fan_out = views.shape_of(old.shape, views.resolve(view, old.ndim))
            rank = left.shape[-1] if left.ndim == 2 else 0
            _expect("shapes of factors", (left.shape, right.shape), ((stack * fan_in, rank), (stack * fan_out, rank)))
            _check_rank(rank, min(fan_in, fan_out))
        case packet.Coefficients(values, rank, _, view):
            stack, fan_in, fan_out = views.shape_of(old.shape, views.resolve(view, old.ndim))
            _check_rank(rank, basis.max_rank(old.shape, view))
            _expect("shape of values", values.shape, (stack * min(rank, fan_in), min(rank, fan_out)))


def _expect(what: str, found: object, expected: object) -> None:
    if found != expected:
        raise errors.LeafError(f"{what}: expected {expected}, found {found}")


def _check_rank(rank: int, largest: int) -> None:
    if not 1 <= rank <= largest:
        raise errors.LeafError(f"rank: expected 1 to {largest}, found {rank}")


def _check_positions(places: dtypes.Array, size: int) -> None:
    ascending = len(places) == 0 or (places[0] >= 0 and places[-1] < size and bool((np.diff(places) > 0).all()))
    if places.ndim != 1 or places.dtype != np.int64 or not ascending:
        raise errors.LeafError(f"positions: expected int64, strictly ascending, from 0 to {size - 1}")


def _check_step(step: float) -> None:
    if not (step > 0 and np.isfinite(step) and packet.round_step(step) == step):
        raise errors.LeafError(f"step: expected a positive number as round_step returns it, found {step}")


def _incremented(old: dtypes.Array, integers: dtypes.Array, step: float) -> dtypes.Array:
    """The increment rule.

    Args:
      old: (n,), a slice of the flat leaf.
      integers: (n,), integers of magnitude below 2^53, or float16.
      step: float64.

    Returns:
      (n,), the leaf's dtype.
    """
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


def _add_everywhere(old: dtypes.Array, integers: dtypes.Array, step: float) -> dtypes.Array:
    """Every weight incremented by integer * step; integers (n,)."""
    flat, new = old.reshape(-1), np.empty(old.size, old.dtype)
    for part in _slices(old.size):
        new[part] = _incremented(flat[part], integers[part], step)
    return new.reshape(old.shape)


def _add_at(old: dtypes.Array, places: dtypes.Array, integers: dtypes.Array, step: float) -> dtypes.Array:
    """The weights at these flat positions incremented by integer * step."""
    new = old.copy().reshape(-1)
    for part in _slices(len(places)):
        new[places[part]] = _incremented(new[places[part]], integers[part], step)
    return new.reshape(old.shape)


def _add_product(
    old: dtypes.Array, view: views.View, left: dtypes.Array, right: dtypes.Array, step: float
) -> dtypes.Array:
    """Every weight incremented by (left_i @ right_i.T) * step, the product exact, a few rows or matrices at a time.

    Args:
      old: held leaf.
      view: of the leaf.
      left: float64 (stack, fan_in, rank), integers.
      right: float64 (stack, fan_out, rank), integers.
      step: float64.

    Returns:
      The new leaf.
    """
    right = right.transpose(0, 2, 1)
    _check_exact(left, right)
    matrices = views.split(old, view)
    new = np.empty_like(matrices, order="C")
    stack, fan_in, fan_out = matrices.shape
    for group in _slices(stack, max(1, _SLICE // max(fan_in * fan_out, 1))):
        for part in _slices(fan_in, max(1, _SLICE // max(fan_out, 1))):
            product = left[group, part] @ right[group]
            sums = _incremented(matrices[group, part].reshape(-1), product.reshape(-1), step)
            new[group, part] = sums.reshape(product.shape)
    return np.ascontiguousarray(views.join(new, old.shape, view)).reshape(old.shape)


def _exact_product(left: dtypes.Array, right: dtypes.Array) -> dtypes.Array:
    _check_exact(left, right)
    return left @ right


def _check_exact(left: dtypes.Array, right: dtypes.Array) -> None:
    """Checks that every partial sum of left @ right stays below 2^53: max row sum of |left| times max |right|."""
    if left.size and right.size:
        bound = int(np.abs(left).sum(axis=-1).max()) * int(np.abs(right).max())
        if bound >= _EXACT:
            raise errors.LeafError(f"product: expected sums below 2^53, found up to {bound}; use fewer bits or ranks")
