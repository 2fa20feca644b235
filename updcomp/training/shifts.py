"""Ways the world changes: pure, jittable functions (key, images) -> images on float32 images in [0, 1]."""

import functools
from collections.abc import Callable
from typing import TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from updcomp.training.data import Dataset, to_float

Shift: TypeAlias = Callable[..., jax.Array]
"""How the world changes: (key, float32 images in [0, 1], **options) -> images; it can be hashed."""

_CHUNK = 1024  # images per compiled call, so that memory does not grow with the dataset


def rotate(images: jax.Array, degrees: jax.Array) -> jax.Array:
    """Turns every image anticlockwise about its centre, bilinear, with zeros from outside.

    Pixel (y, x) covers the unit square around it, so the centre is c = ((h - 1) / 2, (w - 1) / 2), and with
    v = (y, x) - c the output at v is the input at (v_y cos t + v_x sin t, v_x cos t - v_y sin t) + c: 90 degrees give
    `jnp.rot90`.

    Args:
      images: float32 (n, h, w, c).
      degrees: float32 (n,), the angle of each image.

    Returns:
      float32 (n, h, w, c).

    >>> image = jnp.array([[1.0, 0.0], [0.0, 0.0]])[None, :, :, None]
    >>> rotate(image, jnp.array([90.0]))[0, :, :, 0].round(3).tolist()
    [[0.0, 0.0], [1.0, 0.0]]
    """
    _, h, w, _ = images.shape
    middle_y, middle_x = (h - 1) / 2, (w - 1) / 2
    rows, columns = jnp.arange(h, dtype=jnp.float32), jnp.arange(w, dtype=jnp.float32)
    y, x = jnp.meshgrid(rows - middle_y, columns - middle_x, indexing="ij")

    def one(image: jax.Array, angle: jax.Array) -> jax.Array:
        cosine, sine = jnp.cos(angle), jnp.sin(angle)
        return _bilinear(image, y * cosine + x * sine + middle_y, x * cosine - y * sine + middle_x)

    return jax.vmap(one)(images, jnp.deg2rad(degrees))


def random_rotation(key: jax.Array, images: jax.Array, *, low: float, high: float) -> jax.Array:
    """Turns every image anticlockwise by an angle of its own, uniform in [low, high).

    Args:
      key: a PRNG key.
      images: float32 (n, h, w, c).
      low: the smallest angle in degrees.
      high: the largest angle in degrees.

    Returns:
      float32 (n, h, w, c).
    """
    return rotate(images, jax.random.uniform(key, (len(images),), minval=low, maxval=high))


def contrast_noise(key: jax.Array, images: jax.Array, *, contrast: float, noise: float) -> jax.Array:
    """Draws every image towards its mean grey and adds Gaussian noise.

    out = clip(m + contrast (x - m) + noise e, 0, 1), m the mean of the image, e standard normal per value.

    Args:
      key: a PRNG key.
      images: float32 (n, h, w, c) in [0, 1].
      contrast: factor of the contrast; 1 keeps it.
      noise: standard deviation of the noise, in the images' units; 0 adds none.

    Returns:
      float32 (n, h, w, c) in [0, 1].
    """
    mean = images.mean(axis=(1, 2, 3), keepdims=True)
    shifted = mean + contrast * (images - mean) + noise * jax.random.normal(key, images.shape)
    return jnp.clip(shifted, 0.0, 1.0)


def inversion(key: jax.Array, images: jax.Array) -> jax.Array:
    """The negative of every image: out = 1 - x.

    Args:
      key: a PRNG key, which plays no part.
      images: float32 (n, h, w, c) in [0, 1].

    Returns:
      float32 (n, h, w, c) in [0, 1].

    >>> inversion(jax.random.key(0), jnp.full((1, 1, 1, 1), 0.25)).item()
    0.75
    """
    return 1 - images


def shift_dataset(dataset: Dataset, shift: Shift, key: jax.Array, **options: float) -> Dataset:
    """The same samples in the changed world, fixed once and for all.

    Args:
      dataset: n samples.
      shift: (key, images, **options) -> images, such as `random_rotation`; it is compiled once for all options.
      key: a PRNG key; one is split off for every chunk of the dataset.
      **options: numbers for the shift, such as `low=30, high=45`.

    Returns:
      A dataset with uint8 images, rounded to the nearest level, and the same labels.
    """
    apply = _compiled(shift)
    starts = range(0, len(dataset.labels), _CHUNK)
    images = np.asarray(dataset.images)
    out = np.empty(images.shape, np.uint8)
    for chunk, start in enumerate(starts):
        rows = slice(start, start + _CHUNK)
        missing = max(0, _CHUNK - len(images[rows])) if start else 0  # one compilation serves all chunks
        padded = np.pad(images[rows], ((0, missing), (0, 0), (0, 0), (0, 0)))
        shifted = np.asarray(apply(jax.random.fold_in(key, chunk), padded, options))
        out[rows] = shifted[: len(shifted) - missing]
    return Dataset(out, dataset.labels)


@functools.lru_cache(maxsize=16)
def _compiled(shift: Shift) -> Callable[[jax.Array, ArrayLike, dict[str, float]], jax.Array]:
    @jax.jit
    def apply(key: jax.Array, images: jax.Array, options: dict[str, float]) -> jax.Array:
        return jnp.rint(jnp.clip(shift(key, to_float(images), **options), 0.0, 1.0) * 255).astype(jnp.uint8)

    return apply


def _bilinear(image: jax.Array, y: jax.Array, x: jax.Array) -> jax.Array:
    """The image (h, w, c) at the points (y, x), any shape; zero outside."""
    y0, x0 = jnp.floor(y), jnp.floor(x)
    out = jnp.zeros((*y.shape, image.shape[-1]), image.dtype)
    for corner_y in (y0, y0 + 1):
        for corner_x in (x0, x0 + 1):
            weight = (1 - jnp.abs(y - corner_y)) * (1 - jnp.abs(x - corner_x))
            rows, columns = corner_y.astype(jnp.int32), corner_x.astype(jnp.int32)
            # Negative indices would count from the end; an index past the end reads the fill value.
            rows = jnp.where(rows < 0, image.shape[0], rows)
            columns = jnp.where(columns < 0, image.shape[1], columns)
            out += weight[..., None] * image.at[rows, columns].get(mode="fill", fill_value=0)
    return out
