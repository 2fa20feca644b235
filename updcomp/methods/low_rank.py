"""Low-rank updates: W_new = W + U V^T, trained from the frozen deployed weights.

Chen et al.: Update Compression for Deep Neural Networks on the Edge (CVPR Workshops 2022, arXiv 2203.04516).
"""

import jax
import numpy as np

from updcomp import factorize, quantize
from updcomp.methods import base
from updcomp.training.loop import Task
from updcomp.trees import PyTree
from updcomp.wire import packet
from updcomp.wire.errors import Error
from updcomp.wire.packet import Packet


def low_rank(*, rank: int, bits: int = 8, aux: int | None = 16, rate: float = 10.0) -> base.Method:
    """Trains and sends two factors per kernel, as integers whose product the device forms exactly.

    Args:
      rank: columns of each factor, at least 1; a kernel gets at most min(fan_in, fan_out).
      bits: of each factor's entries, rounded straight-through.
      aux: bits of the aux leaves' deltas; None leaves them as deployed.
      rate: multiplies the task's learning rate.

    Returns:
      A method.

    Raises:
      Error: an option is out of range.

    Paper: Update Compression, section 3.
    """
    base.check_options(bits=bits, aux=aux)
    if not isinstance(rank, int) or rank < 1:
        raise Error(f"rank: expected at least 1, found {rank}")

    def factored(factors: dict[str, factorize.Factors], frozen: dict[str, PyTree]) -> dict[str, jax.Array]:
        def kernel(name: str, pair: factorize.Factors) -> jax.Array:
            deployed = base.deployed_kernel(frozen, name)
            return deployed + factorize.product(factorize.quantized(pair, bits), deployed.shape)

        return {name: kernel(name, pair) for name, pair in factors.items()}

    plan = base.plan("low_rank", factored, aux)

    def method(key: jax.Array, deployed: PyTree, task: Task) -> Packet:
        parts = base.split(deployed, aux=aux)
        train_key, *keys = jax.random.split(key, 1 + len(parts.kernels))
        named = zip(keys, parts.kernels.items(), strict=True)
        factors = {name: factorize.init(init_key, kernel.shape, rank) for init_key, (name, kernel) in named}
        fitted = base.train(train_key, task, plan, deployed, parts, factors, rate=rate)
        blocks: dict[str, packet.Block] = base.aux_blocks(deployed, fitted, aux)
        for name, pair in fitted.trainable["kernels"].items():
            steps = [quantize.dynamic_step(factor, bits) for factor in pair]
            left, right = (
                quantize.to_integers(np.asarray(factor), bits, step=float(step))[0]
                for factor, step in zip(pair, steps, strict=True)
            )
            blocks[name] = packet.Factors(left, right, float(factorize.product_step(*steps)))
        return Packet(blocks)

    return method
