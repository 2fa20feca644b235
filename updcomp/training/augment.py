"""Augmentation inside the compiled step: every image of a batch is flipped and cropped on its own."""

import jax
import jax.numpy as jnp


def crop_and_flip(key: jax.Array, images: jax.Array, *, padding: int = 4) -> jax.Array:
    """A mirror image with probability 1/2, then a random shift with zeros moving in.

    out[i, y, x] = image'[i, y + r, x + s], zero outside, with image' the image or its mirror image and r, s uniform in
    {-padding, ..., padding}, drawn for every image. Pixels are moved, never changed. The default is usual for CIFAR; on
    the 224 pixels that `data.load` makes of larger images it is milder than the usual crops of random size and shape.

    Args:
      key: a PRNG key.
      images: (n, h, w, c) of any dtype.
      padding: the largest shift in pixels.

    Returns:
      (n, h, w, c) of the same dtype.

    >>> crop_and_flip(jax.random.key(0), jnp.ones((2, 8, 8, 1), jnp.uint8)).shape
    (2, 8, 8, 1)
    """
    flip_key, shift_key = jax.random.split(key)
    flips = jax.random.bernoulli(flip_key, shape=(len(images), 1, 1, 1))
    corners = jax.random.randint(shift_key, (len(images), 2), 0, 2 * padding + 1)
    flipped = jnp.where(flips, images[:, :, ::-1], images)
    padded = jnp.pad(flipped, ((0, 0), (padding, padding), (padding, padding), (0, 0)))

    def crop(image: jax.Array, corner: jax.Array) -> jax.Array:
        return jax.lax.dynamic_slice(image, (corner[0], corner[1], 0), images.shape[1:])

    return jax.vmap(crop)(padded, corners)
