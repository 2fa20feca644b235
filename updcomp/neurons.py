"""Which neurons train under a budget: how fast they change, what they cost, and the choice.

A neuron is a column of a kernel, with its bias where it has one: see `layers.find`.

Quelennec et al.: Towards On-device Learning on the Edge: Ways to Select Neurons to Update under a Budget Constraint
(WACV Workshops 2024, arXiv 2312.05282). Bragagnolo et al.: To update or not to update? Neurons at equilibrium (NeurIPS
2022).
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from updcomp.layers import Layer
from updcomp.wire.errors import Error

MU = 0.5  # how much of its velocity a neuron keeps, in the paper
_FLOAT = 4  # bytes

Choice = dict[str, np.ndarray]
"""name of a kernel or a bias -> int32 (k,), ascending: the numbers of the neurons that train"""

Counts = Mapping[str, int]
"""name of a kernel or a bias -> how many of its columns train"""


def similarity(before: jax.Array, after: jax.Array) -> jax.Array:
    """How alike a layer's outputs are in two states of a model.

    phi_j = mean_n cos(before[n, :, j], after[n, :, j]), the cosine over space; where a neuron has one output a sample,
    phi_j = cos(before[:, 0, j], after[:, 0, j]), the cosine over samples. Where both are zero it is 1, as a dead neuron
    does not change; where one is, 0.

    Two departures: with one output a sample the paper's cosine would be a sign; and outputs are taken before the bias.

    Args:
      before: float (samples, positions, neurons), as `layers.outputs` gives it.
      after: the same of the other state.

    Returns:
      float32 (neurons,), from -1 to 1.

    Paper: Quelennec et al. (2024), section 3.

    >>> similarity(jnp.array([[[1.0, 0.0]], [[1.0, 0.0]]]), jnp.array([[[2.0, 0.0]], [[2.0, 0.0]]])).tolist()
    [1.0, 1.0]
    """
    if before.shape != after.shape or before.ndim != 3:
        expected = "expected two arrays (samples, positions, neurons) of the same shape"
        raise Error(f"outputs: {expected}, found {before.shape} and {after.shape}")
    before, after = before.astype(jnp.float32), after.astype(jnp.float32)
    if before.shape[1] == 1:
        before, after = before.swapaxes(0, 1), after.swapaxes(0, 1)
    # Scaled first, as squares of small and large outputs leave the range of floats.
    before, after = _scaled(before), _scaled(after)
    norms = jnp.sqrt(jnp.sum(before**2, axis=1)), jnp.sqrt(jnp.sum(after**2, axis=1))
    product = jnp.sum(before * after, axis=1)
    zero = norms[0] * norms[1] == 0
    cosine = product / jnp.where(zero, 1.0, norms[0] * norms[1])
    return jnp.mean(jnp.where(zero, (norms[0] == norms[1]).astype(jnp.float32), jnp.clip(cosine, -1.0, 1.0)), axis=0)


def _scaled(outputs: jax.Array) -> jax.Array:
    largest = jnp.max(jnp.abs(outputs), axis=1, keepdims=True)
    return outputs / jnp.where(largest == 0, 1.0, largest)


class Velocity(NamedTuple):
    """How a layer's neurons move."""

    similarity: jax.Array  # float32 (neurons,): phi of the last epoch
    value: jax.Array  # float32 (neurons,): v


def at_rest(neurons: int) -> Velocity:
    """The velocity before the first epoch: phi = 1, as the outputs equal themselves, and v = 0."""
    return Velocity(jnp.ones(neurons, jnp.float32), jnp.zeros(neurons, jnp.float32))


def accelerate(velocity: Velocity, new: jax.Array, *, mu: float = MU) -> Velocity:
    """The velocity after one more epoch: v_t = (phi_t - phi_{t-1}) - mu v_{t-1}.

    Args:
      velocity: after the epoch before.
      new: float32 (neurons,): phi_t, of the outputs after this epoch and those after the one before.
      mu: from 0 to 1.

    Returns:
      The new velocity. A small |v| says that the neuron is at equilibrium.

    Raises:
      Error: mu is out of range.

    Paper: Quelennec et al. (2024), section 3; Bragagnolo et al. (2022), equation 4.

    >>> accelerate(accelerate(at_rest(1), jnp.array([0.5])), jnp.array([1.0])).value.tolist()
    [0.75]
    """
    if not 0 <= mu <= 1:
        raise Error(f"mu: expected from 0 to 1, found {mu}")
    return Velocity(new, (new - velocity.similarity) - mu * velocity.value)


