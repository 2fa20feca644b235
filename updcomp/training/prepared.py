"""Prepared datasets of TensorFlow Datasets, read from their files alone: neither TensorFlow nor its code."""

import fcntl
import math
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, BinaryIO

import cv2
import numpy as np
import tensorflow_datasets as tfds

from updcomp.training.data import Dataset, Source
from updcomp.wire.errors import DatasetError

_CHUNK = 1000  # records in memory at once while a dataset is decoded
_MODES = {1: cv2.IMREAD_GRAYSCALE, 3: cv2.IMREAD_COLOR}  # by channels
_CROP = 224 / 256  # side of the central square, as a share of the shorter side of an image
_USUAL_SIZE = 224  # pixels a side where images vary in size


def load(name: str, data_dir: str | Path | None, image_size: int | None) -> Source:
    """A prepared dataset by name; see `training.data.load`.

    Raises:
      DatasetError: it is not there, or in another format, or no image classification.
    """
    root = Path(data_dir or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets").expanduser()
    versions = [path.parent for path in (root / name).glob("*/dataset_info.json")]
    if not versions:
        if name.partition("/")[0] not in tfds.list_builders(with_community_datasets=False):
            found = f"dataset: expected digits or the name of a TFDS dataset, found {name!r}"
            raise DatasetError(f"{found}; see https://www.tensorflow.org/datasets/catalog")
        raise DatasetError(f"dataset {name}: expected it in {root}, found none; {_prepare_command(name, root)}")
    folder = max(versions, key=_version)
    builder = tfds.builder_from_directory(folder)
    file_format = builder.info.file_format.value
    if file_format not in ("array_record", "parquet"):
        found = f"dataset {name}: expected files in the format array_record, found {file_format}"
        raise DatasetError(f"{found}; {_prepare_command(name, root)}")
    image, label = _supervised(name, builder.info)
    splits = ("train", _test_split(name, builder, label))
    num_classes = builder.info.features[label].num_classes
    if None in builder.info.features[image].shape:
        size = image_size or _USUAL_SIZE
        train, test = (_resized(folder, builder, split, image, label, size) for split in splits)
        return Source(train, test, num_classes)
    train, test = (_decoded(builder, split, image, label) for split in splits)
    return resize(Source(train, test, num_classes), image_size)


def resize(source: Source, size: int | None) -> Source:
    """A source with `size` pixels a side, of the central square of each image; None leaves the images as they are.

    >>> one = Dataset(np.full((1, 3, 2, 1), 7, np.uint8), np.zeros(1, np.int32))
    >>> resize(Source(one, one, 10), 4).test.images.shape
    (1, 4, 4, 1)
    """
    if size is None:
        return source

    def resized(dataset: Dataset) -> Dataset:
        images = np.empty((len(dataset.labels), size, size, dataset.images.shape[-1]), np.uint8)
        for row, image in enumerate(dataset.images):
            images[row] = central(image, size, share=1.0).reshape(images.shape[1:])
        return Dataset(images, dataset.labels)

    return Source(resized(source.train), resized(source.test), source.num_classes)


def _supervised(name: str, info: Any) -> tuple[str, str]:
    """The names of the image and of its class among a dataset's features."""
    keys, features = info.supervised_keys, info.features
    kinds = (tfds.features.Image, tfds.features.ClassLabel)
    if not keys or len(keys) != 2 or not all(isinstance(features[k], t) for k, t in zip(keys, kinds, strict=True)):
        found = f"expected an image and its class, found the features {', '.join(sorted(features))}"
        raise DatasetError(f"dataset {name}: {found}; choose an image classification dataset")
    image, label = keys
    shape, dtype = features[image].shape, np.dtype(features[image].np_dtype)
    if dtype != np.uint8 or (None in shape and shape[-1] not in _MODES):
        found = f"expected uint8 images of one size or with 1 or 3 channels, found {dtype} of shape {shape}"
        raise DatasetError(f"dataset {name}: {found}; choose another")
    return image, label


def _test_split(name: str, builder: Any, label: str) -> str:
    """The split test, or validation where there is none or its labels are not public."""
    splits = builder.info.splits
    test = "test" if "test" in splits else "validation"
    if not {"train", test} <= set(splits):
        found = f"expected the splits train and test (or validation), found {', '.join(sorted(splits))}"
        raise DatasetError(f"dataset {name}: {found}; choose another")
    if {"test", "validation"} <= set(splits) and _encoded(builder, "test")[0][label] < 0:
        return "validation"
    return test


def _decoded(builder: Any, split: str, image: str, label: str) -> Dataset:
    """A split in memory."""
    source = builder.as_data_source(split)
    images = np.empty((len(source), *builder.info.features[image].shape), np.uint8)
    labels = np.empty(len(source), np.int32)
    for start in range(0, len(source), _CHUNK):
        rows = range(start, min(start + _CHUNK, len(source)))
        for row, record in zip(rows, source.__getitems__(list(rows)), strict=True):
            images[row], labels[row] = record[image], record[label]
    return Dataset(images, labels)


def _encoded(builder: Any, split: str) -> Any:
    """A split whose images, and masks where it has any, are still encoded."""
    features = builder.info.features
    pictures = (name for name in features if isinstance(features[name], tfds.features.Image))
    return builder.as_data_source(split, decoders=dict.fromkeys(pictures, tfds.decode.SkipDecoding()))


def _resized(folder: Path, builder: Any, split: str, image: str, label: str, size: int) -> Dataset:
    """A split in files beside the prepared one, which are written first where they are not there."""
    images_file, labels_file = (folder / f"updcomp-{split}-{part}.npy" for part in (f"images-{size}", "labels"))
    if not images_file.exists():
        source = _encoded(builder, split)
        shape = (len(source), size, size, builder.info.features[image].shape[-1])
        lock, images, labels = (images_file.with_suffix(suffix) for suffix in (".lock", ".unfinished", ".labels"))
        try:
            with open(lock, "w") as held:
                fcntl.flock(held, fcntl.LOCK_EX)  # what another process writes meanwhile is not written again
                if not images_file.exists():
                    with open(images, "wb") as file, open(labels, "wb") as numbers:
                        np.save(numbers, _write_resized(file, source, image, label, shape))
                    labels.rename(labels_file)
                    images.rename(images_file)
        except OSError as error:
            expected = f"expected to write {math.prod(shape) / 1e9:.3g} GB of resized images, found: {error}"
            raise DatasetError(f"{folder}: {expected}; make room, or copy the dataset to a folder of yours") from error
        finally:
            for path in (lock, images, labels):
                path.unlink(missing_ok=True)
    return Dataset(np.load(images_file, mmap_mode="r"), np.load(labels_file))


def _write_resized(file: BinaryIO, source: Any, image: str, label: str, shape: tuple[int, ...]) -> np.ndarray:
    """Writes a source's images, resized, as an `.npy` file of shape (n, size, size, c); their labels, int32 (n,)."""
    mode = _MODES[shape[-1]] | cv2.IMREAD_IGNORE_ORIENTATION  # as TensorFlow does

    def resized(row: int, record: dict[str, Any]) -> np.ndarray:
        pixels = cv2.imdecode(np.frombuffer(record[image], np.uint8), mode)
        if pixels is None:
            found = f"record {row} of {source.split}: expected an image, found other bytes"
            raise DatasetError(f"dataset {source.dataset_info.name}: {found}; prepare it again")
        return central(pixels, shape[1]).reshape(shape[1:])[..., ::-1]  # OpenCV says BGR

    labels = np.empty(len(source), np.int32)
    np.lib.format.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": shape})
    with ThreadPoolExecutor(os.cpu_count()) as pool:  # OpenCV decodes outside of the interpreter's lock
        for start in range(0, len(source), _CHUNK):
            rows = range(start, min(start + _CHUNK, len(source)))
            records = source.__getitems__(list(rows))
            file.write(np.stack(list(pool.map(resized, rows, records))).data)
            labels[rows.start : rows.stop] = [record[label] for record in records]
    file.flush()
    os.fsync(file.fileno())
    return labels


def central(image: np.ndarray, size: int, *, share: float = _CROP) -> np.ndarray:
    """The central square, resized. By default for size 224: the shorter side at 256 and then cropped.

    Args:
      image: uint8 (h, w) or (h, w, c).
      size: pixels a side of the result.
      share: side of the square, as a share of the shorter side.

    Returns:
      uint8 (size, size) or (size, size, c); means over areas where the square shrinks, bilinear where it grows.

    >>> central(np.full((16, 20), 7, np.uint8), 2).tolist()
    [[7, 7], [7, 7]]
    """
    h, w = image.shape[:2]
    side = max(1, round(share * min(h, w)))
    top, left = (h - side) // 2, (w - side) // 2
    square = image[top : top + side, left : left + side]
    return cv2.resize(square, (size, size), interpolation=cv2.INTER_AREA if side > size else cv2.INTER_LINEAR)


def _version(folder: Path) -> tuple[int, ...]:
    return tuple(int(part) for part in folder.name.split("."))


def _prepare_command(name: str, root: Path) -> str:
    command = f"tfds build {name} --file_format=array_record --data_dir={root}"
    return f"prepare it on a machine with TensorFlow: pip install tensorflow tensorflow-datasets && {command}"
