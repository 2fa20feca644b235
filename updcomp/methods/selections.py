"""Ways to select the neurons that train: by name, each a function of what is known before an epoch."""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np

from updcomp import arrays, neurons
from updcomp.layers import Layer
from updcomp.neurons import Choice, Cost, CostOf, Velocity

_BIASES = 0.5  # share of the layers whose biases the static scheme trains
_RATIOS = tuple(2.0**-i for i in range(8))  # of the neurons of a layer, in the static scheme
_GRADIENT_SHARE = 0.9  # of the gradient norm: what the layers hold that a layer ranking keeps

Scores = dict[str, np.ndarray]  # kernel's name -> float (neurons,)


class Scene(NamedTuple):
    """What is known before an epoch."""

    layers: tuple[Layer, ...]
    limits: Cost
    cost_of: CostOf
    generator: np.random.Generator  # of this epoch
    velocity: Mapping[str, Velocity] | None  # None before the first epoch
    gradients: Callable[[], Scores]  # mean squared gradient of each neuron now
    first_gradients: Callable[[], Scores]  # of the deployed model


class Selection(NamedTuple):
    """A way to select neurons."""

    choose: Callable[[Scene], Choice]
    again: bool  # before every epoch; else once
    moves: bool = False  # whether it needs velocities
    limited: bool = True  # whether it keeps to a budget


def _random(scene: Scene) -> Choice:
    scores = {layer.kernel: scene.generator.random(layer.neurons) for layer in scene.layers}
    return neurons.choose(scene.layers, scores, scene.limits, scene.cost_of, prices=dict.fromkeys(scores, 1.0))


def _by_velocity(scene: Scene) -> Choice:
    """The first epoch, in which nothing has moved yet, is random."""
    if scene.velocity is None:
        return _random(scene)
    scores = {name: np.abs(arrays.to_host(velocity.value)) for name, velocity in scene.velocity.items()}
    return neurons.choose(scene.layers, scores, scene.limits, scene.cost_of, ties=scene.generator)


def _by_gradient(scene: Scene) -> Choice:
    scores = {name: np.sqrt(squares) for name, squares in scene.gradients().items()}
    return neurons.choose(scene.layers, scores, scene.limits, scene.cost_of, ties=scene.generator)


def _by_layer(scene: Scene) -> Choice:
    """Layers ranked by gradient norm for their cost, once; of those that hold most of it, neurons drawn anew."""
    squares = scene.first_gradients()
    norms = {name: float(np.sqrt(np.sum(own))) for name, own in squares.items()}
    bytes_of = {layer.kernel: layer.input_bytes + 4.0 * layer.fan_in * layer.neurons for layer in scene.layers}
    ranked = sorted(norms, key=lambda name: -norms[name] / bytes_of[name])
    held, kept = 0.0, []
    for name in ranked:
        kept.append(name)
        held += norms[name]
        if held >= _GRADIENT_SHARE * sum(norms.values()):
            break
    scores = {layer.kernel: scene.generator.random(layer.neurons) for layer in scene.layers if layer.kernel in kept}
    prices = {layer.kernel: 1.0 for layer in scene.layers}
    return neurons.choose(scene.layers, scores, scene.limits, scene.cost_of, prices=prices)


def _static(scene: Scene) -> Choice:
    """The biases of the last layers, and the largest ratio of weights that fits of each of these, best rewarded first.

    Lin et al. search for both off the device; here the reward is the squared gradient of the deployed model per weight.
    """
    rewards = {name: float(np.mean(own)) for name, own in scene.first_gradients().items()}
    last = scene.layers[-max(1, round(_BIASES * len(scene.layers))) :]
    choice: Choice = {}
    for layer in reversed(last):
        bias = {layer.bias: np.arange(layer.neurons, dtype=np.int32)} if layer.bias else {}
        choice |= bias if _fits(scene, {**choice, **bias}) else {}
    for layer in sorted(last, key=lambda layer: -rewards[layer.kernel] / layer.fan_in):
        for ratio in _RATIOS:
            kernel = {layer.kernel: np.arange(max(1, int(ratio * layer.neurons)), dtype=np.int32)}
            if _fits(scene, {**choice, **kernel}):
                choice |= kernel
                break
    return choice


def _fits(scene: Scene, choice: Choice) -> bool:
    return scene.cost_of({name: len(numbers) for name, numbers in choice.items()}).within(scene.limits)


def _everything(scene: Scene) -> Choice:
    return {name: np.arange(count, dtype=np.int32) for name, count in neurons.whole(scene.layers).items()}


def _classifier(scene: Scene) -> Choice:
    return {name: np.arange(count, dtype=np.int32) for name, count in neurons.whole(scene.layers[-1:]).items()}


def _by_depth(scene: Scene) -> Choice:
    return neurons.choose_by_depth(scene.layers, scene.gradients(), scene.limits, scene.cost_of, ties=scene.generator)


SELECTIONS: dict[str, Selection] = {
    "velocity": Selection(_by_velocity, again=True, moves=True),
    "random": Selection(_random, again=True),
    "fixed": Selection(_random, again=False),
    "gradient": Selection(_by_gradient, again=True),
    "layers": Selection(_by_layer, again=True),
    "static": Selection(_static, again=False),
    "depth": Selection(_by_depth, again=True),
    "classifier": Selection(_classifier, again=False, limited=False),
    "full": Selection(_everything, again=False, limited=False),
}
