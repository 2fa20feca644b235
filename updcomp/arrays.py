"""Arrays between the host and devices, whether one process has all of the devices or each of several has some.

Where devices belong to several processes, every process calls these functions with the same arguments at the same place
in its program, as it does any computation of JAX.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Sharding


def is_key(leaf: Any) -> bool:
    """Whether a leaf is an array of typed PRNG keys."""
    return isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def spans_devices(tree: Any) -> bool:
    """Whether a leaf of a pytree is on more than one device."""
    return any(isinstance(leaf, jax.Array) and len(leaf.sharding.device_set) > 1 for leaf in jax.tree.leaves(tree))


def to_host(leaf: Any) -> np.ndarray:
    """The whole of one array on this host; what is on devices of other processes is gathered from them.

    Args:
      leaf: any array, however it is sharded; typed PRNG keys give their key data.

    Returns:
      A NumPy array, which may share memory with the leaf.

    >>> to_host(jnp.arange(3)).tolist()
    [0, 1, 2]
    """
    if not isinstance(leaf, jax.Array):
        return np.asarray(leaf)
    data = jax.random.key_data(leaf) if is_key(leaf) else leaf
    if not (data.is_fully_addressable or data.is_fully_replicated):
        return np.asarray(multihost_utils.process_allgather(data, tiled=True))
    # np.asarray caches the host's copy in the jax.Array. A second one over the same buffers takes the cache with it.
    shards = [shard.data for shard in data.addressable_shards]
    return np.asarray(jax.make_array_from_single_device_arrays(data.shape, data.sharding, shards))


def to_devices(value: Any, sharding: Sharding) -> jax.Array:
    """One array with this sharding; each process transfers no more than what its own devices hold.

    Args:
      value: an array on the host or on one of this process's devices, the same in every process; or one that is on the
        sharding's devices already.
      sharding: where it goes.

    Returns:
      The array, with 64 bits as 32 unless JAX is told otherwise; one that is in its place already is not copied.
    """
    if sharding.is_fully_addressable:
        return jax.device_put(value, sharding)
    if is_key(value):
        placed = to_devices(jax.random.key_data(value), sharding)
        return jax.random.wrap_key_data(placed, impl=jax.random.key_impl(value))
    if isinstance(value, jax.Array) and not value.is_fully_addressable:
        return jax.device_put(value, sharding)
    host = np.asarray(value)
    host = host.astype(jax.dtypes.canonicalize_dtype(host.dtype), copy=False)
    return jax.make_array_from_callback(host.shape, sharding, lambda index: host[index])
