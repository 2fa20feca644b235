import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from updcomp.training.data import Dataset, load
from updcomp.training.shifts import contrast_noise, inversion, random_rotation, rotate, shift_dataset

IMAGES = jax.random.uniform(jax.random.key(0), (3, 8, 8, 2))


@pytest.mark.parametrize("size", [7, 8])
@pytest.mark.parametrize("quarters", [-1, 0, 1, 2, 3, 4])
def test_right_angles_are_rot90_exactly(size, quarters):
    images = IMAGES[:, :size, :size]
    turned = rotate(images, jnp.full(3, 90.0 * quarters))
    np.testing.assert_allclose(turned, jnp.rot90(images, quarters, axes=(1, 2)), atol=2e-6)


def test_half_a_turn_reverses_images_that_are_not_square():
    images = IMAGES[:, :5]
    np.testing.assert_allclose(rotate(images, jnp.full(3, 180.0)), images[:, ::-1, ::-1], atol=2e-6)


def test_every_image_has_its_own_angle():
    turned = rotate(IMAGES, jnp.array([0.0, 90.0, 180.0]))
    for index in range(3):
        np.testing.assert_allclose(turned[index], jnp.rot90(IMAGES[index], index), atol=2e-6)


def test_bilinear_interpolation_is_exact_on_planes_inside_and_zero_outside():
    size, angle = 21, 33.0
    y, x = np.mgrid[:size, :size] - (size - 1) / 2
    plane = (0.5 + 0.02 * x + 0.01 * y).astype(np.float32)
    cosine, sine = np.cos(np.deg2rad(angle)), np.sin(np.deg2rad(angle))
    from_y, from_x = y * cosine + x * sine, x * cosine - y * sine
    turned = np.asarray(rotate(plane[None, :, :, None], jnp.array([angle])))[0, :, :, 0]
    reach = np.maximum(abs(from_y), abs(from_x))
    inside, outside = reach <= (size - 1) / 2, reach >= (size + 1) / 2
    np.testing.assert_allclose(turned[inside], (0.5 + 0.02 * from_x + 0.01 * from_y)[inside], atol=1e-5)
    assert outside.sum() > 20
    assert not turned[outside].any()


def test_an_edge_fades_out_linearly_over_one_pixel():
    # White 3 x 3, 45 degrees: the corner pixel reads the input sqrt(2) right of the centre, .586 weight inside.
    turned = rotate(jnp.ones((1, 3, 3, 1)), jnp.array([45.0]))
    np.testing.assert_allclose(turned[0, 0, 0, 0], 2 - np.sqrt(2), rtol=1e-5)


def test_random_rotation_draws_angles_from_the_range_for_every_image():
    images = jnp.tile(IMAGES[:1], (200, 1, 1, 1))
    turned = jax.jit(functools.partial(random_rotation, low=30.0, high=45.0))(jax.random.key(1), images)
    angles = np.linspace(30.0, 45.0, 151)
    candidates = np.asarray(rotate(jnp.tile(IMAGES[:1], (151, 1, 1, 1)), jnp.asarray(angles, jnp.float32)))
    distances = abs(np.asarray(turned)[:, None] - candidates[None]).max((2, 3, 4))
    assert distances.min(1).max() < 0.02  # each is a rotation by an angle of the range, within half a grid step
    found = angles[distances.argmin(1)]
    assert found.min() < 31
    assert found.max() > 44
    assert abs(found.mean() - 37.5) < 1


def test_contrast_pulls_towards_the_mean_of_each_image_and_noise_has_its_deviation():
    images = 0.4 + 0.2 * IMAGES
    grey = contrast_noise(jax.random.key(0), images, contrast=0.25, noise=0.0)
    means = images.mean((1, 2, 3), keepdims=True)
    np.testing.assert_allclose(grey, means + 0.25 * (images - means), atol=1e-6)
    large = jnp.full((10, 32, 32, 1), 0.5)
    noisy = contrast_noise(jax.random.key(0), large, contrast=1.0, noise=0.1)
    assert abs(float(noisy.std()) - 0.1) < 0.002
    assert len(jnp.unique(noisy[:, 0, 0, 0])) == 10


def test_contrast_and_noise_stay_in_range():
    out = contrast_noise(jax.random.key(0), IMAGES, contrast=3.0, noise=1.0)
    assert (float(out.min()), float(out.max())) == (0.0, 1.0)


def test_inversion_is_the_negative_exactly_and_undoes_itself():
    levels = Dataset(np.arange(256, dtype=np.uint8).reshape(4, 8, 8, 1), np.arange(4, dtype=np.int32))
    negative = shift_dataset(levels, inversion, jax.random.key(0))
    np.testing.assert_array_equal(negative.images, 255 - levels.images)
    np.testing.assert_array_equal(shift_dataset(negative, inversion, jax.random.key(1)).images, levels.images)


@pytest.mark.parametrize("angle", [0.0, 30.0, 90.0])
def test_a_range_of_one_angle_turns_every_image_by_it(angle):
    turned = random_rotation(jax.random.key(0), IMAGES, low=angle, high=angle)
    np.testing.assert_array_equal(turned, rotate(IMAGES, jnp.full(3, angle)))


def test_a_shifted_dataset_is_the_rounded_shift_and_keeps_labels():
    digits = load("digits").test
    turned = shift_dataset(digits, lambda key, images: rotate(images, jnp.full(len(images), 90.0)), jax.random.key(0))
    assert turned.images.dtype == np.uint8
    np.testing.assert_array_equal(turned.images, np.rot90(digits.images, axes=(1, 2)))
    assert turned.labels is digits.labels


@pytest.mark.parametrize("n", [1, 1024, 1025, 2100])
def test_datasets_of_any_size_are_shifted_whole_and_chunks_differ(n):
    dataset = Dataset(np.full((n, 2, 2, 1), 128, np.uint8), np.arange(n, dtype=np.int32))
    shift = functools.partial(contrast_noise, contrast=1.0, noise=0.2)
    shifted = shift_dataset(dataset, shift, jax.random.key(0)).images
    assert shifted.shape == dataset.images.shape
    assert abs(shifted.mean() - 128) < 30 / np.sqrt(n)  # a third of a deviation of the mean is 13 / sqrt(n)
    if n > 1024:
        assert (shifted[0] != shifted[1024]).any()
    again = shift_dataset(dataset, shift, jax.random.key(0)).images
    np.testing.assert_array_equal(again, shifted)
    assert (shift_dataset(dataset, shift, jax.random.key(1)).images != shifted).any()


def test_float_datasets_become_bytes():
    dataset = Dataset(np.full((2, 2, 2, 1), 0.2, np.float32), np.zeros(2, np.int32))
    same = shift_dataset(dataset, lambda key, images: images, jax.random.key(0))
    assert (same.images == 51).all()


def test_an_empty_dataset_stays_empty():
    dataset = Dataset(np.zeros((0, 2, 2, 1), np.uint8), np.zeros(0, np.int32))
    assert shift_dataset(dataset, lambda key, images: images, jax.random.key(0)).images.shape == (0, 2, 2, 1)
