"""Accuracy of a model on a dataset: exact counts, whole batches, one compilation for datasets of any size."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from updcomp.training.data import Dataset, to_float
from updcomp.training.models import Apply, Variables

BATCH_SIZE = 256
_NO_LABEL = -1  # on the rows that fill up the last batch; no logit has this index


def count_correct(apply: Apply, variables: Variables, dataset: Dataset, *, batch_size: int = BATCH_SIZE) -> jax.Array:
    """How many images have their largest logit at their label: sum_i [argmax_k logits_ik = label_i].

    Made for use inside a compiled function: the batches run in a loop, so memory does not grow with the dataset.

    Args:
      apply: `Model.apply`.
      variables: the model's parameters and statistics.
      dataset: images uint8 or float32 in [0, 1], (n, h, w, c); labels int32 (n,).
      batch_size: the largest number of images at a time.

    Returns:
      int32 scalar.
    """
    total = len(dataset.labels)
    if not total:
        return jnp.zeros((), jnp.int32)
    size = min(batch_size, total)

    def add(batch: jax.Array, count: jax.Array) -> jax.Array:
        rows = batch * size + jnp.arange(size)
        labels = jnp.where(rows < total, jnp.asarray(dataset.labels)[rows], _NO_LABEL)
        return count + _hits(apply, variables, jnp.asarray(dataset.images)[rows], labels)

    count: jax.Array = jax.lax.fori_loop(0, -(-total // size), add, jnp.int32(0))
    return count


def make_accuracy(apply: Apply, *, batch_size: int = BATCH_SIZE) -> Callable[[Variables, Dataset], float]:
    """The share of images whose largest logit is their label's, for datasets that stay on the host.

    Args:
      apply: `Model.apply`.
      batch_size: images per compiled call; the last batch is filled up, so only a new image shape compiles anew.

    Returns:
      A function (variables, dataset) -> accuracy in [0, 1]; NaN for an empty dataset.

    >>> accuracy = make_accuracy(lambda variables, images, *, train: (images[:, 0, :, 0] @ variables["params"], {}))
    >>> images = np.array([[[[1], [0]]], [[[0], [1]]]], np.float32)
    >>> accuracy({"params": jnp.eye(2)}, Dataset(images, np.array([0, 0], np.int32)))
    0.5
    """

    @jax.jit
    def hits(variables: Variables, images: jax.Array, labels: jax.Array) -> jax.Array:
        return _hits(apply, variables, images, labels)

    def accuracy(variables: Variables, dataset: Dataset) -> float:
        total = len(dataset.labels)
        variables = jax.device_put(variables)
        counts = []
        for start in range(0, total, batch_size):
            images, labels = (np.asarray(part[start : start + batch_size]) for part in dataset)
            missing = batch_size - len(labels)
            images = np.pad(images, ((0, missing),) + ((0, 0),) * (images.ndim - 1))
            counts.append(hits(variables, images, np.pad(labels, (0, missing), constant_values=_NO_LABEL)))
        return sum(int(count) for count in counts) / total if total else float("nan")

    return accuracy


def _hits(apply: Apply, variables: Variables, images: jax.Array, labels: jax.Array) -> jax.Array:
    logits, _ = apply(variables, to_float(images), train=False)
    return jnp.sum(jnp.argmax(logits, axis=-1) == labels, dtype=jnp.int32)
