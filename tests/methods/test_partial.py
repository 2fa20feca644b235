"""Deep partial updating: what its budget, its masks and its scores choose."""

import itertools
import weakref

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.methods.worlds import KEY, applied, digits, kernels, regression
from updcomp.methods import deep_partial_updating, partial
from updcomp.training import loop


@pytest.mark.parametrize(
    "options",
    [{}, {"fixed_share": 0.3}, {"scores": "local", "keep_moments": True, "fixed_share": 0.3}],
    ids=str,
)
def test_it_sends_its_ratio_of_all_kernels_together(options):
    deployed, task = digits()
    held = kernels(deployed)
    for ratio in (0.01, 0.2, 1.0):
        blocks = partial(ratio=ratio, **options)(KEY, deployed, task).blocks
        sent = sum(len(blocks[name].positions) for name in held)
        assert sent == int(ratio * sum(kernel.size for kernel in held.values()))


def test_weights_that_are_fixed_in_one_iteration_stay_fixed(monkeypatch):
    deployed, task = digits()
    seen = []
    fit = loop.fit

    def watched(*arguments, masks=None, **options):
        fitted = fit(*arguments, masks=masks, **options)
        seen.append((masks, fitted))
        return fitted

    monkeypatch.setattr(loop, "fit", watched)
    partial(ratio=0.1, fixed_share=0.4)(KEY, deployed, task)
    held = kernels(deployed)
    assert seen[0][0] is None
    masks = [{name: np.asarray(mask[name]) for name in held} for mask, _ in seen[1:]]
    total = sum(kernel.size for kernel in held.values())
    assert [sum(int(m.sum()) for m in mask.values()) for mask in masks] == [
        int(share * total) for share in (0.6, 0.36, 0.216, 0.1296, 0.1)
    ]
    for wider, narrower in itertools.pairwise(masks):
        assert not any(np.any(narrower[name] & ~wider[name]) for name in wider)
    for mask, (_, fitted) in zip(masks, seen[1:], strict=True):
        for name, kernel in held.items():
            kept = ~mask[name]
            np.testing.assert_array_equal(np.asarray(fitted.last[name])[kept], np.asarray(kernel)[kept])


def test_what_is_not_sent_keeps_its_bits():
    deployed, task = digits()
    made = partial(ratio=0.1)(KEY, deployed, task)
    new = kernels(applied(made, deployed))
    for name, kernel in kernels(deployed).items():
        moved = np.flatnonzero(np.asarray(new[name]) != np.asarray(kernel))
        assert set(moved) <= set(made.blocks[name].positions)
        assert len(moved)


def test_from_a_model_of_zeros_the_global_contribution_prunes_by_magnitude():
    deployed, task = digits()
    held = kernels(deployed)
    zeros = jax.tree.map(lambda leaf: jnp.zeros_like(leaf) if leaf.ndim > 1 else leaf, deployed)
    prune = partial(ratio=0.1, scores="global", bits=16, start=lambda key: deployed)
    blocks = prune(KEY, zeros, task._replace(learning_rate=0.0)).blocks
    flat = np.concatenate([np.abs(kernel).ravel() for kernel in held.values()])
    threshold = np.sort(flat)[-int(0.1 * flat.size)]
    for name, kernel in held.items():
        np.testing.assert_array_equal(blocks[name].positions, np.flatnonzero(np.abs(kernel) >= threshold))


def test_the_sparse_training_holds_no_memory_of_the_full_one(monkeypatch):
    deployed, task = regression()
    train, before = deep_partial_updating._train, []

    def watched(*args, **options):
        assert not [held for held in before if held() is not None]
        fitted = train(*args, **options)
        before[:] = map(weakref.ref, jax.tree.leaves((fitted.trainable, fitted.last, fitted.optimizer)))
        return fitted

    monkeypatch.setattr(deep_partial_updating, "_train", watched)
    partial(ratio=0.3, fixed_share=0.5, aux=None)(KEY, deployed, task)
    assert before
