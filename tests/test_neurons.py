"""Velocities, costs and choices of neurons, against NumPy in float64 and slow counts."""

import functools
import itertools

import hypothesis
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import updcomp
from updcomp import neurons
from updcomp.layers import Layer
from updcomp.neurons import Cost, Memory, accelerate, at_rest, choose, choose_by_depth, cost, fit_memory, similarity
from updcomp.wire.views import View

NONE = Cost()
DENSE, CONV = (12, 1, 5), (4, 9, 5)  # samples, positions, neurons


def cosine(a, b):
    norms = np.linalg.norm(a), np.linalg.norm(b)
    return float(norms[0] == norms[1]) if 0 in norms else a @ b / norms[0] / norms[1]


def similarity_in_numpy(before, after):
    before, after = np.float64(before), np.float64(after)
    samples, positions, count = before.shape
    if positions == 1:
        return np.array([cosine(before[:, 0, j], after[:, 0, j]) for j in range(count)])
    return np.array([np.mean([cosine(before[n, :, j], after[n, :, j]) for n in range(samples)]) for j in range(count)])


def random(shape, seed=0):
    return np.random.default_rng([seed, *shape]).normal(size=shape).astype(np.float32)


@pytest.mark.parametrize("shape", [DENSE, CONV, (1, 1, 3), (1, 7, 3), (6, 2, 1)])
def test_similarity_and_velocity_over_epochs_are_those_of_numpy(shape):
    velocity, expected, phi = at_rest(shape[2]), np.zeros(shape[2]), np.ones(shape[2])
    states = [random(shape, seed) for seed in range(5)]
    for before, after in itertools.pairwise(states):
        new = similarity_in_numpy(before, after)
        expected, phi = (new - phi) - 0.3 * expected, new
        found = similarity(jnp.array(before), jnp.array(after))
        np.testing.assert_allclose(found, new, atol=1e-5)
        velocity = accelerate(velocity, found, mu=0.3)
        np.testing.assert_allclose(velocity.value, expected, atol=1e-5)
        np.testing.assert_array_equal(velocity.similarity, found)


def test_the_paper_s_mu_is_a_half():
    moving = accelerate(at_rest(1), jnp.array([0.5]))
    assert (moving.value[0], accelerate(moving, jnp.array([0.5])).value[0]) == (-0.5, 0.25)


@pytest.mark.parametrize("shape", [DENSE, CONV])
def test_a_dead_neuron_does_not_change_and_one_that_dies_does(shape):
    alive, after = random(shape), random(shape, 1)
    alive[..., [0, 1]] = 0
    after[..., [1, 2]] = 0
    found = similarity(jnp.array(alive), jnp.array(after))
    assert found[:3].tolist() == [0.0, 1.0, 0.0]
    np.testing.assert_allclose(found, similarity_in_numpy(alive, after), atol=1e-5)


def test_a_neuron_that_is_dead_on_some_samples_counts_as_same_there():
    before, after = np.ones((4, 3, 1), np.float32), np.ones((4, 3, 1), np.float32)
    before[:2], after[1:3] = 0, 0
    assert similarity(jnp.array(before), jnp.array(after)).tolist() == [0.5]  # 0, 1, 0, 1


@pytest.mark.parametrize("shape", [DENSE, CONV])
@pytest.mark.parametrize("scales", [(1e30, 1e30), (1e-30, 1e-30), (1e30, 1e-30), (1e37, 1.0)])
def test_the_range_of_floats_is_no_limit(shape, scales):
    before, after = (random(shape, seed) / 8 for seed in (0, 1))
    expected = similarity_in_numpy(before, after)
    found = similarity(
        *(jnp.array(np.float32(scale) * own) for scale, own in zip(scales, (before, after), strict=True))
    )
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_outputs_that_equal_themselves_are_at_equilibrium_for_good():
    outputs = jnp.array(random(CONV))
    velocity = at_rest(5)
    for _ in range(3):
        velocity = accelerate(velocity, similarity(outputs, 2 * outputs), mu=0.5)
    np.testing.assert_allclose(velocity.value, 0, atol=1e-6)
    np.testing.assert_allclose(similarity(outputs, -outputs), -1, atol=1e-6)


def test_bfloat16_outputs_are_compared_in_float32():
    before, after = (jnp.array(random(CONV, seed)).astype(jnp.bfloat16) for seed in (0, 1))
    expected = similarity_in_numpy(*(np.asarray(own.astype(jnp.float32)) for own in (before, after)))
    np.testing.assert_allclose(similarity(before, after), expected, atol=1e-5)


