"""Full updating: every weight is trained and sent."""

import jax

from updcomp.methods import base
from updcomp.training.loop import Task, model_of
from updcomp.trees import PyTree, to_model
from updcomp.wire.packet import Block, Dense, Packet, Raw


def full(
    *, bits: int | None = None, aux: int | None = 16, rate: float = 1.0, start: base.Start | None = None
) -> base.Method:
    """Sends every weight: raw, or as entropy-coded integers that training has rounded straight-through.

    Args:
      bits: of each weight's delta; None sends the new weights as they are.
      aux: bits of the aux leaves' deltas, which are raw as well if `bits` is None; None leaves them as deployed.
      rate: multiplies the task's learning rate.
      start: the model that training starts from; default the deployed one.

    Returns:
      A method.

    Raises:
      ValueError: an option is out of range.
    """
    base.check_options(bits=16 if bits is None else bits, aux=aux)
    plan = base.plan("full", base.quantised_delta(bits), aux)

    def method(key: jax.Array, deployed: PyTree, task: Task) -> Packet:
        parts = base.split(deployed, aux=aux)
        initial = base.started(start, key, aux=aux) if start else parts
        fitted = base.train(key, task, plan, deployed, initial, initial.kernels, rate=rate)
        if bits is None:
            new = model_of(plan, fitted.trainable, {"deployed": deployed}, fitted.statistics)
            return Packet(_raw(deployed, new))
        blocks: dict[str, Block] = base.aux_blocks(deployed, fitted, aux)
        for name, kernel in fitted.trainable["kernels"].items():
            blocks[name] = Dense(*base.delta_integers(parts.kernels[name], kernel, bits))
        return Packet(blocks)

    return method


def _raw(deployed: PyTree, new: PyTree) -> dict[str, Block]:
    old, model = to_model(deployed), to_model(new)
    return {name: Raw(leaf) for name, leaf in model.items() if leaf.tobytes() != old[name].tobytes()}
