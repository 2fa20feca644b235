import flax.linen as nn
import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from updcomp.convolution import convolve

LAYOUT = ("NHWC", "HWIO", "NHWC")
CASES = [
    ((2, 8, 8, 3), (3, 3, 3, 4), (1, 1), "SAME"),
    ((2, 9, 7, 2), (3, 3, 2, 5), (2, 2), "SAME"),
    ((1, 8, 8, 2), (3, 2, 2, 3), (1, 2), "VALID"),
    ((2, 8, 8, 3), (3, 3, 3, 4), (2, 2), ((1, 1), (1, 1))),
    ((2, 5, 6, 3), (1, 1, 3, 4), (2, 2), "VALID"),
    ((1, 6, 6, 1), (5, 5, 1, 2), (1, 1), ((0, 3), (2, -1))),
]


def random(case):
    images, kernel, _, _ = case
    return jax.random.normal(jax.random.key(0), images), jax.random.normal(jax.random.key(1), kernel)


def reference(images, kernel, strides, padding, **options):
    return lax.conv_general_dilated(images, kernel, strides, padding, **{"dimension_numbers": LAYOUT, **options})


def products_in(function, *args, platform="cpu"):
    """Whether the function is lowered to convolutions or to matrix products on a platform."""
    text = jax.export.export(jax.jit(function), platforms=[platform])(*args).mlir_module()
    return "stablehlo.convolution" in text, "stablehlo.dot_general" in text


@pytest.mark.parametrize("case", CASES)
def test_it_is_the_convolution_of_lax(case):
    images, kernel = random(case)
    out = convolve(images, kernel, *case[2:], dimension_numbers=LAYOUT)
    np.testing.assert_allclose(out, reference(images, kernel, *case[2:]), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("case", CASES)
def test_so_are_its_gradients(case):
    images, kernel = random(case)

    def loss(function):
        return lambda x, k: jnp.sum(jnp.sin(function(x, k, *case[2:], dimension_numbers=LAYOUT)))

    ours = jax.jit(jax.grad(loss(convolve), (0, 1)))(images, kernel)
    theirs = jax.jit(jax.grad(loss(reference), (0, 1)))(images, kernel)
    for one, other in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-4)


def test_on_the_cpu_it_is_products_and_elsewhere_the_backend_s_own_forwards_and_backwards():
    images, kernel = random(CASES[0])

    def gradients(images, kernel):
        loss = lambda x, k: jnp.sum(convolve(x, k, (1, 1), "SAME", dimension_numbers=LAYOUT) ** 2)  # noqa: E731
        return jax.grad(loss, (0, 1))(images, kernel)

    assert products_in(gradients, images, kernel, platform="cpu") == (False, True)
    assert products_in(gradients, images, kernel, platform="cuda") == (True, False)
    assert products_in(gradients, images, kernel, platform="tpu") == (True, False)


DEPTHWISE = [
    ((2, 8, 8, 3), (3, 3, 1, 3), (1, 1), "SAME"),
    ((2, 9, 7, 4), (3, 3, 1, 4), (2, 2), "SAME"),
    ((1, 8, 6, 2), (5, 2, 1, 2), (1, 3), "VALID"),
    ((2, 6, 6, 3), (3, 3, 1, 3), (2, 1), ((1, 0), (2, 1))),
    ((2, 1, 1, 3), (3, 3, 1, 3), (2, 2), "SAME"),
]


@pytest.mark.parametrize("case", DEPTHWISE)
def test_one_kernel_per_channel_is_that_of_lax_and_so_are_its_gradients(case):
    images, kernel = random(case)
    options = {"dimension_numbers": LAYOUT, "feature_group_count": images.shape[-1]}

    def loss(images, kernel, function):
        out = function(images, kernel, *case[2:], **options)
        return jnp.sum(jnp.sin(out)), out

    def value_and_gradients(function):
        return jax.jit(jax.grad(lambda x, k: loss(x, k, function), (0, 1), has_aux=True))(images, kernel)

    ours, theirs = value_and_gradients(convolve), value_and_gradients(reference)
    for one, other in zip(*map(jax.tree.leaves, (ours, theirs)), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-4)


