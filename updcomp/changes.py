"""What changed between two pytrees of arrays, found where the arrays are; leaves that are equal stay there.

Of arrays on an accelerator, bit patterns are compared there. Where few weights changed, their positions and new bits
come to the host, and the new leaf is made of the deployed one, which the fingerprint needs there anyway.
"""

import functools
import math
from collections.abc import Callable, Collection, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from updcomp import arrays, trees
from updcomp.trees import HostModel, PyTree
from updcomp.wire import dtypes
from updcomp.wire.kind import Block
from updcomp.wire.kinds.exact import Exact
from updcomp.wire.packet import LazyBlocks

_POSITION = 8  # bytes

_Maker = Callable[[dtypes.Model], Block]


class Changes(LazyBlocks):
    """Exact blocks of the leaves that changed, each made when it is asked for, and not kept."""

    def __init__(self, makers: Mapping[str, _Maker], base: dtypes.Model) -> None:
        """Makes nothing yet.

        Args:
          makers: leaf name -> function of the deployed model that makes the leaf's block.
          base: the deployed model.
        """
        super().__init__({name: functools.partial(make, base) for name, make in makers.items()})
        self._of_base = makers

    def on(self, base: dtypes.Model) -> "Changes":
        """The same blocks, made of another copy of the deployed model."""
        return Changes(self._of_base, base)


class _Pair(NamedTuple):
    """The same part of an old and a new leaf, on one device."""

    old: jax.Array
    new: jax.Array
    place: tuple[slice, ...]  # of the part in the leaf


def find(old: PyTree, new: PyTree, names: list[str], *, added: Collection[str] = ()) -> Changes:
    """The exact changes between two pytrees.

    Args:
      old: the deployed one.
      new: the one that it should become.
      names: of the leaves to compare; both trees have them, of the same shapes and dtypes, but for those added.
      added: those of them that the old tree lacks, or has in another shape or dtype.

    Returns:
      Blocks of leaves that changed; of leaves that are not compared, since they are on several hosts or only one is on
      an accelerator, blocks as if they had. Both trees must stay as they are until these are encoded.

    >>> old = {"a": np.zeros(3), "b": np.zeros(2)}
    >>> list(find(old, {"a": np.zeros(3), "b": np.ones(2)}, ["a", "b"]))
    ['b']
    """
    olds, news = trees.named_leaves(old), trees.named_leaves(new)
    before, after = HostModel(old), HostModel(new)
    shared = [name for name in names if name not in added and olds[name] is not news[name]]
    pairs = {name: _pairs(olds[name], news[name]) for name in shared}
    # All devices are asked before the first is waited for.
    asked = {name: [_count(pair.old, pair.new) for pair in found] for name, found in pairs.items() if found is not None}
    counts: dict[str, list[int]] = {name: [int(n) for n in found] for name, found in jax.device_get(asked).items()}
    makers = {name: _whole(name, after) for name in names if name in added}
    for name, found in pairs.items():
        if found is None:
            if _may_differ(olds[name], news[name], name, before, after):
                makers[name] = _whole(name, after)
        elif sum(counts[name]):
            makers[name] = _of_few(name, found, counts[name], before.specs[name]) or _whole(name, after)
    return Changes(makers, before)


def _pairs(old: Any, new: Any) -> list[_Pair] | None:
    """The parts of two leaves on their devices; None if they are to be compared on the host, if at all."""
    if not (isinstance(old, jax.Array) and isinstance(new, jax.Array)) or arrays.is_key(old) or arrays.is_key(new):
        return None
    on_devices = all(map(_is_away, (old, new))) and old.sharding.is_equivalent_to(new.sharding, old.ndim)
    if not (on_devices and old.is_fully_addressable and _has_plain_bits(old.dtype)):
        return None
    twins = {shard.device: shard.data for shard in new.addressable_shards}
    found = [
        _Pair(shard.data, twins[shard.device], shard.index) for shard in old.addressable_shards if not shard.replica_id
    ]
    return found if all(pair.old.size < 2**31 for pair in found) else None


def _is_away(leaf: jax.Array) -> bool:
    """Whether it takes a copy to have a leaf on the host."""
    return len(leaf.devices()) > 1 or any(device.platform != "cpu" for device in leaf.devices())


def _has_plain_bits(dtype: Any) -> bool:
    """Whether an element is a number of whole bytes."""
    if jnp.issubdtype(dtype, jnp.bool_):
        return True
    info = jnp.iinfo if jnp.issubdtype(dtype, jnp.integer) else jnp.finfo
    return not jnp.issubdtype(dtype, jnp.complexfloating) and info(dtype).bits == 8 * dtype.itemsize


def _bits(leaf: jax.Array) -> jax.Array:
    flat = leaf.reshape(-1)
    if jnp.issubdtype(leaf.dtype, jnp.bool_):
        return flat.astype(jnp.uint8)
    return jax.lax.bitcast_convert_type(flat, jnp.dtype(f"uint{8 * leaf.dtype.itemsize}"))


@jax.jit
def _count(old: jax.Array, new: jax.Array) -> jax.Array:
    """How many elements have other bits."""
    return jnp.count_nonzero(_bits(old) != _bits(new))


def _changed(old: jax.Array, new: jax.Array, most: int) -> tuple[jax.Array, jax.Array]:
    """(positions of the elements with other bits, their new bits), filled up to `most`."""
    bits = _bits(new)
    positions = jnp.flatnonzero(_bits(old) != bits, size=most, fill_value=0)
    return positions, bits[positions]


_changed_on_device = jax.jit(_changed, static_argnames="most")


def _of_few(name: str, pairs: list[_Pair], counts: list[int], spec: dtypes.Spec) -> _Maker | None:
    """The new leaf made of the old one, if what changed is brought to the host in less than the whole leaf takes."""
    # A power of two: a program for each size would be compiled anew for each count.
    most = [1 << (count - 1).bit_length() if count else 0 for count in counts]
    if sum(most) * (_POSITION + spec.dtype.itemsize) >= spec.nbytes:
        return None
    found = [
        (pair, count, _changed_on_device(pair.old, pair.new, most=size))
        for pair, count, size in zip(pairs, counts, most, strict=True)
        if count
    ]
    places, values = [], []
    for pair, count, (positions, bits) in found:
        starts = [part.start or 0 for part in pair.place]
        local = np.unravel_index(np.asarray(positions)[:count], pair.old.shape) if starts else ()
        places.append(_flat([axis + start for axis, start in zip(local, starts, strict=True)], spec.shape, count))
        values.append(np.asarray(bits)[:count])
    at, new_bits = np.concatenate(places), np.concatenate(values)

    def make(base: dtypes.Model) -> Block:
        new = dtypes.hold(base[name]).copy()
        dtypes.flat_bits(new)[at] = new_bits
        return Exact(new)

    return make


def _flat(axes: list[Any], shape: tuple[int, ...], count: int) -> np.ndarray:
    """Positions in the flattened leaf."""
    return np.ravel_multi_index(tuple(axes), shape) if math.prod(shape) > 1 and axes else np.zeros(count, np.int64)


def _whole(name: str, after: dtypes.Model) -> _Maker:
    return lambda _: Exact(after[name])


def _may_differ(old: Any, new: Any, name: str, before: dtypes.Model, after: dtypes.Model) -> bool:
    """Whether two leaves differ, or cannot be compared without copies on the host."""
    if any(isinstance(leaf, jax.Array) and _is_away(leaf) for leaf in (old, new)):
        return True
    return not dtypes.same_bits(before[name], after[name])
