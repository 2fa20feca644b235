import json
import os
import resource
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
import tensorflow_datasets as tfds

from updcomp.training import data
from updcomp.training import prepared as prepared_module
from updcomp.wire.errors import DatasetError

FOLDER = Path(os.environ.get("UPDCOMP_DATA_DIR") or Path(__file__).parents[3] / "shared" / "tfds")


def prepared(name):
    if not (FOLDER / name).is_dir():
        command = f"tfds build {name} --file_format=array_record --data_dir={FOLDER}"
        where = "prepared datasets are looked for in $UPDCOMP_DATA_DIR, by default ../shared/tfds beside the checkout"
        pytest.skip(f"{name} is not prepared in {FOLDER}: {where}; to get it: {command}")
    return FOLDER


def test_mnist_as_published():
    source = data.load("mnist", data_dir=prepared("mnist"))
    assert source.num_classes == 10
    assert source.train.images.shape == (60000, 28, 28, 1)
    assert source.test.images.dtype == np.uint8
    assert source.test.labels.dtype == np.int32
    assert np.bincount(source.test.labels).tolist() == [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
    # LeCun et al.'s training set has mean grey .1307, as every tutorial's normalisation says.
    assert abs(source.train.images.mean() / 255 - 0.1307) < 1e-4


def test_cifar10_has_colours_and_equal_classes():
    source = data.load("cifar10", data_dir=prepared("cifar10"))
    assert source.train.images.shape == (50000, 32, 32, 3)
    assert np.bincount(source.test.labels).tolist() == [1000] * 10
    np.testing.assert_allclose(source.train.images.mean((0, 1, 2)) / 255, [0.4914, 0.4822, 0.4465], atol=2e-3)


def test_a_dataset_that_is_not_prepared_is_an_error_with_the_command_that_prepares_it(tmp_path):
    command = f"tfds build fashion_mnist --file_format=array_record --data_dir={tmp_path}"
    with pytest.raises(DatasetError) as error:
        data.load("fashion_mnist", data_dir=tmp_path)
    assert command in str(error.value)


def test_the_default_folder_is_that_of_tensorflow_datasets(tmp_path, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    with pytest.raises(DatasetError, match=f"expected it in {tmp_path}"):
        data.load("mnist")


@pytest.mark.parametrize("name", ["no_such_dataset", "", "digit"])
def test_an_unknown_name_is_an_error(name, tmp_path):
    with pytest.raises(DatasetError, match="expected digits or the name of a TFDS dataset"):
        data.load(name, data_dir=tmp_path)


def edited(folder, name, file, change):
    """A copy of a prepared dataset's description, without its records, after a change."""
    version = next((prepared(name) / name).iterdir())
    target = folder / name / version.name
    target.mkdir(parents=True)
    for path in version.glob("*.json"):
        shutil.copy(path, target)
    content = json.loads((target / file).read_text())
    change(content)
    (target / file).write_text(json.dumps(content))
    return folder


def test_a_dataset_without_labels_is_not_classification(tmp_path):
    folder = edited(tmp_path, "mnist", "dataset_info.json", lambda info: info.pop("supervisedKeys"))
    with pytest.raises(DatasetError, match="expected an image and its class, found the features image, label"):
        data.load("mnist", data_dir=folder)


def test_images_of_many_sizes_with_other_channels_are_an_error(tmp_path):
    def any_size(content):
        features = content["featuresDict"]["features"]
        features["image"]["image"]["shape"]["dimensions"] = ["-1", "-1", "4"]

    folder = edited(tmp_path, "mnist", "features.json", any_size)
    with pytest.raises(DatasetError, match=r"with 1 or 3 channels, found uint8 of shape \(None, None, 4\)"):
        data.load("mnist", data_dir=folder)


def test_a_dataset_prepared_as_tfrecord_is_an_error_with_the_command(tmp_path):
    def tfrecord(info):
        info["fileFormat"] = "tfrecord"

    folder = edited(tmp_path, "mnist", "dataset_info.json", tfrecord)
    with pytest.raises(DatasetError, match="expected files in the format array_record, found tfrecord; prepare it"):
        data.load("mnist", data_dir=folder)


def test_a_dataset_without_test_samples_is_an_error(tmp_path):
    def only_train(info):
        info["splits"] = [split for split in info["splits"] if split["name"] == "train"]

    folder = edited(tmp_path, "mnist", "dataset_info.json", only_train)
    with pytest.raises(DatasetError, match="expected the splits train and test"):
        data.load("mnist", data_dir=folder)


def gradient(h, w, channels):
    """Smooth, as JPEG likes it, and another in each channel: RGB is not BGR, and up is not left."""
    y, x = np.mgrid[:h, :w]
    return np.stack([200 * y / h, 200 * x / w, 100 + 0 * y][:channels], axis=-1).round().astype(np.uint8)


def prepare(folder, name, splits, *, channels=3, size=(None, None), others=None):
    """Writes a dataset as `tfds build` does, without TensorFlow: (encoded image, label) pairs by split.

    `others` are further features of every sample: name -> (feature, value).
    """
    from array_record.python.array_record_module import ArrayRecordWriter

    target = folder / name / "1.0.0"
    target.mkdir(parents=True)
    image = tfds.features.Image(shape=(*size, channels))
    kinds = {key: feature for key, (feature, _) in (others or {}).items()}
    values = {key: value for key, (_, value) in (others or {}).items()}
    features = tfds.features.FeaturesDict({"image": image, "label": tfds.features.ClassLabel(num_classes=10), **kinds})
    features.save_config(str(target))
    infos = []
    for split, samples in splits.items():
        writer = ArrayRecordWriter(str(target / f"{name}-{split}.array_record-00000-of-00001"), "group_size:1")
        for encoded, label in samples:
            example = features.encode_example({"image": encoded, "label": label, **values})
            writer.write(features.serialize_example(example))
        writer.close()
        infos.append({
            "name": split,
            "shardLengths": [str(len(samples))],
            "filepathTemplate": "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}",
        })  # fmt: skip
    keys = {"tuple": {"items": [{"featureKey": "image"}, {"featureKey": "label"}]}}
    info = {"name": name, "version": "1.0.0", "fileFormat": "array_record", "splits": infos, "supervisedKeys": keys}
    (target / "dataset_info.json").write_text(json.dumps(info))
    return target


def encoded(image, suffix=".png"):
    flipped = image[..., ::-1] if image.ndim == 3 else image
    return cv2.imencode(suffix, flipped)[1].tobytes()


SIZES = [(256, 256), (300, 256), (256, 391), (512, 700), (100, 80)]


def expected(h, w, channels=3):
    """A gradient is a gradient after any crop and any resizing: its values at the centres of the pixels that remain."""
    side = round(min(h, w) * 7 / 8)
    at = (np.arange(224) + 0.5) * side / 224 - 0.5
    y, x = np.meshgrid((h - side) // 2 + at, (w - side) // 2 + at, indexing="ij")
    return np.stack([200 * y / h, 200 * x / w, 100 + 0 * y][:channels], axis=-1)


@pytest.mark.parametrize(("suffix", "close"), [(".png", 1.5), (".jpg", 6)])
def test_images_of_many_sizes_become_central_crops_in_a_file(tmp_path, suffix, close):
    samples = [(encoded(gradient(*size, 3), suffix), label) for label, size in enumerate(SIZES)]
    prepare(tmp_path, "many_sizes", {"train": samples, "validation": samples[:2]})
    source = data.load("many_sizes", data_dir=tmp_path)
    assert source.train.images.shape == (5, 224, 224, 3)
    assert isinstance(source.train.images, np.memmap)
    assert source.train.labels.tolist() == [0, 1, 2, 3, 4]
    assert source.test.labels.tolist() == [0, 1]
    assert source.num_classes == 10
    for image, size in zip(source.train.images, SIZES, strict=True):
        # A border of the enlarged image repeats pixels.
        np.testing.assert_allclose(image[2:-2, 2:-2], expected(*size)[2:-2, 2:-2], atol=close)
    if suffix == ".png":
        np.testing.assert_array_equal(source.train.images[0], gradient(256, 256, 3)[16:240, 16:240])


@pytest.mark.parametrize(("name", "test", "more"), [
    ("food101", "validation", ()),
    ("oxford_flowers102", "test", ("validation",)),
    ("caltech_birds2011", "test", ()),
])  # fmt: skip
def test_datasets_of_photographs_load_whatever_else_they_hold(tmp_path, name, test, more):
    """Their splits; masks and boxes as the birds and the pets have. No mask is decoded: this one could not be."""
    features = tfds.features
    others = {
        "image/filename": (features.Text(), "one.jpg"),
        "bbox": (features.BBoxFeature(), features.BBox(0.1, 0.2, 0.3, 0.4)),
        "segmentation_mask": (features.Image(shape=(None, None, 1)), b"no image"),
    }
    samples = [(encoded(gradient(*size, 3), ".jpg"), label) for label, size in enumerate(SIZES)]
    prepare(tmp_path, name, {"train": samples, test: samples[3:], **dict.fromkeys(more, samples[:1])}, others=others)
    source = data.load(name, data_dir=tmp_path, image_size=48)
    assert source.train.images.shape == (5, 48, 48, 3)
    assert source.test.labels.tolist() == [3, 4]


def test_images_of_one_size_are_resized_whole_where_a_size_is_given(tmp_path):
    picture = gradient(32, 32, 3)
    prepare(tmp_path, "squares", {"train": [(encoded(picture), 1)], "test": [(encoded(picture), 2)]}, size=(32, 32))
    as_stored = data.load("squares", data_dir=tmp_path)
    np.testing.assert_array_equal(as_stored.train.images[0], picture)
    large = data.load("squares", data_dir=tmp_path, image_size=128)
    assert large.test.images.shape == (1, 128, 128, 3)
    assert large.test.labels.tolist() == [2]
    small = data.load("squares", data_dir=tmp_path, image_size=16).train.images[0]
    np.testing.assert_allclose(small, picture.reshape(16, 2, 16, 2, 3).mean((1, 3)), atol=1)
    np.testing.assert_allclose(large.train.images[0, 64, 64], picture[15:17, 15:17].mean((0, 1)), atol=3)


def test_digits_are_resized_as_well():
    digits, doubled = data.load("digits"), data.load("digits", image_size=16)
    assert doubled.train.images.shape == (1198, 16, 16, 1)
    np.testing.assert_array_equal(doubled.test.labels, digits.test.labels)
    assert abs(doubled.test.images.mean() - digits.test.images.mean()) < 1
    with pytest.raises(DatasetError, match="image_size: expected at least 1 pixel a side, found 0"):
        data.load("digits", image_size=0)


def test_images_are_resized_once(tmp_path, monkeypatch):
    samples = [(encoded(gradient(40, 50, 3)), 1)]
    folder = prepare(tmp_path, "many_sizes", {"train": samples, "test": samples})
    first = data.load("many_sizes", data_dir=tmp_path, image_size=32)
    assert first.train.images.shape == (1, 32, 32, 3)
    monkeypatch.setattr(cv2, "imdecode", None)
    again = data.load("many_sizes", data_dir=tmp_path, image_size=32)
    np.testing.assert_array_equal(again.train.images, first.train.images)
    assert {path.suffix for path in folder.glob("updcomp-*")} == {".npy"}


def test_grey_images_among_coloured_ones_and_datasets_of_grey_ones(tmp_path):
    samples = [(encoded(gradient(64, 64, 1)[..., 0]), 0)]
    for name, channels in (("coloured", 3), ("grey", 1)):
        prepare(tmp_path, name, {"train": samples, "test": samples}, channels=channels)
        images = data.load(name, data_dir=tmp_path, image_size=56).train.images
        assert images.shape == (1, 56, 56, channels)
        for channel in range(channels):
            np.testing.assert_array_equal(images[0, ..., channel], gradient(64, 64, 1)[4:60, 4:60, 0])


def test_a_test_split_without_labels_is_not_the_test(tmp_path):
    picture = encoded(gradient(20, 20, 3))
    splits = {"train": [(picture, 1)], "test": [(picture, -1)], "validation": [(picture, 7)]}
    prepare(tmp_path, "secret", splits)
    assert data.load("secret", data_dir=tmp_path, image_size=8).test.labels.tolist() == [7]
    prepare(tmp_path, "public", splits | {"test": [(picture, 3)]})
    assert data.load("public", data_dir=tmp_path, image_size=8).test.labels.tolist() == [3]


def test_a_damaged_image_leaves_no_file(tmp_path):
    samples = [(encoded(gradient(20, 20, 3)), 0), (b"no image", 1)]
    folder = prepare(tmp_path, "damaged", {"train": samples, "test": samples})
    for _ in range(2):
        with pytest.raises(
            DatasetError, match="dataset damaged: record 1 of train: expected an image, found other bytes"
        ):
            data.load("damaged", data_dir=tmp_path)
    assert not list(folder.glob("updcomp-*"))


def test_a_folder_without_room_is_an_error_that_says_how_much_is_needed(tmp_path):
    samples = [(encoded(gradient(20, 20, 3)), 0)] * 2
    folder = prepare(tmp_path, "large", {"train": samples, "test": samples})
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, limits[1]))
    try:
        with pytest.raises(DatasetError, match="expected to write 0.000301 GB of resized images, found: .*too large"):
            data.load("large", data_dir=tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert not list(folder.glob("updcomp-*"))


def test_many_chunks_are_one_file(tmp_path, monkeypatch):
    monkeypatch.setattr(prepared_module, "_CHUNK", 2)
    samples = [(encoded(np.full((9, 9, 3), 20 * i, np.uint8)), i) for i in range(5)]
    prepare(tmp_path, "chunks", {"train": samples, "test": samples[:2]})
    train = data.load("chunks", data_dir=tmp_path, image_size=4).train
    assert train.labels.tolist() == [0, 1, 2, 3, 4]
    np.testing.assert_array_equal(train.images, np.tile(20 * train.labels[:, None, None, None], (1, 4, 4, 3)))
