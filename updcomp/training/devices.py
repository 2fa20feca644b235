"""A mesh of devices for data parallelism: batches split over the axis "data", parameters on every device.

Every function takes `None` for "no mesh", which means the default device.
"""

from collections.abc import Sequence
from typing import Any, cast

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

PyTree = Any

AXIS = "data"


def data_mesh(devices: Sequence[jax.Device] | None = None) -> Mesh:
    """The devices in a row, along the one axis `"data"`.

    Args:
      devices: the devices to use; all of them by default.

    Returns:
      A mesh of shape `{"data": len(devices)}`; with one device every sharding below is trivial.

    >>> data_mesh(jax.devices()[:1]).shape["data"]
    1
    """
    devices = jax.devices() if devices is None else list(devices)
    return jax.make_mesh((len(devices),), (AXIS,), axis_types=(AxisType.Auto,), devices=devices)


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Splits the leading axis of an array evenly over the mesh.

    Args:
      mesh: a mesh from `data_mesh`.

    Returns:
      A sharding for arrays whose first axis is a multiple of the mesh's size.
    """
    return NamedSharding(mesh, PartitionSpec(AXIS))


def replicate(tree: PyTree, mesh: Mesh | None) -> PyTree:
    """Puts the whole of every leaf on every device of the mesh.

    Args:
      tree: a pytree of arrays.
      mesh: a mesh from `data_mesh`, or None for the default device.

    Returns:
      The same tree of `jax.Array`; a leaf that is in its place already is not copied.
    """
    if mesh is not None:
        return jax.device_put(tree, NamedSharding(mesh, PartitionSpec()))
    # Commit to the default device: committed and uncommitted arrays compile separately.
    (default,) = jnp.zeros(()).devices()
    return jax.device_put(tree, default)


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
    devices = set(mesh.devices.flat)

    def placed(leaf: Any) -> Any:
        if not isinstance(leaf, jax.Array) or leaf.sharding.device_set != devices:
            return replicate(leaf, mesh)
        if isinstance(leaf.sharding, NamedSharding):
            return jax.device_put(leaf, NamedSharding(automatic(cast(Mesh, leaf.sharding.mesh)), leaf.sharding.spec))
        return leaf

    return jax.tree.map(placed, tree)


def shard_batch(tree: PyTree, mesh: Mesh | None) -> PyTree:
    """Splits a batch over the mesh, inside a compiled function or outside of one.

    Args:
      tree: a pytree of arrays with the batch as their first axis.
      mesh: a mesh whose axis "data" divides the batch; without such an axis, or None, the batch stays as it is.

    Returns:
      The same tree with the same values.
    """
    if mesh is None or AXIS not in mesh.axis_names:
        return tree
    return jax.lax.with_sharding_constraint(tree, batch_sharding(mesh))
