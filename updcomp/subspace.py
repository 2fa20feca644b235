"""Updates inside a basis that both sides derive from the deployed weights: W_new = W + A C B^T, only C is sent."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from updcomp.trees import kernels, matrix_shape, to_model
from updcomp.wire import basis
from updcomp.wire.errors import Error


class Basis(NamedTuple):
    """What both sides hold for one kernel: near-orthonormal columns."""

    left: jax.Array  # A, float32 (fan_in, min(rank, fan_in))
    right: jax.Array  # B, float32 (fan_out, min(rank, fan_out))


def bases(deployed: Any, rank: int, *, seed: int = 0) -> dict[str, Basis]:
    """The bases of all kernels of a deployed model, exactly as the device will derive them.

    Args:
      deployed: pytree of arrays.
      rank: number of columns asked for; a kernel gets at most `basis.max_rank` of its shape.
      seed: of the random start of the range finder; the packet's seed.

    Returns:
      Kernel name -> `Basis`.

    Raises:
      Error: the rank is below 1.

    >>> bases({"w": jnp.eye(6, 4)}, rank=2)["w"].left.shape
    (6, 2)
    """
    if rank < 1:
        raise Error(f"rank: expected at least 1, found {rank}")
    model, wanted = to_model(deployed), kernels(deployed)
    found = {}
    for index, (name, leaf) in enumerate(model.items()):
        if name in wanted:
            columns = basis.of(leaf, min(rank, basis.max_rank(leaf.shape)), seed=seed, index=index)
            found[name] = Basis(*(jnp.asarray(side * 2.0**-basis.FRACTION, jnp.float32) for side in columns))
    return found


def update(coefficients: jax.Array, of: Basis, shape: tuple[int, ...]) -> jax.Array:
    """The update A C B^T in the shape of its kernel.

    Args:
      coefficients: float32 (A's columns, B's columns).
      of: the kernel's basis.
      shape: of the kernel.

    Returns:
      float32 array of that shape.
    """
    return (of.left @ coefficients @ of.right.T).reshape(shape)


def project(delta: jax.Array, of: Basis) -> jax.Array:
    """The coefficients of the part of an update that lies in the basis: C = A^T delta B.

    Args:
      delta: a kernel's update.
      of: the kernel's basis.

    Returns:
      float32 (A's columns, B's columns); `update` of it is the projection of delta, as far as the basis is orthonormal.
    """
    return of.left.T @ delta.reshape(matrix_shape(delta.shape)) @ of.right
