"""Augmentation inside the compiled step: every image of a batch is cropped and flipped on its own."""

import jax
import jax.numpy as jnp


def crop_and_flip(key: jax.Array, images: jax.Array, *, padding: int = 4) -> jax.Array:
    """A random shift with zeros moving in, then a mirror image with probability 1/2.

    For each image i, with offsets r, c uniform in {-padding..padding} and flip f in {0, 1}:
    out[i, y, x] = image[i, y + r, f ? w - 1 - x : x, + c], zero outside. Pixels are moved, never interpolated.

    Args:
      key: a PRNG key.
      images: (n, h, w, c) of any dtype.
      padding: the largest shift in pixels.

    Returns:
      (n, h, w, c) of the same dtype.

    >>> crop_and_flip(jax.random.key(0), jnp.ones((2, 8, 8, 1), jnp.uint8)).shape
    (2, 8, 8, 1)
    """
    n, h, w, channels = images.shape
    shift_key, flip_key = jax.random.split(key)
    offsets = jax.random.randint(shift_key, (n, 2), 0, 2 * padding + 1)
    flips = jax.random.bernoulli(flip_key, shape=(n,))
    padded = jnp.pad(images, ((0, 0), (padding, padding), (padding, padding), (0, 0)))

    def crop(image: jax.Array, offset: jax.Array, flip: jax.Array) -> jax.Array:
        window = jax.lax.dynamic_slice(image, (offset[0], offset[1], 0), (h, w, channels))
        return jnp.where(flip, window[:, ::-1], window)

    return jax.vmap(crop)(padded, offsets, flips)
