"""Transformers of any size on a mesh, whose weights each device can make by itself, for `bench_scale`."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from updcomp import partition, trees
from updcomp.partition import KERNEL
from updcomp.training import Task, devices
from updcomp.training.language_model import language_model
from updcomp.training.optimizers import OptimizerFactory
from updcomp.training.plans import Named
from updcomp.training.transformer import transformer
from updcomp.trees import PyTree

ROWS, LENGTH, VOCABULARY, HEADS = 8, 32, 1024, 8


class Size(NamedTuple):
    """A transformer of bfloat16 weights."""

    width: int
    depth: int


# Of the same depth, so that all but the smallest have as many leaves.
SIZES = {"tiny": Size(32, 2), "10M": Size(256, 12), "100M": Size(832, 12), "1B": Size(2624, 12)}


class Way(NamedTuple):
    """A sparse training, the last one of `methods.partial`."""

    share: float  # of the blocks, the last ones, whose kernels train
    optimizer: OptimizerFactory
    state: int  # bytes of optimizer state for each weight that trains

    def takes(self, weights: int) -> int:
        """About how many bytes the process takes, of all devices together."""
        held, trained = 5, 24 + self.state  # for each weight, and for each that trains; temporaries are half of these
        return int(weights * (held + self.share * trained))


WAYS = {"a quarter of the blocks, SGD": Way(0.25, optax.sgd, 0), "all blocks, Adam": Way(1.0, optax.adam, 8)}


class Scene(NamedTuple):
    """A deployed model on its devices."""

    mesh: Mesh
    network: Any  # a Transformer
    deployed: PyTree
    names: list[str]  # of its kernels
    largest: int  # weights of the largest leaf

    @property
    def kernels(self) -> Named:
        """The kernels by name."""
        leaves = trees.named_leaves(self.deployed)
        return {name: leaves[name] for name in self.names}


def scene_of(size: Size, mesh: str) -> Scene:
    """A deployed model of this size.

    Args:
      size: of the transformer.
      mesh: as in `scale_cells.measure`.

    Returns:
      A `Scene`.
    """
    count = int(mesh.removeprefix("data"))
    by_data = mesh.startswith("data")
    grid = devices.make_mesh(jax.devices()[:count], model=1 if by_data else count)
    half: dict[str, Any] = {"dtype": jnp.bfloat16, "param_dtype": jnp.bfloat16}
    network = transformer(vocabulary=VOCABULARY, **size._asdict(), heads=HEADS, length=LENGTH, **half)
    shapes = jax.eval_shape(network.init, jax.random.key(0))

    def placed(leaf: jax.Array) -> jax.Array:
        return jax.device_put(leaf, fully_sharded(grid, leaf.shape)) if by_data else devices.split(leaf, grid)

    # Leaf by leaf, so that never more than one is whole.
    leaves = {
        name: placed(_weights(leaf.shape, np.uint32(number), norm=leaf.ndim == 1))
        for number, (name, leaf) in enumerate(trees.named_leaves(shapes).items())
    }
    deployed = trees.replace(shapes, leaves)
    kernels = partition.of(deployed, axes=network.axes).of_role(KERNEL)
    return Scene(grid, network, deployed, [leaf.name for leaf in kernels], max(leaf.size for leaf in leaves.values()))


def fully_sharded(mesh: Mesh, shape: tuple[int, ...]) -> NamedSharding:
    """A leaf's longest axis that divides, split over the axis of the mesh that batches are split over."""
    parts = mesh.shape[devices.DATA]
    longest = max((size for size in shape if size % parts == 0), default=0)
    axis = shape.index(longest) if longest else None
    spec = PartitionSpec() if axis is None else PartitionSpec(*[None] * axis, devices.DATA)
    return NamedSharding(mesh, spec)


def hashed(shape: tuple[int, ...], seed: Any) -> jax.Array:
    """uint32 that look random, of the flat index of each element alone: every sharding gives the same."""
    index = jnp.full(shape, jnp.asarray(seed, jnp.uint32) * np.uint32(0x9E3779B9))
    stride = 1
    for axis in reversed(range(len(shape))):
        index = index + jax.lax.broadcasted_iota(jnp.uint32, shape, axis) * np.uint32(stride)
        stride *= shape[axis]
    for shift, factor in ((16, 0x7FEB352D), (15, 0x846CA68B)):
        index = (index ^ (index >> shift)) * np.uint32(factor)
    return index ^ (index >> 16)


def uniform(shape: tuple[int, ...], seed: Any) -> jax.Array:
    """float32 from 0 to below 1."""
    return (hashed(shape, seed) >> 8).astype(jnp.float32) * np.float32(2**-24)


@functools.partial(jax.jit, static_argnames=("shape", "norm"))
def _weights(shape: tuple[int, ...], seed: Any, *, norm: bool) -> jax.Array:
    values = jnp.ones(shape, jnp.float32) if norm else 0.06 * (uniform(shape, seed) - 0.5)
    return values.astype(jnp.bfloat16)


def task_of(network: Any, epochs: int, optimizer: OptimizerFactory) -> Task:
    """One step an epoch, on random text."""
    generator = np.random.default_rng(0)
    text = jax.device_put(
        {
            "tokens": generator.integers(0, VOCABULARY, (ROWS, LENGTH + 1)).astype(np.uint16),
            "mask": np.ones((ROWS, LENGTH), bool),
        }
    )
    objective = language_model(network.apply)
    options: dict[str, Any] = {"batch_size": ROWS, "axes": network.axes}
    return Task(objective, text, text, optimizer, 1e-3, epochs=epochs, **options)