@pytest.mark.parametrize("mu", [-0.1, 1.1, float("nan")])
def test_mu_is_checked(mu):
    with pytest.raises(updcomp.Error, match="mu: expected from 0 to 1"):
        accelerate(at_rest(1), jnp.ones(1), mu=mu)


def test_outputs_of_other_shapes_are_no_pair():
    for other in ((12, 1, 4), (12, 5)):
        with pytest.raises(updcomp.Error, match=r"outputs: expected two arrays.*\(12, 1, 5\)"):
            similarity(jnp.ones(DENSE), jnp.ones(other))


def layer(number, neurons, fan_in, *, bias=True, positions=1, input_bytes=None, reads=None):
    size = neurons * positions
    return Layer(
        kernel=f"w{number}",
        bias=f"b{number}" if bias else None,
        view=View((0,), (1,)),
        depth=number,
        neurons=neurons,
        fan_in=fan_in,
        input=number if reads is None else reads,
        input_bytes=4 * fan_in * positions if input_bytes is None else input_bytes,
        output_size=size,
        flops=2 * size * fan_in,
    )


NET = (
    layer(0, 4, 9, positions=16),
    layer(1, 6, 4, positions=16, bias=False),
    layer(2, 6, 4, positions=16, reads=1),
    layer(3, 3, 12),
)


def slow_cost(layers, counts, memory):
    """Neuron by neuron, and one moment of the step after the other."""
    weights = sum(
        layer.fan_in * (j < counts.get(layer.kernel, 0)) + (j < counts.get(layer.bias, 0))
        for layer in layers
        for j in range(layer.neurons)
    )
    trains = [counts.get(layer.kernel, 0) + counts.get(layer.bias, 0) > 0 for layer in layers]
    flops, peaks = 0.0, []
    for place, layer in enumerate(layers):
        flops += layer.flops / layer.neurons * counts.get(layer.kernel, 0)
        flops += layer.flops if any(trains[:place]) else 0
        kept = {own.input: own.input_bytes for own in reversed(layers[:place]) if counts.get(own.kernel, 0)}
        passed = sum(own.output_size for i, own in enumerate(layers[:place]) if any(trains[:i]))
        factor = memory.backward if any(trains[: place + 1]) else memory.forward
        peaks.append(sum(kept.values()) + passed + factor * (layer.input_bytes + 4 * layer.output_size))
    return Cost(weights, flops, memory.per_weight * weights + max(peaks))


@pytest.mark.parametrize("memory", [Memory(12.0, 1.0, 1.5), Memory(8.0, 0.0, 1.0)])
def test_the_cost_is_that_of_a_slow_count(memory):
    generator = np.random.default_rng(0)
    for _ in range(60):
        counts = {
            name: int(generator.integers(0, all_ + 1)) * int(generator.random() < 0.5)
            for name, all_ in neurons.whole(NET).items()
        }
        np.testing.assert_allclose(cost(NET, counts, memory), slow_cost(NET, counts, memory), rtol=1e-12)


def test_the_cost_of_two_layers_by_hand():
    layers = (layer(0, 2, 3, positions=4), layer(1, 1, 8))
    memory = Memory(per_weight=10.0, forward=1.0, backward=2.0)
    # Activations: 48 + 32 bytes, then 32 + 4.
    assert cost(layers, {}, memory) == (0, 0, 80)
    assert cost(layers, {"w1": 1, "b1": 1}, memory) == (9, 16, 90 + 80)
    assert cost(layers, {"w0": 1}, memory) == (3, 24 + 16, 30 + max(160, 48 + 72))
    assert cost(layers, {"b0": 2}, memory) == (2, 16, 20 + 160)
    assert neurons.whole(layers) == {"w0": 2, "b0": 2, "w1": 1, "b1": 1}
    assert neurons.smallest(layers, functools.partial(cost, layers, memory=memory)) == (4, 16, 170)


@pytest.mark.parametrize("name", ["w0", "b0", "w2", "b3"])
def test_one_neuron_more_never_costs_less(name):
    memory = Memory(12.0, 1.0, 1.5)
    rest = {"w1": 2, "b2": 1}
    costs = [cost(NET, {**rest, name: k}, memory) for k in range(neurons.whole(NET)[name] + 1)]
    for one, more in itertools.pairwise(costs):
        assert one.within(more)
        assert one.weights < more.weights


def test_the_memory_that_was_given_is_explained():
    for per_weight, forward, training in itertools.product((8.0, 16.0), (500.0, 4000.0), (6000.0, 1e5)):
        memory = fit_memory(NET, per_weight=per_weight, forward_bytes=forward, training_bytes=training)
        full = cost(NET, neurons.whole(NET), memory)
        assert full.memory == pytest.approx(per_weight * full.weights + training, rel=1e-6)
        assert cost(NET, {}, memory).memory == pytest.approx(forward)
    least = fit_memory(NET, per_weight=8.0, forward_bytes=100.0, training_bytes=0.0)
    assert least.backward == least.forward


