"""Convolution that is fast on every backend, inside compiled loops too.

On the CPU, XLA's convolution is ten to a hundred times slower inside `scan` and `fori_loop` than outside. There a
convolution is a sum of products, one per kernel pixel; on other backends it stays XLA's own. The choice falls when a
function is lowered for its devices.
"""

import contextlib
import contextvars
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

_AT_A_TIME = 1 << 17  # numbers of the images that are convolved at a time, or of what that gives
_NHWC = ("NHWC", "HWIO", "NHWC")


_native = contextvars.ContextVar("native", default=False)


@contextlib.contextmanager
def native() -> Iterator[None]:
    """Within it, what is traced has the backend's own convolutions, whose operations compilers count."""
    token = _native.set(True)
    try:
        yield
    finally:
        _native.reset(token)


def convolve(
    images: jax.Array,
    kernel: jax.Array,
    window_strides: Sequence[int],
    padding: str | Sequence[tuple[int, int]],
    *,
    feature_group_count: int = 1,
    precision: lax.PrecisionLike = None,
    **options: Any,
) -> jax.Array:
    """`lax.conv_general_dilated` for `flax.linen.Conv(conv_general_dilated=convolve)`.

    out[n, y, x, o] = sum_{i, j, c} padded[n, s y + i, s x + j, c] kernel[i, j, c, o], or depthwise
    out[n, y, x, c] = sum_{i, j} padded[n, s y + i, s x + j, c] kernel[i, j, 0, c].

    Args:
      images: (n, h, w, in), where another layout or dtype than float32 is asked for it goes to lax as it is.
      kernel: (kernel_h, kernel_w, in, out), or (kernel_h, kernel_w, 1, in) where it is depthwise.
      window_strides: (rows, columns).
      padding: `"SAME"`, `"VALID"` or ((top, bottom), (left, right)).
      feature_group_count: 1, or the number of channels for depthwise convolution; other groups go to lax as they are.
      precision: of the products, as in lax.
      **options: the other arguments of `lax.conv_general_dilated`; dilations go to lax as they are.

    Returns:
      (n, out_h, out_w, out) of the images' dtype.

    >>> images, kernel = jnp.ones((1, 3, 3, 1)), jnp.ones((3, 3, 1, 1))
    >>> out = convolve(images, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
    >>> out[0, :, :, 0].tolist()
    [[4.0, 6.0, 4.0], [6.0, 9.0, 6.0], [4.0, 6.0, 4.0]]
    """
    is_depthwise = feature_group_count == images.shape[-1] == kernel.shape[-1]

    def native(images: jax.Array, kernel: jax.Array) -> jax.Array:
        return lax.conv_general_dilated(
            images,
            kernel,
            window_strides,
            padding,
            feature_group_count=feature_group_count,
            precision=precision,
            **options,
        )

    def multiply(images: jax.Array, kernel: jax.Array) -> jax.Array:
        if is_depthwise:
            return images * kernel[None, None]
        return jnp.tensordot(images, kernel, axes=1, precision=precision)

    def products(images: jax.Array, kernel: jax.Array) -> jax.Array:
        return _sum_of_products(images, kernel, window_strides, padding, multiply)

    if _native.get() or not (is_depthwise or feature_group_count == 1) or not _is_plain(images, kernel, options):
        return native(images, kernel)
    out: jax.Array = lax.platform_dependent(images, kernel, cpu=products, default=native)
    return out


def _is_plain(images: jax.Array, kernel: jax.Array, options: dict[str, Any]) -> bool:
    """Whether this is a float32 NHWC convolution over two axes, without dilations."""
    if images.ndim != 4 or images.dtype != jnp.float32 or kernel.dtype != jnp.float32:
        return False
    layout = lax.conv_dimension_numbers(images.shape, kernel.shape, options.get("dimension_numbers"))
    nhwc = lax.conv_dimension_numbers(images.shape, kernel.shape, _NHWC)
    rest = {name: value for name, value in options.items() if name != "dimension_numbers"}
    return layout == nhwc and all(value in (None, 1, (1, 1), [1, 1]) for value in rest.values())


def _sum_of_products(
    images: jax.Array,
    kernel: jax.Array,
    strides: Sequence[int],
    padding: str | Sequence[tuple[int, int]],
    multiply: Callable[[jax.Array, jax.Array], jax.Array],
) -> jax.Array:
    """One product of (n, out_h, out_w, in) and (in, out) or (1, in) for each kernel pixel, on images shifted by it."""
    if isinstance(padding, str):
        padding = lax.padtype_to_pads(images.shape[1:3], kernel.shape[:2], strides, padding)
    padded = lax.pad(images, jnp.zeros((), images.dtype), ((0, 0, 0), *((*pad, 0) for pad in padding), (0, 0, 0)))
    rows, columns = (
        (size - window) // stride + 1
        for size, window, stride in zip(padded.shape[1:3], kernel.shape[:2], strides, strict=True)
    )
    outputs = kernel.shape[3]

    def of_some(images: jax.Array) -> jax.Array:
        out = jnp.zeros((), images.dtype)
        for i in range(kernel.shape[0]):
            for j in range(kernel.shape[1]):
                ends = i + (rows - 1) * strides[0] + 1, j + (columns - 1) * strides[1] + 1
                shifted = images[:, i : ends[0] : strides[0], j : ends[1] : strides[1]]
                out = out + multiply(shifted, kernel[i, j])
        return out

    # Beside each other, all products of all images would be held at once.
    some = _some(len(padded), max(math.prod(padded.shape[1:]), rows * columns * outputs))
    if some == len(padded) or kernel.shape[:2] == (1, 1):
        return of_some(padded)
    out = lax.map(jax.checkpoint(of_some), padded.reshape(-1, some, *padded.shape[1:]))
    return out.reshape(len(padded), rows, columns, outputs)


def _some(count: int, size: int) -> int:
    """How many images of so many numbers are convolved at a time: a divisor of their count."""
    return next(some for some in range(max(1, min(count, _AT_A_TIME // size)), 0, -1) if count % some == 0)
