"""Text, as one instance of an objective: cross-entropy of the next token is trained, bits per token are what counts."""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import optax

from updcomp.training.objectives import Mean, Objective
from updcomp.training.transformer import Apply


@functools.cache
def language_model(apply: Apply) -> Objective:
    """The objective of a model that gives each position of a text a logit per next token.

    Of tokens x_0 ... x_t, position i predicts x_(i+1); the mask says which predictions count. The loss is the mean of
    -ln p(x_(i+1) | x_0 ... x_i) over these, the score the mean of log2 p: minus the bits per token, which are bits per
    character where tokens are characters.

    Args:
      apply: `Transformer.apply`.

    Returns:
      An `Objective` for batches `{"tokens": integers (n, t + 1), "mask": bool (n, t)}`, as `text.windows` gives them;
      the same one for the same function, so that nothing compiles twice.

    >>> uniform = language_model(lambda variables, tokens, *, key=None, train=False: jnp.zeros((*tokens.shape, 8)))
    >>> batch = {"tokens": jnp.zeros((2, 6), jnp.uint8), "mask": jnp.ones((2, 5), bool)}
    >>> round(uniform.score({}, batch).value.item(), 5)
    -3.0
    """

    def nats(variables: Any, batch: dict[str, jax.Array], **mode: Any) -> Mean:
        tokens = batch["tokens"]
        logits = apply(variables, tokens[:, :-1], **mode)
        each = optax.softmax_cross_entropy_with_integer_labels(logits, tokens[:, 1:].astype(jnp.int32))
        counted = batch["mask"].astype(jnp.float32)
        return Mean(jnp.sum(counted * each), jnp.sum(counted))

    def loss(variables: Any, batch: dict[str, jax.Array], key: jax.Array, *, train: bool) -> jax.Array:
        total, count = nats(variables, batch, key=key, train=train)
        return total / jnp.maximum(count, 1.0)

    def score(variables: Any, batch: dict[str, jax.Array]) -> Mean:
        total, count = nats(variables, batch)
        return Mean(-total / math.log(2), count)

    return Objective(loss, score)