LAYERS = st.lists(
    st.tuples(st.integers(1, 5), st.integers(1, 12), st.booleans(), st.integers(1, 9), st.integers(4, 400)),
    min_size=1,
    max_size=4,
).map(
    lambda rows: tuple(
        layer(i, count, fan_in, bias=bias, positions=positions, input_bytes=size)
        for i, (count, fan_in, bias, positions, size) in enumerate(rows)
    )
)
MEMORY = Memory(12.0, 1.0, 1.5)


def problem(layers, seed, shares):
    """Random scores, and limits as shares of all neurons; above 1: none."""
    generator = np.random.default_rng(seed)
    scores = {own.kernel: generator.random(own.neurons) ** 2 for own in layers}
    cost_of = functools.partial(cost, layers, memory=MEMORY)
    full = cost_of(neurons.whole(layers))
    limits = Cost(*(share * most if share <= 1 else np.inf for share, most in zip(shares, full, strict=True)))
    return scores, limits, cost_of


PROBLEMS = LAYERS, st.integers(0, 10**6), st.tuples(*(st.floats(0, 1.5) for _ in range(3)))


def one_by_one(layers, scores, limits, cost_of, price):
    """What the choice is said to be, neuron by neuron."""
    queue = [(-scores[own.kernel][j] / price(own), i, j) for i, own in enumerate(layers) for j in range(own.neurons)]
    chosen, closed = {}, set()
    for _, i, j in sorted(queue):
        names = [name for name in (layers[i].kernel, layers[i].bias) if name]
        more = {**chosen, **{name: [*chosen.get(name, []), j] for name in names}}
        if i in closed:
            continue
        if cost_of({name: len(own) for name, own in more.items()}).within(limits):
            chosen = more
        else:
            closed.add(i)
    return {name: sorted(own) for name, own in chosen.items()}


def listed(choice):
    assert all(own.dtype == np.int32 for own in choice.values())
    return {name: own.tolist() for name, own in choice.items()}


def total(choice, scores):
    return sum(scores[name][numbers].sum() for name, numbers in choice.items() if name in scores)


def counts(choice):
    return {name: len(numbers) for name, numbers in choice.items()}


@hypothesis.settings(max_examples=150)
@given(*PROBLEMS)
def test_neurons_are_taken_one_by_one_by_score_for_their_price(layers, seed, shares):
    scores, limits, cost_of = problem(layers, seed, shares)
    by_weights = lambda own: own.fan_in + (own.bias is not None)  # noqa: E731
    expected = one_by_one(layers, scores, limits, cost_of, by_weights)
    assert listed(choose(layers, scores, limits, cost_of)) == expected
    prices = {own.kernel: 1.0 + own.depth for own in layers}
    expected = one_by_one(layers, scores, limits, cost_of, lambda own: prices[own.kernel])
    assert listed(choose(layers, scores, limits, cost_of, prices=prices)) == expected


@hypothesis.settings(max_examples=150)
@given(*PROBLEMS)
def test_no_choice_is_above_a_limit_and_biases_go_with_their_kernels(layers, seed, shares):
    scores, limits, cost_of = problem(layers, seed, shares)
    for choice in (choose(layers, scores, limits, cost_of), choose_by_depth(layers, scores, limits, cost_of)):
        assert not choice or cost_of(counts(choice)).within(limits)
        for own in layers:
            assert own.bias is None or listed(choice).get(own.bias) == listed(choice).get(own.kernel)
        for name, numbers in listed(choice).items():
            assert numbers
            assert numbers == sorted(set(numbers))
            assert 0 <= numbers[0] <= numbers[-1] < neurons.whole(layers)[name]


@hypothesis.settings(max_examples=100)
@given(*PROBLEMS)
def test_depth_is_worth_as_much_as_weights_at_least(layers, seed, shares):
    scores, limits, cost_of = problem(layers, seed, shares)
    by_depth, by_weights = (way(layers, scores, limits, cost_of) for way in (choose_by_depth, choose))
    assert total(by_depth, scores) >= total(by_weights, scores) - 1e-9


def scores_of(layers, value=1.0):
    return {own.kernel: np.full(own.neurons, value) for own in layers}


COST_OF = functools.partial(cost, NET, memory=MEMORY)
EVERYTHING = {name: list(range(count)) for name, count in neurons.whole(NET).items()}


