"""Labelled images, as one instance of an objective: cross-entropy is trained, accuracy is what counts."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from updcomp.training.data import Dataset, to_float
from updcomp.training.models import Apply
from updcomp.training.objectives import Extra, Mean, Objective

Augment = Callable[[jax.Array, jax.Array], jax.Array]
"""(key, images) -> images, inside the compiled step."""


def cross_entropy(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """The mean softmax cross-entropy of a batch, in nats."""
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


@functools.cache
def classification(
    apply: Apply,
    *,
    augment: Augment | None = None,
    loss: Callable[[jax.Array, jax.Array], jax.Array] = cross_entropy,
) -> Objective:
    """The objective of a model that gives each image a logit per class; its batches are a `data.Dataset`.

    Accuracy: the share of images whose largest logit is at their label, argmax_k logits_ik = label_i.

    Args:
      apply: `Model.apply`.
      augment: changes the images of a training batch.
      loss: (logits float32 (n, classes), labels int32 (n,)) -> scalar.

    Returns:
      An `Objective`; the same one for the same arguments, so that nothing compiles twice.

    >>> objective = classification(lambda variables, images, *, train: (images[:, 0, :, 0] @ variables, {}))
    >>> batch = Dataset(jnp.eye(2)[:, None, :, None], jnp.array([0, 0]))
    >>> objective.score(jnp.eye(2), batch).value.item()
    0.5
    """

    def train_loss(variables: Any, batch: Dataset, key: jax.Array, *, train: bool) -> tuple[jax.Array, Extra]:
        images = to_float(batch.images)
        if augment is not None:
            images = augment(key, images)
        logits, updated = apply(variables, images, train=train)
        return loss(logits, batch.labels), Extra(updated)

    def accuracy(variables: Any, batch: Dataset) -> Mean:
        logits, _ = apply(variables, to_float(batch.images), train=False)
        hits = jnp.argmax(logits, axis=-1) == batch.labels
        return Mean(jnp.sum(hits, dtype=jnp.float32), jnp.float32(len(hits)))

    return Objective(train_loss, accuracy)
