"""What is compiled once: settings that are equal, or differ in numbers alone, share their compiled functions."""

import dataclasses

import numpy as np
import optax
import pytest

from tests.methods.worlds import KEY, digits, regression
from updcomp.methods import by_path, full, low_rank, magnitude_mask, partial, random_mask, subspace
from updcomp.training import classification
from updcomp.training.compilation import measured

# Pairs of settings of which the second one must compile nothing.
PAIRS = {
    "full, other bits and rate": (full(bits=4), full(bits=11, rate=3.0)),
    "full, other bits of aux": (full(bits=4, aux=8), full(bits=4, aux=4)),
    "partial, other ratio, bits and rates": (
        partial(ratio=0.1),
        partial(ratio=0.37, bits=3, rate=2.0, sparse_rate=5.0),
    ),
    "partial in several iterations, another share": (
        partial(ratio=0.3, fixed_share=0.5),
        partial(ratio=0.4, fixed_share=0.55),
    ),
    "partial in more iterations": (partial(ratio=0.3, fixed_share=0.5), partial(ratio=0.1, fixed_share=0.3)),
    "partial after one in several iterations": (partial(ratio=0.3, fixed_share=0.5), partial(ratio=0.2)),
    "low_rank, other bits and rate": (low_rank(rank=2), low_rank(rank=2, bits=3, rate=1.0)),
    "low_rank, another rank of the bucket": (low_rank(rank=1), low_rank(rank=3)),
    "subspace, other bits and rate": (subspace(rank=3), subspace(rank=3, bits=5, rate=2.0)),
    "subspace, another rank of the bucket": (subspace(rank=2), subspace(rank=4)),
    "random masks, other ratio and bits": (random_mask(ratio=0.1), random_mask(ratio=0.3, bits=2)),
    "magnitude masks after random ones": (random_mask(ratio=0.1), magnitude_mask(ratio=0.2)),
    "rules, other numbers": (
        by_path({".*first/kernel": low_rank(rank=2), ".*": full(bits=4)}),
        by_path({"first/kernel": low_rank(rank=3, bits=4), "(first|second)/.*": full(bits=7)}),
    ),
}
# Nothing that grows with the model: the split of the key into more of them.
SMALL = {"partial in more iterations": 2}


@pytest.mark.parametrize("pair", PAIRS)
def test_settings_that_differ_in_numbers_compile_once(pair):
    deployed, task = regression()
    first, second = PAIRS[pair]
    assert first != second
    one = first(KEY, deployed, task)
    with measured() as compilation:
        other = second(KEY, deployed, task)
    assert compilation.count <= SMALL.get(pair, 0)
    assert one.blocks.keys() == other.blocks.keys()


def test_equal_settings_are_equal():
    rules = [by_path({".*": low_rank(rank=2)}) for _ in range(2)]
    pairs = [(full(bits=4), full(bits=4)), (partial(ratio=0.1), partial(ratio=0.1)), rules]
    assert all(one == other and hash(one) == hash(other) for one, other in pairs)
    assert len({full(), full(bits=4), full(bits=4, rate=2.0), full(bits=4, aux=4)}) == 4
    assert dataclasses.replace(full(bits=4), rate=2.0) == full(bits=4, rate=2.0)


def test_an_objective_made_again_of_the_same_parts_compiles_nothing():
    deployed, task = digits()

    def made():
        return task._replace(objective=classification(_apply), train=task.train, samples=np.arange(150))

    full(bits=4)(KEY, deployed, made())
    with measured() as compilation:
        full(bits=4)(KEY, deployed, made()._replace(epochs=1))
    assert compilation.count == 0


def _apply(variables, images, *, train):
    layers = variables["params"]
    hidden = images.reshape(len(images), -1) @ layers["Dense_0"]["kernel"] + layers["Dense_0"]["bias"][None]
    return hidden @ layers["Dense_1"]["kernel"] + layers["Dense_1"]["bias"][None], {}


def test_what_would_be_compiled_is_seen():
    """Another optimizer is another function, so that the counts above are of something."""
    deployed, task = regression()
    full(bits=4)(KEY, deployed, task)
    with measured() as compilation:
        full(bits=4)(KEY, deployed, task._replace(optimizer=optax.lion))
    assert 1 <= compilation.count <= 20
    assert compilation.seconds > 0
