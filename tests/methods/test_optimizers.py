"""Optimizers see the user's own tree: masks and labels written for it fit under every method."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tests.methods.worlds import KEY, applied, assert_helps, digits, regression
from updcomp import trees
from updcomp.methods import by_path, full, low_rank, partial, random_mask, subspace
from updcomp.training import Objective
from updcomp.training.optimizers import with_learning_rate

METHODS = {
    "full": full(bits=16, aux=16),
    "low_rank": low_rank(rank=2),
    "partial": partial(ratio=0.5),
    "random_mask": random_mask(ratio=0.5),
    "subspace": subspace(rank=2, aux=16),
    "by_path": by_path({"first/bias": None, "second/.*": low_rank(rank=1), ".*": full(bits=8)}),
}

EVERYWHERE = {"first": {"kernel": True, "bias": False}, "second": {"kernel": True}}


def with_a_decay_mask(rate):
    """As AdamW is often used: no decay of biases; the mask names every leaf of the tree."""
    return optax.adamw(rate, weight_decay=1e-2, mask=EVERYWHERE)


def with_a_masked_tree(rate):
    return optax.masked(optax.adam(rate), EVERYWHERE)


def with_labels(rate):
    labels = {"first": {"kernel": "fast", "bias": "slow"}, "second": {"kernel": "fast"}}
    return optax.multi_transform({"fast": optax.adam(rate), "slow": optax.sgd(rate)}, labels)


def with_a_function_of_the_tree(rate):
    """A mask computed from what the optimizer is shown."""
    return optax.adamw(rate, weight_decay=1e-2, mask=functools.partial(jax.tree.map, lambda leaf: leaf.ndim > 1))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("optimizer", [with_a_decay_mask, with_labels], ids=lambda factory: factory.__name__)
def test_masks_and_labels_for_the_whole_tree_fit_every_method(optimizer, method):
    deployed, task = regression()
    assert_helps(METHODS[method](KEY, deployed, task._replace(optimizer=optimizer)), deployed, task)


@pytest.mark.parametrize("optimizer", [with_a_masked_tree, with_a_function_of_the_tree], ids=lambda f: f.__name__)
def test_other_ways_to_choose_leaves_fit_as_well(optimizer):
    deployed, task = regression()
    for method in ("full", "low_rank", "by_path"):
        assert_helps(METHODS[method](KEY, deployed, task._replace(optimizer=optimizer)), deployed, task)


def flat(variables, batch, key):
    """A loss whose gradient is zero everywhere, so that decay alone moves the weights."""
    return 0 * sum(jnp.sum(leaf) for leaf in jax.tree.leaves(variables))


def smaller(variables, batch):
    """A score that is higher for smaller weights, so that the last epoch is the best."""
    return -sum(jnp.sum(jnp.abs(leaf)) for leaf in jax.tree.leaves(variables))


def test_decay_reaches_the_leaves_of_its_mask_and_no_others():
    """Without a gradient n steps multiply a weight by (1 - rate * decay)^n."""
    deployed, task = regression()
    deployed = {**deployed, "first": {**deployed["first"], "bias": jnp.ones(16)}}
    task = task._replace(
        objective=Objective(flat, smaller),
        optimizer=lambda rate: optax.chain(optax.add_decayed_weights(0.5, mask=EVERYWHERE), optax.sgd(rate)),
        learning_rate=0.1,
        epochs=2,
    )
    new = applied(full()(KEY, deployed, task), deployed)
    steps = 2 * 6
    for name, leaf in trees.named_leaves(new).items():
        factor = 1.0 if name == "first/bias" else 0.95**steps
        np.testing.assert_allclose(leaf, factor * trees.named_leaves(deployed)[name], rtol=1e-4)


def test_a_leaf_that_stays_is_not_seen_by_the_optimizer():
    """`optax.MaskedNode` in its place; a leaf that trains stands in its own, in the form that trains."""
    deployed, task = regression()
    seen = []

    def watching(rate):
        def init(params):
            seen.append(params)
            return optax.EmptyState()

        return optax.GradientTransformation(init, lambda updates, state, params=None: (updates, state))

    by_path({"first/kernel": low_rank(rank=2), "second/.*": full()})(
        KEY, deployed, task._replace(optimizer=watching, epochs=1)
    )
    assert seen
    for tree in seen:
        assert isinstance(tree["first"]["bias"], optax.MaskedNode)
        assert tree["second"]["kernel"].shape == (16, 2)
        assert [leaf.shape[-1] for leaf in tree["first"]["kernel"]] == [4, 4]  # two factors, up to their bucket


def test_in_a_dict_of_collections_optimizers_see_the_params():
    deployed, task = digits("cnn")
    mask = jax.tree.map(lambda leaf: leaf.ndim > 1, deployed["params"])
    made = full(bits=8)(KEY, deployed, task._replace(optimizer=lambda rate: optax.adamw(rate, mask=mask), epochs=1))
    assert made.blocks.keys() == trees.named_leaves(deployed).keys()


def test_a_dynamic_learning_rate_is_the_optimizers_own():
    gradients = jnp.array([0.5, -2.0])
    for factory in (optax.adam, functools.partial(optax.sgd, momentum=0.9, nesterov=True)):
        own, ours = factory(0.3), with_learning_rate(factory)
        own_state, our_state = own.init(gradients), ours.init(gradients)
        for _ in range(3):
            with jax.numpy_dtype_promotion("standard"):
                expected, own_state = own.update(gradients, own_state)
            found, our_state = ours.update(gradients, our_state, learning_rate=0.3)
            np.testing.assert_allclose(found, expected, rtol=1e-6)