class Cost(NamedTuple):
    """What training takes, or may take."""

    weights: float = math.inf  # that train at a time
    flops: float = math.inf  # of the backward pass of a batch
    memory: float = math.inf  # bytes at its peak: weights that train, gradients, optimizer state, activations

    def within(self, limits: "Cost") -> bool:
        """Whether none of the three is above its limit."""
        return all(own <= limit for own, limit in zip(self, limits, strict=True))


class Memory(NamedTuple):
    """How the bytes of a training step follow from its layers: two factors that a compiler's report tells."""

    per_weight: float  # bytes of each weight that trains: itself, its gradient, the optimizer's state
    forward: float  # times the input and output of the layer that is computed
    backward: float  # times those of the layer whose gradient is computed
    microbatches: int = 1  # parts of a batch that are computed one after another


def whole(layers: Sequence[Layer]) -> dict[str, int]:
    """How many columns each kernel and bias has."""
    return {name: layer.neurons for layer in layers for name in (layer.kernel, layer.bias) if name}


def weights(layers: Sequence[Layer], counts: Counts) -> int:
    """How many weights so many columns have: sum of fan_in k, and k of the bias."""
    kernels = sum(layer.fan_in * counts.get(layer.kernel, 0) for layer in layers)
    return kernels + sum(counts.get(layer.bias, 0) for layer in layers if layer.bias)


def cost(layers: Sequence[Layer], counts: Counts, memory: Memory) -> Cost:
    """What a step costs that trains so many neurons of each layer.

    weights = sum of fan_in k + (k if it has a bias). Backward FLOPs: a chosen column takes its share of one product as
    large as the forward one; every layer above the lowest that trains takes one more, to hand the gradient on. Peak
    memory: bytes of what trains, and the largest, over the layers, of what is kept at that time (inputs of kernels that
    train, a byte for each output that a gradient passes) and `forward` or `backward` times the layer's own activations,
    all of that for one microbatch.

    Args:
      layers: of the model, in order.
      counts: name -> columns that train; 0 where it is missing.
      memory: the factors.

    Returns:
      A `Cost`.
    """
    trained = [counts.get(layer.kernel, 0) for layer in layers]
    biases = [counts.get(layer.bias, 0) if layer.bias else 0 for layer in layers]
    lowest = next((i for i, both in enumerate(zip(trained, biases, strict=True)) if any(both)), len(layers))
    size = weights(layers, counts)
    flops = sum(layer.flops * k / layer.neurons for layer, k in zip(layers, trained, strict=True))
    flops += sum(layer.flops for layer in layers[lowest + 1 :])
    kept, peak, inputs = 0.0, 0.0, set()
    for i, (layer, k) in enumerate(zip(layers, trained, strict=True)):
        own = layer.input_bytes + _FLOAT * layer.output_size
        peak = max(peak, kept + own * (memory.backward if i >= lowest else memory.forward))
        if k and layer.input not in inputs:
            inputs.add(layer.input)
            kept += layer.input_bytes
        if i > lowest:
            kept += layer.output_size
    return Cost(size, flops, memory.per_weight * size + peak / memory.microbatches)


def fit_memory(layers: Sequence[Layer], *, per_weight: float, forward_bytes: float, training_bytes: float) -> Memory:
    """The factors that explain what a compiler reports.

    Args:
      layers: of the model.
      per_weight: bytes of each weight that trains.
      forward_bytes: peak of the forward pass alone.
      training_bytes: peak of training all neurons, without the bytes of the weights.

    Returns:
      `Memory`; its `backward` is no less than its `forward`.
    """
    own = max(layer.input_bytes + _FLOAT * layer.output_size for layer in layers)
    forward, low, high = forward_bytes / own, 0.0, 1024.0
    for _ in range(40):
        middle = (low + high) / 2
        if cost(layers, whole(layers), Memory(0.0, forward, middle)).memory < training_bytes:
            low = middle
        else:
            high = middle
    return Memory(per_weight, forward, max(high, forward))


CostOf = Callable[[Counts], Cost]