def test_one_kernel_per_channel_is_no_convolution_on_the_cpu_and_the_backend_s_own_elsewhere():
    images, kernel = random(DEPTHWISE[0])

    def gradients(images, kernel):
        options = {"dimension_numbers": LAYOUT, "feature_group_count": 3}
        return jax.grad(lambda x, k: jnp.sum(convolve(x, k, (1, 1), "SAME", **options) ** 2), (0, 1))(images, kernel)

    assert products_in(gradients, images, kernel, platform="cpu") == (False, False)
    assert products_in(gradients, images, kernel, platform="cuda") == (True, False)


@pytest.mark.parametrize("options", [
    {"rhs_dilation": (2, 2)},
    {"lhs_dilation": (2, 1)},
    {"feature_group_count": 2},
    {"dimension_numbers": ("NHWC", "OHWI", "NHWC")},
])  # fmt: skip
def test_what_it_does_not_do_itself_goes_to_lax(options):
    images = jax.random.normal(jax.random.key(0), (2, 8, 8, 4))
    shape = (6, 3, 3, 4) if "dimension_numbers" in options else (3, 3, 4 // options.get("feature_group_count", 1), 6)
    kernel = jax.random.normal(jax.random.key(1), shape)
    options = {"dimension_numbers": LAYOUT, **options}
    padding = ((1, 1), (1, 1))
    out = convolve(images, kernel, (1, 1), padding, **options)
    np.testing.assert_array_equal(out, reference(images, kernel, (1, 1), padding, **options))


def test_bfloat16_goes_to_lax_which_accumulates_in_more_bits():
    images, kernel = (array.astype(jnp.bfloat16) for array in random(CASES[0]))
    out = convolve(images, kernel, (1, 1), "SAME", dimension_numbers=LAYOUT)
    np.testing.assert_array_equal(out, reference(images, kernel, (1, 1), "SAME"))


def test_one_axis_goes_to_lax():
    images, kernel = jnp.ones((1, 5, 2)), jnp.ones((3, 2, 1))
    layout = ("NWC", "WIO", "NWC")
    out = convolve(images, kernel, (1,), "SAME", dimension_numbers=layout)
    assert out[0, :, 0].tolist() == [4.0, 6.0, 6.0, 6.0, 4.0]


@pytest.mark.parametrize("padding", ["SAME", "VALID", "CIRCULAR", 1])
@pytest.mark.parametrize("strides", [1, 2])
def test_flax_layers_take_it(padding, strides):
    images = jax.random.normal(jax.random.key(0), (2, 7, 7, 3))
    ours = nn.Conv(4, (3, 3), strides=strides, padding=padding, conv_general_dilated=convolve)
    theirs = nn.Conv(4, (3, 3), strides=strides, padding=padding)
    variables = theirs.init(jax.random.key(1), images)
    assert products_in(ours.apply, variables, images) == (False, True)
    expected = theirs.apply(variables, images)
    np.testing.assert_allclose(ours.apply(variables, images), expected, rtol=1e-5, atol=1e-5)


def test_it_maps_and_differentiates_forwards():
    images, kernel = random(CASES[0])
    one = lambda k: convolve(images, k, (1, 1), "SAME", dimension_numbers=LAYOUT)  # noqa: E731
    kernels = jnp.stack([kernel, 2 * kernel])
    np.testing.assert_allclose(jax.vmap(one)(kernels)[1], 2 * one(kernel), rtol=1e-5, atol=1e-5)
    _, tangent = jax.jvp(one, (kernel,), (kernel,))
    np.testing.assert_allclose(tangent, one(kernel), rtol=1e-5, atol=1e-5)
