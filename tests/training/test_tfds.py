import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from updcomp.training import data
from updcomp.wire.errors import DatasetError

FOLDER = Path(os.environ.get("UPDCOMP_DATA_DIR") or Path(__file__).parents[3] / "shared" / "tfds")


def prepared(name):
    if not (FOLDER / name).is_dir():
        pytest.skip(f"{name} is not prepared in {FOLDER}; set UPDCOMP_DATA_DIR to a folder that has it")
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


def test_images_of_many_sizes_are_an_error(tmp_path):
    def any_size(content):
        features = content["featuresDict"]["features"]
        features["image"]["image"]["shape"]["dimensions"] = ["-1", "-1", "1"]

    folder = edited(tmp_path, "mnist", "features.json", any_size)
    with pytest.raises(DatasetError, match=r"images of one size, found uint8 of shape \(None, None, 1\)"):
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
