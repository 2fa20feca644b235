"""A mesh of devices for data parallelism: batches split over the axis "data", parameters on every device.

Every function takes `None` for "no mesh", which means the default device.
"""

from collections.abc import Sequence
from typing import Any

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
    # Said aloud, so that arrays from everywhere meet compiled functions alike and compile them once.
    (default,) = jnp.zeros(()).devices()
    return jax.device_put(tree, default)


def shard_batch(tree: PyTree, mesh: Mesh | None) -> PyTree:
    """Splits a batch over the mesh, inside a compiled function or outside of one.

    Args:
      tree: a pytree of arrays with the batch as their first axis.
      mesh: a mesh from `data_mesh` whose size divides the batch, or None to leave the batch as it is.

    Returns:
      The same tree with the same values.
    """
    if mesh is None:
        return tree
    return jax.lax.with_sharding_constraint(tree, batch_sharding(mesh))
