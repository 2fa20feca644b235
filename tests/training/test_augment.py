import jax
import jax.numpy as jnp
import numpy as np
import pytest

from updcomp.training.augment import crop_and_flip


def distinct(n, h, w):
    """Images whose pixels all differ, so that where each came from can be read off; zero never occurs."""
    return (1 + np.arange(n * h * w, dtype=np.int32)).reshape(n, h, w, 1)


def shifts_of(image, padding):
    """All that may come out for an image: {(flipped, row, column): window}."""
    outcomes = {}
    for flipped in (False, True):
        padded = np.pad(image[:, ::-1] if flipped else image, ((padding, padding), (padding, padding), (0, 0)))
        for row in range(2 * padding + 1):
            for column in range(2 * padding + 1):
                window = padded[row : row + image.shape[0], column : column + image.shape[1]]
                outcomes[flipped, row, column] = window
    return outcomes


def test_every_image_is_one_of_its_own_shifts_and_all_of_them_occur():
    images = np.repeat(distinct(1, 4, 5), 400, axis=0)
    out = np.asarray(crop_and_flip(jax.random.key(0), images, padding=1))
    outcomes = {window.tobytes(): name for name, window in shifts_of(images[0], 1).items()}
    seen = [outcomes[image.tobytes()] for image in out]
    assert set(seen) == set(outcomes.values())  # 18 outcomes; 400 draws miss one with probability 2e-9
    counts = np.array([seen.count(name) for name in set(seen)])
    assert ((counts - 400 / 18) ** 2 / (400 / 18)).sum() < 45  # chi-squared, 17 degrees of freedom: p = 2e-4


def test_images_of_a_batch_do_not_mix():
    images = distinct(3, 6, 6)
    out = np.asarray(crop_and_flip(jax.random.key(1), images))
    for image, result in zip(images, out, strict=True):
        assert set(np.unique(result).tolist()) <= {0, *np.unique(image).tolist()}


@pytest.mark.parametrize("dtype", [jnp.uint8, jnp.float32, jnp.bfloat16])
def test_dtype_and_bits_are_kept(dtype):
    images = jnp.full((8, 5, 5, 3), 1 / 3 if dtype != jnp.uint8 else 77).astype(dtype)
    out = crop_and_flip(jax.random.key(2), images, padding=0)
    assert out.dtype == dtype
    np.testing.assert_array_equal(out, images)


def test_compiled_and_not_it_is_the_same():
    images = distinct(4, 8, 8)
    plain = crop_and_flip(jax.random.key(3), images)
    np.testing.assert_array_equal(jax.jit(crop_and_flip)(jax.random.key(3), images), plain)
