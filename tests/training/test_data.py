import numpy as np
import pytest

from updcomp.training import data
from updcomp.training.data import Dataset
from updcomp.wire.errors import DatasetError


@pytest.fixture(scope="module")
def digits():
    return data.load("digits")


def numbered(n):
    """A dataset whose labels number its samples and whose pixels repeat the number."""
    return Dataset(np.arange(n, dtype=np.uint8).reshape(n, 1, 1, 1), np.arange(n, dtype=np.int32))


def test_digits_are_uint8_images_with_int32_labels_and_the_full_range_of_grey(digits):
    assert digits.train.images.shape == (1198, 8, 8, 1)
    assert digits.test.images.shape == (599, 8, 8, 1)
    assert digits.num_classes == 10
    for part in (digits.train, digits.test):
        assert part.images.dtype == np.uint8
        assert part.labels.dtype == np.int32
        assert (part.images.min(), part.images.max()) == (0, 255)


def test_digits_splits_hold_every_sample_once_and_a_third_of_each_class_is_for_the_test(digits):
    from sklearn.datasets import load_digits

    pixels, labels = load_digits(return_X_y=True)
    ours = np.concatenate([part.images.reshape(-1, 64) for part in digits[:2]])
    our_labels = np.concatenate([part.labels for part in digits[:2]])
    expected = sorted(map(tuple, np.column_stack([np.rint(pixels * 255 / 16), labels]).astype(int).tolist()))
    assert sorted(map(tuple, np.column_stack([ours, our_labels]).astype(int).tolist())) == expected
    shares = np.bincount(digits.test.labels) / np.bincount(labels)
    np.testing.assert_allclose(shares, 1 / 3, atol=0.01)


def test_digits_come_shuffled_and_the_same_every_time(digits):
    again = data.load("digits")
    np.testing.assert_array_equal(again.train.images, digits.train.images)
    assert len(set(digits.train.labels[:50].tolist())) == 10


def test_to_float_scales_bytes_and_leaves_floats_alone():
    scaled = data.to_float(np.arange(256, dtype=np.uint8))
    assert scaled.dtype == np.float32
    np.testing.assert_allclose(scaled, np.arange(256) / 255, rtol=2e-7)
    floats = np.float32([0.25, 0.5])
    np.testing.assert_array_equal(data.to_float(floats), floats)


def test_split_gives_parts_that_share_no_sample_and_keep_images_with_their_labels():
    parts = data.split(numbered(20), (5, 7, 4), seed=3)
    assert [len(part.labels) for part in parts] == [5, 7, 4]
    chosen = np.concatenate([part.labels for part in parts])
    assert len(set(chosen.tolist())) == 16
    np.testing.assert_array_equal(np.concatenate([part.images.ravel() for part in parts]), chosen)


def test_split_depends_on_the_seed_alone():
    def first(seed):
        return data.split(numbered(100), (10,), seed=seed)[0].labels.tolist()

    assert first(0) == first(0)
    assert first(0) != first(1)


def test_split_refuses_more_samples_than_there_are():
    with pytest.raises(DatasetError, match=r"together at most 4, found \(3, 2\)"):
        data.split(numbered(4), (3, 2), seed=0)


def test_of_classes_grows_with_the_classes_and_keeps_the_order(digits):
    few, more = data.of_classes(digits.test, range(3)), data.of_classes(digits.test, range(5))
    assert set(few.labels.tolist()) == {0, 1, 2}
    np.testing.assert_array_equal(data.of_classes(more, (0, 1, 2)).images, few.images)
    np.testing.assert_array_equal(more.labels, digits.test.labels[digits.test.labels < 5])


def test_take_accepts_slices_indices_and_booleans():
    dataset = numbered(4)
    assert data.take(dataset, slice(1, 3)).labels.tolist() == [1, 2]
    assert data.take(dataset, np.array([3, 0])).images.ravel().tolist() == [3, 0]
    assert data.take(dataset, dataset.labels > 2).labels.tolist() == [3]
