"""Small models with something to learn: labelled digits, a regression on a dict batch, tokens with padding."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax

import updcomp
from updcomp import partition, trees
from updcomp.training import Extra, Mean, Objective, Task, classification, data, make_score, models

KEY = jax.random.key(0)
MODELS = {"mlp": models.mlp(hidden=(24,)), "cnn": models.vgg(stages=((4,),), dense=(16,))}


@functools.cache
def digits(model: str = "mlp") -> tuple[dict, Task]:
    """A model with its first weights, and the task of learning digits."""
    train, validation = data.split(data.load("digits").train, (200, 100), seed=0)
    network = MODELS[model]
    task = Task(
        classification(network.apply),
        *(jax.device_put(part) for part in (train, validation)),
        optax.adam,
        1e-2,
        epochs=2,
        batch_size=50,
    )
    return network.init(KEY, train.images), task


def _squared_error(variables, batch, key):
    hidden = jnp.tanh(batch["features"]["x"] @ variables["first"]["kernel"] + variables["first"]["bias"][None])
    errors = hidden @ variables["second"]["kernel"] - batch["target"]
    return jnp.mean(errors**2)


REGRESSION = Objective(_squared_error)


@functools.cache
def regression() -> tuple[dict, Task]:
    """A network of another teacher than the one deployed; its batches are nested dicts, its score minus the loss."""
    generator = np.random.default_rng(0)

    def network(seed):
        keys = jax.random.split(jax.random.key(seed), 2)
        return {
            "first": {"kernel": jax.random.normal(keys[0], (6, 16)) / 3, "bias": jnp.zeros(16)},
            "second": {"kernel": jax.random.normal(keys[1], (16, 2)) / 4},
        }

    def samples(count):
        x = generator.normal(size=(count, 6)).astype(np.float32)
        teacher = jax.tree.map(np.asarray, network(1))
        target = np.tanh(x @ teacher["first"]["kernel"]) @ teacher["second"]["kernel"]
        return jax.device_put({"features": {"x": x}, "target": target})

    task = Task(REGRESSION, samples(120), samples(70), optax.adam, 3e-3, epochs=4, batch_size=20)
    return network(0), task


VOCABULARY, LENGTH = 11, 7


def _token_losses(variables, batch):
    tokens = batch["tokens"].astype(jnp.int32)
    logits = variables["embedding"][tokens] @ variables["output"]
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, (tokens + 1) % VOCABULARY)
    return losses * batch["mask"], jnp.sum(batch["mask"], dtype=jnp.float32)


def _token_loss(variables, batch, key):
    losses, count = _token_losses(variables, batch)
    return jnp.sum(losses) / count, Extra(
        metrics={"tokens": count, "largest": jnp.max(batch["tokens"]).astype(jnp.float32)}
    )


def _token_score(variables, batch):
    losses, count = _token_losses(variables, batch)
    return Mean(-jnp.sum(losses), count)


TOKENS = Objective(_token_loss, _token_score)


@functools.cache
def tokens() -> tuple[dict, Task]:
    """Sequences of uint8 tokens and of other lengths; the next token is the one after, and padding counts nothing."""
    generator = np.random.default_rng(1)
    keys = jax.random.split(KEY)

    def samples(count):
        lengths = generator.integers(1, LENGTH + 1, (count, 1))
        return jax.device_put(
            {
                "tokens": generator.integers(0, VOCABULARY, (count, LENGTH)).astype(np.uint8),
                "mask": (np.arange(LENGTH)[None] < lengths).astype(np.float32),
            }
        )

    deployed = {
        "embedding": jax.random.normal(keys[0], (VOCABULARY, 8)),
        "output": jax.random.normal(keys[1], (8, VOCABULARY)) / 3,
    }
    return deployed, Task(TOKENS, samples(64), samples(37), optax.adam, 1e-2, epochs=3, batch_size=16)


def applied(packet, deployed):
    """The model that the device makes of a packet's bytes."""
    return updcomp.apply(updcomp.encode(packet, deployed), deployed)


def score(variables, task):
    return make_score(task.objective)(variables, task.validation)


def assert_helps(packet, deployed, task):
    """The update that travelled is better on the validation data than nothing."""
    new = applied(packet, deployed)
    assert score(new, task) > score(deployed, task)
    return new


def kernels(deployed) -> dict[str, jax.Array]:
    leaves = trees.named_leaves(deployed)
    return {leaf.name: leaves[leaf.name] for leaf in partition.of(deployed).leaves if leaf.role == partition.KERNEL}


def assert_like(new, deployed):
    """The same structure, dtypes and shapes, and finite."""
    assert jax.tree.structure(new) == jax.tree.structure(deployed)
    for one, other in zip(jax.tree.leaves(new), jax.tree.leaves(deployed), strict=True):
        assert (one.shape, one.dtype) == (other.shape, other.dtype)
        assert jnp.all(jnp.isfinite(one))


def assert_same(one, other):
    """Bit for bit."""
    assert jax.tree.structure(one) == jax.tree.structure(other)
    for first, second in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        assert np.asarray(first).tobytes() == np.asarray(second).tobytes()