@pytest.mark.parametrize("way", [choose, choose_by_depth])
def test_no_budget_chooses_nothing_and_any_budget_everything(way):
    assert way(NET, scores_of(NET), Cost(0, 0, 0), COST_OF) == {}
    assert listed(way(NET, scores_of(NET), NONE, COST_OF)) == EVERYTHING
    assert listed(way(NET, scores_of(NET), COST_OF(neurons.whole(NET)), COST_OF)) == EVERYTHING


@pytest.mark.parametrize("currency", Cost._fields)
def test_just_below_everything_is_not_everything(currency):
    full = COST_OF(neurons.whole(NET))
    limits = full._replace(**{currency: np.nextafter(getattr(full, currency), 0)})
    found = choose(NET, scores_of(NET), limits, COST_OF)
    assert counts(found) != neurons.whole(NET)
    assert found


def test_a_layer_that_never_fits_does_not_stop_the_others():
    layers = (layer(0, 3, 1000), layer(1, 3, 2))
    scores = {"w0": np.full(3, 1e9), "w1": np.full(3, 1e-9)}
    found = choose(layers, scores, Cost(weights=6), functools.partial(cost, layers, memory=MEMORY))
    assert listed(found) == {"w1": [0, 1], "b1": [0, 1]}


def test_what_is_minus_infinity_or_missing_is_never_chosen():
    scores = scores_of(NET)
    scores["w0"][1:3] = -np.inf
    del scores["w2"]
    expected = {name: own for name, own in EVERYTHING.items() if name not in ("w2", "b2")}
    assert listed(choose(NET, scores, NONE, COST_OF)) == {**expected, "w0": [0, 3], "b0": [0, 3]}
    assert choose(NET, {}, NONE, COST_OF) == {}
    scores = {"w0": np.zeros(4), "w3": np.full(3, -1.0)}
    assert choose(NET, scores, NONE, COST_OF).keys() == {"w0", "b0", "w3", "b3"}


@pytest.mark.parametrize("wrong", [np.array([1, np.nan, 1, 1]), np.ones(3), np.ones((4, 1))])
def test_scores_are_checked(wrong):
    with pytest.raises(updcomp.Error, match="scores: 'w0': expected 4 numbers"):
        choose(NET, {**scores_of(NET), "w0": wrong}, NONE, COST_OF)


def test_equal_neurons_are_in_random_order_or_in_that_of_the_program():
    limits = Cost(weights=4 * 10)
    first = choose(NET[:1], scores_of(NET[:1]), Cost(weights=20), COST_OF)
    assert listed(first) == {"w0": [0, 1], "b0": [0, 1]}
    drawn = [
        listed(
            choose(
                NET,
                scores_of(NET),
                limits,
                COST_OF,
                ties=np.random.default_rng(seed),
                prices=dict.fromkeys(scores_of(NET), 1.0),
            )
        )
        for seed in (0, 0, 1)
    ]
    assert drawn[0] == drawn[1] != drawn[2]


def test_ties_change_nothing_else():
    generator = np.random.default_rng(0)
    scores = {own.kernel: generator.random(own.neurons) for own in NET}
    limits = COST_OF(neurons.whole(NET))._replace(weights=70)
    expected = listed(choose(NET, scores, limits, COST_OF))
    assert listed(choose(NET, scores, limits, COST_OF, ties=generator)) == expected


def test_late_layers_are_chosen_where_memory_is_scarce():
    """All scores are equal; what counts is the inputs that are kept, and the passes through all layers above."""
    layers = tuple(layer(i, 8, 8, positions=16, bias=False) for i in range(5))
    cost_of = functools.partial(cost, layers, memory=MEMORY)
    nothing, full = cost_of({}).memory, cost_of(neurons.whole(layers)).memory

    def depths(share):
        limits = Cost(memory=nothing + share * (full - nothing))
        choice = choose_by_depth(layers, scores_of(layers), limits, cost_of)
        assert choice
        return [own.depth for own in layers if own.kernel in choice]

    lowest = [min(depths(share)) for share in (0.15, 0.3, 0.6, 1.0)]
    assert lowest == sorted(lowest, reverse=True)
    assert lowest[0] >= 3
    assert lowest[-1] == 0
    assert max(depths(0.3)) == 4


def test_by_depth_a_great_gradient_far_below_is_worth_its_cost():
    layers = tuple(layer(i, 8, 8, positions=8, bias=False) for i in range(4))
    cost_of = functools.partial(cost, layers, memory=MEMORY)
    scores = scores_of(layers)
    scores["w0"] += 1000.0
    found = choose_by_depth(layers, scores, Cost(flops=0.6 * cost_of(neurons.whole(layers)).flops), cost_of)
    assert "w0" in found
