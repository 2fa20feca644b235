"""Labelled images: datasets by name, and disjoint or growing parts of them."""

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from updcomp.wire.errors import DatasetError

Array = Any  # np.ndarray on the host, jax.Array once placed on devices


class Dataset(NamedTuple):
    """Labelled images; a pytree, so it can be placed on devices and passed to compiled functions."""

    images: Array  # (n, h, w, c), uint8, or float32 in [0, 1]
    labels: Array  # int32 (n,)


class Source(NamedTuple):
    """A dataset as published."""

    train: Dataset
    test: Dataset
    num_classes: int


def to_float(images: Array) -> jax.Array:
    """Images as models take them: uint8 becomes float32 / 255, floats stay as they are.

    Args:
      images: uint8, or float32 in [0, 1], of any shape.

    Returns:
      float32 in [0, 1] of the same shape.

    >>> to_float(np.array([0, 255], np.uint8)).tolist()
    [0.0, 1.0]
    """
    array = jnp.asarray(images)
    return array.astype(jnp.float32) / 255 if array.dtype == jnp.uint8 else array


def load(name: str, *, data_dir: str | Path | None = None, image_size: int | None = None) -> Source:
    """A dataset by name.

    Where images vary in size, as in `imagenet2012` or `food101`, each becomes the central square whose side is 7/8 of
    its shorter side, resized to `image_size`: for 224 the shorter side at 256 pixels, and then the central crop. That
    is done once, into `.npy` files beside the prepared dataset, and the images come as `np.memmap`, as they need not
    fit in memory; `take` and `split` copy what they choose into memory, the training loop's `Task.samples` does not.

    Where all images have one size, they are held in memory, and what is resized is the whole image, or the central
    square of one that is not square.

    Args:
      name: `digits` for scikit-learn's handwritten digits (1,198 + 599 images of 8 x 8), or the name of any image
        classification dataset of TensorFlow Datasets that is prepared as array_record, such as `mnist`, `cifar100`,
        `caltech_birds2011`, `oxford_flowers102`, `oxford_iiit_pet` or `imagenet_resized/32x32`. Visual Wake Words is
        not among them; a dataset of one's own is found by the name of its folder.
      data_dir: the folder that holds the prepared datasets; by default the one TensorFlow Datasets uses,
        `$TFDS_DATA_DIR` or `~/tensorflow_datasets`.
      image_size: pixels a side; by default 224 where images vary in size, and elsewhere as they are.

    Returns:
      Its training and test samples, images uint8; the split "validation" is the test where there is no "test", or where
      its labels are not public.

    Raises:
      DatasetError: no such dataset; it is not prepared (the message has the command); it is not image classification;
        there is no such size.
    """
    if image_size is not None and image_size < 1:
        raise DatasetError(f"image_size: expected at least 1 pixel a side, found {image_size}")
    if name == "digits" and image_size is None:
        return _digits()
    from updcomp.training import prepared  # here, as tensorflow_datasets takes seconds to import

    return prepared.resize(_digits(), image_size) if name == "digits" else prepared.load(name, data_dir, image_size)


def take(dataset: Dataset, rows: Any) -> Dataset:
    """The samples at these rows.

    Args:
      dataset: n samples.
      rows: a slice, int indices or booleans (n,).

    Returns:
      The chosen samples.
    """
    return Dataset(dataset.images[rows], dataset.labels[rows])


def split(dataset: Dataset, counts: Sequence[int], *, seed: int) -> tuple[Dataset, ...]:
    """Random parts of a dataset that share no sample.

    Args:
      dataset: n samples.
      counts: how many samples each part gets; together at most n.
      seed: decides who goes where.

    Returns:
      One dataset per count, each in random order.

    Raises:
      DatasetError: the counts exceed the dataset.

    >>> numbers = Dataset(np.zeros((5, 1, 1, 1), np.uint8), np.arange(5, dtype=np.int32))
    >>> one, two = split(numbers, (2, 3), seed=0)
    >>> sorted([*one.labels.tolist(), *two.labels.tolist()])
    [0, 1, 2, 3, 4]
    """
    total = len(dataset.labels)
    if sum(counts) > total:
        raise DatasetError(f"split: expected counts of together at most {total}, found {tuple(counts)}; ask for less")
    order = np.random.default_rng(seed).permutation(total)
    ends = np.cumsum(counts)
    return tuple(take(dataset, order[end - count : end]) for count, end in zip(counts, ends, strict=True))


def of_classes(dataset: Dataset, classes: Collection[int]) -> Dataset:
    """The samples of some classes, in their order; a growing collection models a world that gets new classes.

    Args:
      dataset: n samples.
      classes: the labels to keep.

    Returns:
      The samples with one of these labels; the labels stay as they are.

    >>> numbers = Dataset(np.zeros((4, 1, 1, 1), np.uint8), np.array([0, 1, 2, 1], np.int32))
    >>> of_classes(numbers, range(2)).labels.tolist()
    [0, 1, 1]
    """
    return take(dataset, np.isin(np.asarray(dataset.labels), list(classes)))


def _digits() -> Source:
    """Every third sample of each class, in random order, is a test sample; the pixels 0..16 become 0..255."""
    from sklearn.datasets import load_digits  # here, as it takes a second to import

    pixels, labels = load_digits(return_X_y=True)
    images = np.rint(pixels * (255 / 16)).astype(np.uint8).reshape(-1, 8, 8, 1)
    dataset = Dataset(images, labels.astype(np.int32))
    generator = np.random.default_rng(0)
    order = generator.permutation(len(labels))
    by_class = order[np.argsort(labels[order], kind="stable")]
    test = np.zeros(len(labels), bool)
    test[by_class[::3]] = True
    return Source(take(dataset, order[~test[order]]), take(dataset, order[test[order]]), 10)
