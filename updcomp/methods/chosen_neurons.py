"""Training some neurons under a budget, as a device does that has little memory: only they have gradients.

Quelennec et al.: Towards On-device Learning on the Edge: Ways to Select Neurons to Update under a Budget Constraint
(WACV Workshops 2024, arXiv 2312.05282).
"""

import dataclasses

import jax

from updcomp.methods import base
from updcomp.methods.neuron_budgets import Budget, Options, Outcome, Share
from updcomp.methods.neuron_training import NeuronTraining
from updcomp.methods.selections import SELECTIONS
from updcomp.training.tasks import Task
from updcomp.trees import PyTree
from updcomp.wire.errors import Error
from updcomp.wire.packet import Packet


def neurons(
    *,
    selection: str = "depth",
    weights: Share | None = None,
    flops: Share | None = None,
    memory: Share | None = None,
    bits: int = 8,
    rate: float = 1.0,
    probe: int = 64,
    shapes: int = 4,
    microbatches: int = 1,
) -> "Neurons":
    """Trains the neurons that a budget allows, chosen anew as training goes on, and sends their columns.

    Only chosen columns have gradients and an optimizer's state, nothing below the lowest of them is differentiated, and
    only what their gradients need is kept. Norms' scales and statistics, and kernels that are in no layer, stay as
    deployed.

    At least one budget is needed, except for "classifier" and "full"; several hold together, and `weights` alone bounds
    no memory. A budget is a whole number, or as a float from 0 to 1 a share of what training all neurons takes:

    - `weights` that train at a time, biases included (the paper's budget);
    - `flops` of the backward pass of a batch, as the compiler counts them;
    - `memory`, bytes at the peak of a step, as the compiler reports it: weights that train, their gradients and
      optimizer state, and activations, beside the model and the data.

    Args:
      selection: "velocity" (the paper's), "random" (drawn anew for each epoch), "fixed" (random, once), "gradient"
        (its norm per weight), "layers" (ranked by gradient norm for their cost, as TraDy has it, and neurons drawn
        anew), "static" (biases of the last layers and a ratio of their weights, as SU has it), "depth" (the largest
        gradients, since depth costs memory), or without budget "classifier" (the last layer) and "full".
      weights: see above; None: any number.
      flops: see above.
      memory: see above.
      bits: of each sent weight's delta, rounded after training.
      rate: multiplies the task's learning rate.
      probe: training samples by which neurons are chosen, always the first ones.
      microbatches: parts of a batch that are computed one after another: less memory for activations, more time. Shares
        stay those of training all neurons on whole batches.
      shapes: the most shapes of chosen columns that are compiled; later choices are cut to fit one of these.

    Returns:
      A method; its `train` gives an `Outcome`: the packet, what training took (`Spent`), and what training all neurons
      takes. Its first call raises an Error where the model
      has no layers, and for a budget in which not even one neuron fits; it names the smallest possible.

    Raises:
      Error: an option is out of range.

    Paper: Quelennec et al. (2024); SU: Lin et al., On-device training under 256KB memory (NeurIPS 2022); TraDy:
    Quelennec et al. (2025, arXiv 2510.19675).
    """
    base.check_options(bits=bits, aux=None, rate=rate)
    if not isinstance(selection, str) or selection not in SELECTIONS:
        raise Error(f"selection: expected one of {', '.join(SELECTIONS)}, found {selection!r}")
    budget = Budget(weights, flops, memory)
    budget.check()
    given = [name for name, share in budget._asdict().items() if share is not None]
    if SELECTIONS[selection].limited and not given:
        raise Error(
            f"selection: {selection}: expected a budget of weights, flops or memory, found none; give memory=0.5"
        )
    if given and not SELECTIONS[selection].limited:
        raise Error(f"selection: {selection}: expected no budget, since it has a cost of its own, found {given[0]}")
    for name, count in (("probe", probe), ("shapes", shapes), ("microbatches", microbatches)):
        if isinstance(count, bool) or not isinstance(count, int) or count < 1:
            raise Error(f"{name}: expected a whole number from 1 on, found {count!r}")
    return Neurons(Options(selection, budget, bits, rate, probe, shapes, microbatches))


@dataclasses.dataclass(frozen=True)
class Neurons:
    """A method of one training of chosen neurons; see `neurons` for its fields."""

    options: Options

    def __call__(self, key: jax.Array, deployed: PyTree, task: Task) -> Packet:
        """Trains an update."""
        return self.train(key, deployed, task).packet

    def train(self, key: jax.Array, deployed: PyTree, task: Task) -> Outcome:
        """Trains an update, and measures what that takes.

        Args:
          key: PRNG key.
          deployed: the model.
          task: what to train on, and how.

        Returns:
          `Outcome`.
        """
        return NeuronTraining(key, deployed, task, self.options).outcome()