def choose(
    layers: Sequence[Layer],
    scores: Mapping[str, np.ndarray],
    limits: Cost,
    cost_of: CostOf,
    *,
    prices: Mapping[str, float] | None = None,
    ties: np.random.Generator | None = None,
) -> Choice:
    """The neurons with the largest score for their price that fit the limits together.

    They are taken in order of score / price; where one does not fit any more, its layer is closed, and the others go
    on. Equal ones are in random order, or in that of the program.

    Args:
      layers: of the model, in order.
      scores: kernel's name -> float (neurons,); -inf and missing kernels are not for choice.
      limits: of the whole choice, in absolute numbers.
      cost_of: what a choice costs, such as `lambda counts: Cost(weights=weights(layers, counts))`.
      prices: kernel's name -> price of a neuron; default its number of weights.
      ties: draws the order of equal ones.

    Returns:
      The choice; a neuron's bias goes with it. Empty where nothing fits.

    Raises:
      Error: a score is NaN or has another shape.

    Paper: Quelennec et al. (2024), section 3 (budgeted selection): scores |v|, price the number of weights.
    """
    found: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
    for place, layer in enumerate(layers):
        own = np.asarray(scores.get(layer.kernel, np.full(layer.neurons, -np.inf)), np.float64)
        if own.shape != (layer.neurons,) or np.isnan(own).any():
            expected = f"expected {layer.neurons} numbers, one for each neuron"
            raise Error(
                f"scores: {layer.kernel!r}: {expected}, found {own.dtype} {own.shape} with NaN or of this shape"
            )
        price = layer.fan_in + (layer.bias is not None) if prices is None else prices.get(layer.kernel, 1.0)
        numbers = np.flatnonzero(own > -np.inf)
        found.append((own[numbers] / price, np.full(len(numbers), place), numbers))
    ratio, places, numbers = (np.concatenate(part) for part in zip(*found, strict=True))
    tie = np.arange(len(ratio)) if ties is None else ties.permutation(len(ratio))
    order = np.lexsort((tie, -ratio))
    taken = _take(layers, places[order], limits, cost_of)
    choice: Choice = {}
    for place, layer in enumerate(layers):
        own = np.sort(numbers[order][taken & (places[order] == place)]).astype(np.int32)
        if len(own):
            choice |= {name: own for name in (layer.kernel, layer.bias) if name}
    return choice


def _take(layers: Sequence[Layer], places: np.ndarray, limits: Cost, cost_of: CostOf) -> np.ndarray:
    """Which neurons of a queue fit, by the layer of each: its longest beginning, then those of other layers."""
    taken = np.zeros(len(places), bool)
    rest = np.arange(len(places))

    def fits(length: int) -> bool:
        counts = np.bincount(np.append(places[taken], places[rest[:length]]), minlength=len(layers))
        named = {
            name: int(k) for layer, k in zip(layers, counts, strict=True) for name in (layer.kernel, layer.bias) if name
        }
        return cost_of(named).within(limits)

    while len(rest):
        low, high = 0, len(rest)
        while low < high:
            middle = (low + high + 1) // 2
            low, high = (middle, high) if fits(middle) else (low, middle - 1)
        taken[rest[:low]] = True
        if low == len(rest):
            break
        rest = rest[low:][places[rest[low:]] != places[rest[low]]]
    return taken


def choose_by_depth(
    layers: Sequence[Layer],
    scores: Mapping[str, np.ndarray],
    limits: Cost,
    cost_of: CostOf,
    *,
    ties: np.random.Generator | None = None,
) -> Choice:
    """The choice with the largest sum of scores that is found under the limits, since depth costs.

    What a neuron costs depends on the others: the first one of a layer keeps that layer's input, and the lowest one
    sends the gradient through all layers above. So for every layer in turn the neurons from there on compete, each at
    the price of its share of what its layer adds to the cost, as a part of the scarcest limit; the best end is taken.

    Args:
      layers: of the model, in order.
      scores: kernel's name -> float (neurons,), at least 0, that add up: such as the expected decrease of the loss.
      limits: of the whole choice.
      cost_of: what a choice costs.
      ties: draws the order of equal ones.

    Returns:
      The choice; empty where nothing fits.
    """

    def total(choice: Choice) -> float:
        return sum(float(np.sum(own[choice[name]])) for name, own in scores.items() if name in choice)

    choices = [choose(layers, scores, limits, cost_of, ties=ties)]
    for lowest, layer in enumerate(layers):
        base = cost_of({layer.kernel: 1})
        if layer.kernel not in scores or not base.within(limits):
            continue
        prices = {}
        for other in layers[lowest:]:
            more = cost_of(
                {layer.kernel: 1, other.kernel: other.neurons, **({other.bias: other.neurons} if other.bias else {})}
            )
            shares = [
                (new - old) / limit for new, old, limit in zip(more, base, limits, strict=True) if 0 < limit < math.inf
            ]
            prices[other.kernel] = max(max(shares, default=1.0) / other.neurons, 1e-12)
        above = {other.kernel: scores[other.kernel] for other in layers[lowest:] if other.kernel in scores}
        choice = choose(layers, above, limits, cost_of, prices=prices, ties=ties)
        choices.append(choice)
    return max(choices, key=total)


def smallest(layers: Sequence[Layer], cost_of: CostOf) -> Cost:
    """The least of each currency that a choice of one neuron takes."""
    costs = [cost_of({layer.kernel: 1, **({layer.bias: 1} if layer.bias else {})}) for layer in layers]
    return Cost(*(min(values) for values in zip(*costs, strict=True)))
