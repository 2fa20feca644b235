"""Labelled images in memory: datasets by name, and disjoint or growing parts of them."""

import os
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from updcomp.wire.errors import DatasetError

_CHUNK = 1000  # records in memory at once while a dataset is decoded

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


def load(name: str, *, data_dir: str | Path | None = None) -> Source:
    """A dataset by name.

    Args:
      name: `digits` for scikit-learn's handwritten digits (1,198 + 599 images of 8 x 8), or the name of any image
        classification dataset of TensorFlow Datasets that is prepared as array_record, such as `mnist` or
        `imagenet_resized/32x32`.
      data_dir: the folder that holds the prepared datasets; by default the one TensorFlow Datasets uses,
        `$TFDS_DATA_DIR` or `~/tensorflow_datasets`.

    Returns:
      Its training and test samples, images uint8.

    Raises:
      DatasetError: no such dataset; it is not prepared (the message has the command); it is not image classification.
    """
    return _digits() if name == "digits" else _prepared(name, data_dir)


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


def _prepared(name: str, data_dir: str | Path | None) -> Source:
    """A prepared dataset of TensorFlow Datasets, read from its files alone: neither TensorFlow nor its code."""
    import tensorflow_datasets as tfds  # here, as only this needs it

    root = Path(data_dir or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets").expanduser()
    versions = [path.parent for path in (root / name).glob("*/dataset_info.json")]
    if not versions:
        if name.partition("/")[0] not in tfds.list_builders(with_community_datasets=False):
            found = f"dataset: expected digits or the name of a TFDS dataset, found {name!r}"
            raise DatasetError(f"{found}; see https://www.tensorflow.org/datasets/catalog")
        raise DatasetError(f"dataset {name}: expected it in {root}, found none; {_prepare_command(name, root)}")
    builder = tfds.builder_from_directory(max(versions, key=_version))
    file_format = builder.info.file_format.value
    if file_format not in ("array_record", "parquet"):
        found = f"dataset {name}: expected files in the format array_record, found {file_format}"
        raise DatasetError(f"{found}; {_prepare_command(name, root)}")
    image, label = _supervised(name, builder.info)
    test = "test" if "test" in builder.info.splits else "validation"
    if not {"train", test} <= set(builder.info.splits):
        found = f"expected the splits train and test (or validation), found {', '.join(sorted(builder.info.splits))}"
        raise DatasetError(f"dataset {name}: {found}; choose another")
    train = _decoded(builder, "train", image, label)
    return Source(train, _decoded(builder, test, image, label), builder.info.features[label].num_classes)


def _supervised(name: str, info: Any) -> tuple[str, str]:
    """The names of the image and of its class among a dataset's features."""
    import tensorflow_datasets as tfds

    keys, features = info.supervised_keys, info.features
    kinds = (tfds.features.Image, tfds.features.ClassLabel)
    if not keys or len(keys) != 2 or not all(isinstance(features[k], t) for k, t in zip(keys, kinds, strict=True)):
        found = f"expected an image and its class, found the features {', '.join(sorted(features))}"
        raise DatasetError(f"dataset {name}: {found}; choose an image classification dataset")
    image, label = keys
    shape, dtype = features[image].shape, np.dtype(features[image].np_dtype)
    if None in shape or dtype != np.uint8:
        found = f"expected uint8 images of one size, found {dtype} of shape {shape}"
        raise DatasetError(f"dataset {name}: {found}; choose one that is resized")
    return image, label


def _decoded(builder: Any, split: str, image: str, label: str) -> Dataset:
    source = builder.as_data_source(split)
    images = np.empty((len(source), *builder.info.features[image].shape), np.uint8)
    labels = np.empty(len(source), np.int32)
    for start in range(0, len(source), _CHUNK):
        rows = range(start, min(start + _CHUNK, len(source)))
        for row, record in zip(rows, source.__getitems__(list(rows)), strict=True):
            images[row], labels[row] = record[image], record[label]
    return Dataset(images, labels)


def _version(folder: Path) -> tuple[int, ...]:
    return tuple(int(part) for part in folder.name.split("."))


def _prepare_command(name: str, root: Path) -> str:
    command = f"tfds build {name} --file_format=array_record --data_dir={root}"
    return f"prepare it on a machine with TensorFlow: pip install tensorflow tensorflow-datasets && {command}"
