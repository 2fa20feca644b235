"""Meshes of devices: what of a model and of a batch each device holds, in one process or in several.

Every function takes `None` for "no mesh", which means the default device. Where a mesh has devices of several
processes, each process calls with the same arguments.
"""

import math
from collections.abc import Sequence
from typing import Any, cast

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from updcomp import arrays
from updcomp.wire.errors import Error

PyTree = Any

DATA, MODEL = "data", "model"  # the axes that batches and models are split over

_LEAST_SPLIT = 2**10  # weights: smaller leaves cost less memory than their exchange costs time


def make_mesh(devices: Sequence[jax.Device] | None = None, *, model: int = 1) -> Mesh:
    """The devices as a grid: batches are split over its axis "data", and models, with `split`, over its axis "model".

    Args:
      devices: the devices to use; all of them by default, those of other processes included.
      model: how many devices a model is split over; a divisor of their number.

    Returns:
      A mesh of shape `{"data": len(devices) // model, "model": model}`.

    Raises:
      Error: `model` is no divisor.

    >>> dict(make_mesh(jax.devices()[:1]).shape)
    {'data': 1, 'model': 1}
    """
    devices = jax.devices() if devices is None else list(devices)
    if model < 1 or not devices or len(devices) % model:
        raise Error(f"model: expected a divisor of the {len(devices)} devices, found {model}")
    shape = (len(devices) // model, model)
    return jax.make_mesh(shape, (DATA, MODEL), axis_types=(AxisType.Auto,) * 2, devices=devices)


def batch_sharding(mesh: Mesh | None, axes: Sequence[str] | None = None) -> NamedSharding | None:
    """How a batch is split: its first axis, evenly over these axes of the mesh.

    Args:
      mesh: any.
      axes: names of some of its axes; default: "data", if it has that; else each device has the whole batch.

    Returns:
      A sharding for arrays whose first axis is a multiple of the number of parts; None without a mesh.
    """
    if mesh is None:
        return None
    axes = [DATA] * (DATA in mesh.axis_names) if axes is None else axes
    return NamedSharding(mesh, PartitionSpec(tuple(axes)) if axes else PartitionSpec())


def parts_of(sharding: NamedSharding | None) -> tuple[tuple[int, ...], int]:
    """Which parts of each batch this process trains on.

    Args:
      sharding: from `batch_sharding`.

    Returns:
      (the numbers of its parts, the number of all parts).

    >>> parts_of(batch_sharding(make_mesh(jax.devices()[:1])))
    ((0,), 1)
    """
    if sharding is None:
        return (0,), 1
    count = math.prod(sharding.mesh.shape[name] for name in _names(sharding.spec[0] if sharding.spec else None))
    places = sharding.addressable_devices_indices_map((count,)).values()
    return tuple(sorted({place[0].start or 0 for place in places if place})), count


def _names(entry: Any) -> tuple[str, ...]:
    """The mesh axes in one place of a partition spec."""
    return () if entry is None else (entry,) if isinstance(entry, str) else tuple(entry)


def replicate(tree: PyTree, mesh: Mesh | None) -> PyTree:
    """Puts the whole of every leaf on every device of the mesh.

    Args:
      tree: a pytree of arrays.
      mesh: any, or None for the default device.

    Returns:
      The same tree of `jax.Array`; a leaf that is in its place already is not copied.
    """
    if mesh is not None:
        whole = NamedSharding(mesh, PartitionSpec())
        return jax.tree.map(lambda leaf: arrays.to_devices(leaf, whole), tree)
    # Commit to the default device: committed and uncommitted arrays compile separately.
    (default,) = jnp.zeros(()).devices()
    return jax.device_put(tree, default)


def split(tree: PyTree, mesh: Mesh | None) -> PyTree:
    """Splits a model over the mesh's axis "model": each leaf along the longest of its axes that this divides.

    Of axes as long as each other it is the last, the fan-out. Leaves without such an axis, and those of less than 1,024
    weights, are whole on every device. Any other sharding works as well: this one suits models whose layers are alike.

    Args:
      tree: a pytree of arrays.
      mesh: from `make_mesh`, or None for the default device.

    Returns:
      The same tree of `jax.Array`.
    """
    if mesh is None:
        return replicate(tree, None)
    parts = mesh.shape.get(MODEL, 1)

    def spec(shape: tuple[int, ...]) -> PartitionSpec:
        longest = max((size for size in shape if size % parts == 0), default=0)
        if parts == 1 or not longest or math.prod(shape) < _LEAST_SPLIT:
            return PartitionSpec()
        axis = max(axis for axis, size in enumerate(shape) if size == longest)
        return PartitionSpec(*[None] * axis, MODEL)

    return jax.tree.map(lambda leaf: arrays.to_devices(leaf, NamedSharding(mesh, spec(leaf.shape))), tree)


def mesh_of(tree: PyTree) -> Mesh | None:
    """The mesh that a model's leaves are sharded or replicated over, if they are on several devices.

    Args:
      tree: a pytree of arrays.

    Returns:
      The mesh of the first leaf with a `NamedSharding` over several devices, or None.
    """
    for leaf in jax.tree.leaves(tree):
        if isinstance(leaf, jax.Array) and isinstance(leaf.sharding, NamedSharding) and leaf.sharding.mesh.size > 1:
            return automatic(cast(Mesh, leaf.sharding.mesh))
    return None


def automatic(mesh: Mesh) -> Mesh:
    """The same mesh with axes over which the compiler shards by itself, as compiled functions here need them."""
    return Mesh(mesh.devices, mesh.axis_names, axis_types=(AxisType.Auto,) * mesh.devices.ndim)


def mesh_for(mesh: Mesh | None, tree: PyTree) -> Mesh | None:
    """The mesh to train on: the given one, or that of a model whose leaves are on several devices."""
    return mesh_of(tree) if mesh is None else automatic(mesh)


def place(tree: PyTree, mesh: Mesh | None) -> PyTree:
    """Puts a model on the mesh: leaves that are sharded over its devices stay so, all others become whole on each.

    Args:
      tree: a pytree of arrays.
      mesh: a mesh, or None for the default device.

    Returns:
      The same tree of `jax.Array`; a leaf that is in its place already is not copied.
    """
    if mesh is None:
        return replicate(tree, None)
    devices = list(mesh.devices.flat)

    def placed(leaf: Any) -> Any:
        if not isinstance(leaf, jax.Array) or leaf.sharding.device_set != set(devices):
            return replicate(leaf, mesh)
        if isinstance(leaf.sharding, NamedSharding):
            own = automatic(cast(Mesh, leaf.sharding.mesh))
            if list(own.devices.flat) != devices:  # compiled functions take one order of them
                own = Mesh(mesh.devices.reshape(own.devices.shape), own.axis_names, axis_types=own.axis_types)
            return arrays.to_devices(leaf, NamedSharding(own, leaf.sharding.spec))
        return leaf

    return jax.tree.map(placed, tree)


def bytes_of_one(tree: PyTree) -> int:
    """The bytes of a pytree of `jax.Array` that one device holds.

    >>> bytes_of_one({"w": jnp.zeros((2, 3), jnp.float32)})
    24
    """
    return sum(math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def put_batch(tree: PyTree, sharding: NamedSharding | None) -> PyTree:
    """Puts a batch that every process has whole on the devices: split, or whole on each if the parts do not divide it.

    Args:
      tree: a pytree of arrays with the batch as their first axis.
      sharding: from `batch_sharding`; None: the batch stays as it is.

    Returns:
      The same tree.
    """
    if sharding is None:
        return tree
    whole, count = NamedSharding(sharding.mesh, PartitionSpec()), parts_of(sharding)[1]
    return jax.tree.map(lambda leaf: arrays.to_devices(leaf, whole if leaf.shape[0] % count else sharding), tree)


def shard_batch(tree: PyTree, sharding: NamedSharding | None) -> PyTree:
    """Splits a batch over a mesh, inside a compiled function or outside of one.

    Args:
      tree: a pytree of arrays with the batch as their first axis.
      sharding: from `batch_sharding`; None: the batch stays as it is.

    Returns:
      The same tree with the same values.
    """
    return tree if sharding is None else jax.lax.with_sharding_constraint(tree, sharding)
