"""Updates in a basis that both sides derive from the deployed weights: only coefficients travel."""

import jax
import jax.numpy as jnp
import numpy as np

from updcomp import quantize
from updcomp import subspace as geometry
from updcomp.methods import base
from updcomp.training.loop import Task
from updcomp.trees import PyTree
from updcomp.wire.errors import Error
from updcomp.wire.packet import Block, Coefficients, Packet


def subspace(*, rank: int, bits: int = 2, aux: int | None = None, rate: float = 30.0) -> base.Method:
    """Trains W + A C B^T and sends the small integer matrix C of every kernel.

    A and B span the leading singular directions of the deployed kernel, found in integer arithmetic by both sides.

    Args:
      rank: columns of A and B (at most the kernel's own), at least 1; a kernel costs up to rank^2 coefficients.
      bits: of each coefficient, rounded straight-through.
      aux: bits of the aux leaves' deltas; None leaves them as deployed, which costs little accuracy here.
      rate: multiplies the task's learning rate; a coefficient moves many weights a little, so it wants to be high.

    Returns:
      A method.

    Raises:
      Error: an option is out of range.
    """
    base.check_options(bits=bits, aux=aux)
    if not isinstance(rank, int) or rank < 1:
        raise Error(f"rank: expected at least 1, found {rank}")

    def moved(coefficients: dict[str, jax.Array], frozen: dict[str, PyTree]) -> dict[str, jax.Array]:
        def kernel(name: str, matrix: jax.Array) -> jax.Array:
            deployed = base.deployed_kernel(frozen, name)
            rounded = quantize.straight_through(matrix, quantize.dynamic_step(matrix, bits), bits)
            return deployed + geometry.update(rounded, frozen["bases"][name], deployed.shape)

        return {name: kernel(name, matrix) for name, matrix in coefficients.items()}

    plan = base.plan("subspace", moved, aux)

    def method(key: jax.Array, deployed: PyTree, task: Task) -> Packet:
        parts = base.split(deployed, aux=aux)
        found = geometry.bases(deployed, rank)
        bases = {name: found[name] for name in parts.kernels}
        zeros = {name: jnp.zeros((pair.left.shape[1], pair.right.shape[1])) for name, pair in bases.items()}
        fitted = base.train(key, task, plan, deployed, parts, zeros, rate=rate, bases=bases)
        blocks: dict[str, Block] = base.aux_blocks(deployed, fitted, aux)
        for name, matrix in fitted.trainable["kernels"].items():
            step = float(quantize.dynamic_step(matrix, bits))
            values, step = quantize.to_integers(np.asarray(matrix), bits, step=step)
            blocks[name] = Coefficients(values, max(values.shape), step)
        return Packet(blocks)

    return method
