import functools
from importlib.metadata import version

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from updcomp.training import models
from updcomp.training.mobilenets import MobileNetV1, MobileNetV2, divisible
from updcomp.training.models import MODELS, by_name, mlp, mobilenet_v1, mobilenet_v2, resnet, vgg
from updcomp.training.network_layers import halve, max_pool
from updcomp.training.residual_networks import ImageNetResNet, shortcut
from updcomp.wire.errors import Error

IMAGES = jax.random.uniform(jax.random.key(7), (6, 8, 8, 3))
# Deep models compile sooner with the fusions that other tests do without.
UNOPTIMISED = {"xla_backend_optimization_level": 0}
if version("jaxlib").startswith("0.10."):  # another one may not know it
    UNOPTIMISED["xla_cpu_use_fusion_emitters"] = True
STAGES = ((1, 16, 1, 1), (6, 24, 2, 2))  # of MobileNetV2
SMALL = {
    "mlp": mlp(hidden=(16, 12), num_classes=5),
    "mlp_bn": mlp(hidden=(16, 12), batch_norm=True, num_classes=5),
    "vgg": vgg(stages=((4, 6), (8,)), dense=(10,), num_classes=5),
    "resnet": resnet(depth=8, num_classes=5),
    # The first stages of each.
    "mobilenet_v1": models._model(MobileNetV1(1 / 16, 5, blocks=((64, 1), (128, 2), (128, 1)))),
    "mobilenet_v2": models._model(MobileNetV2(0.1, 5, small_images=True, stages=STAGES)),
    "resnet18": models._model(ImageNetResNet((4, 6), 5, small_images=True)),
}


@functools.cache
def trained(name):
    """A model with its weights, and what a training step finds: gradients, logits, moved statistics."""
    model = SMALL[name]
    variables = jax.jit(model.init, compiler_options=UNOPTIMISED)(jax.random.key(0), IMAGES)

    def loss(params):
        logits, updated = model.apply({**variables, "params": params}, IMAGES, train=True)
        return -jax.nn.log_softmax(logits)[:, 1].sum(), (logits, updated)

    return model, variables, *jax.jit(jax.grad(loss, has_aux=True), compiler_options=UNOPTIMISED)(variables["params"])


@pytest.fixture(params=SMALL)
def case(request):
    return trained(request.param)


def count(variables):
    return sum(leaf.size for leaf in jax.tree.leaves(variables["params"]))


def test_variables_are_plain_dicts_of_float32(case):
    _, variables, *_ = case
    assert set(variables) <= {"params", "batch_stats"}
    nodes = [variables]
    while nodes:
        node = nodes.pop()
        assert type(node) is dict or node.dtype == jnp.float32
        nodes += node.values() if isinstance(node, dict) else []


def test_the_training_mode_moves_the_statistics_and_the_other_does_not(case):
    model, variables, _, (logits, updated) = case
    assert logits.shape == (6, 5)
    assert set(updated) == set(variables) - {"params"}
    if updated:
        assert jax.tree.structure(updated["batch_stats"]) == jax.tree.structure(variables["batch_stats"])
        pairs = zip(jax.tree.leaves(updated), jax.tree.leaves(variables["batch_stats"]), strict=True)
        assert all((new != old).any() for new, old in pairs)
    assert jax.eval_shape(lambda v: model.apply(v, IMAGES, train=False), variables)[1] == {}


def test_outside_training_an_image_does_not_depend_on_its_batch(case):
    model, variables, *_ = case
    apply = jax.jit(model.apply, static_argnames="train", compiler_options=UNOPTIMISED)
    expected, _ = apply(variables, IMAGES, train=False)
    logits, _ = apply(variables, IMAGES.at[:2].set(0.0), train=False)
    np.testing.assert_allclose(logits[2:], expected[2:], rtol=1e-5, atol=1e-5)
    assert (logits[:2] != expected[:2]).any()


def test_every_parameter_gets_a_gradient(case):
    _, _, gradients, _ = case
    assert all(bool((leaf != 0).any() and jnp.isfinite(leaf).all()) for leaf in jax.tree.leaves(gradients))


def test_init_depends_on_the_key_and_on_the_shape_alone():
    model = SMALL["mlp"]
    one, same = model.init(jax.random.key(0), IMAGES), model.init(jax.random.key(0), jnp.zeros_like(IMAGES)[:1])
    jax.tree.map(np.testing.assert_array_equal, one, same)
    other = model.init(jax.random.key(1), IMAGES)
    assert (one["params"]["Dense_0"]["kernel"] != other["params"]["Dense_0"]["kernel"]).all()


@pytest.mark.parametrize(("name", "image", "parameters"), [
    ("mlp", (28, 28, 1), 784 * 512 + 512 + 512 * 512 + 512 + 512 * 10 + 10),
    ("mlp_bn", (28, 28, 1), 784 * 512 + 2 * 512 + 512 * 512 + 2 * 512 + 512 * 10 + 10),
    ("cnn", (8, 8, 1), 9 * 16 + 32 + 9 * 16 * 32 + 64 + 128 * 64 + 128 + 64 * 10 + 10),
    ("vgg", (32, 32, 3), 14_029_706),
    ("resnet20", (32, 32, 3), 269_722),
    ("resnet56", (32, 32, 3), 853_018),
])  # fmt: skip
def test_models_by_name_have_the_published_sizes(name, image, parameters):
    model = by_name(name, num_classes=10)
    variables = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, *image)))
    assert count(variables) == parameters
    logits, _ = jax.eval_shape(lambda v, x: model.apply(v, x, train=False), variables, jnp.zeros((2, *image)))
    assert logits.shape == (2, 10)


def multiply_adds(model, variables, image):
    """Of one image, those of the batch norms as well. Lowered for a GPU, where a convolution is one operation."""
    lowered = jax.jit(lambda v, x: model.apply(v, x, train=False)).trace(variables, image)
    return lowered.lower(lowering_platforms=("cuda",)).cost_analysis()["flops"] / 2


def test_mobilenet_v1_has_the_published_layers_and_sizes():
    """Keras' MobileNet, which is the authors' own, has 4,231,976 trained parameters and 21,888 statistics."""
    image = jax.ShapeDtypeStruct((1, 224, 224, 3), jnp.float32)
    model = by_name("mobilenet_v1", num_classes=1000)
    variables = jax.eval_shape(model.init, jax.random.key(0), image)
    assert count(variables) == 4_231_976
    assert sum(leaf.size for leaf in jax.tree.leaves(variables["batch_stats"])) == 21_888
    halved = jax.eval_shape(mobilenet_v1(width=0.5).init, jax.random.key(0), image)
    assert count(halved) == 1_331_592
    assert 569e6 < multiply_adds(model, variables, image) < 569e6 * 1.1


def test_mobilenet_v2_has_the_published_layers_and_sizes():
    """Of torchvision: 3,504,872. Keras' table, 3.47 million, leaves batch norm out; NEq counts convolutions alone."""
    image = jax.ShapeDtypeStruct((1, 224, 224, 3), jnp.float32)
    model = by_name("mobilenet_v2", num_classes=1000)
    variables = jax.eval_shape(model.init, jax.random.key(0), image)
    assert count(variables) == 3_504_872
    params = variables["params"]
    convolutions = sum(layer["kernel"].size for name, layer in params.items() if name.startswith("Conv_"))
    assert convolutions == 2_189_760
    assert round((convolutions + count({"params": params["Dense_0"]})) / 1e6, 2) == 3.47
    assert 300e6 < multiply_adds(model, variables, image) < 300e6 * 1.1
    assert MODELS["mobilenet_v2_small"].keywords == {"width": 0.35, "small_images": True}


@pytest.mark.parametrize(
    ("channels", "multiple"), [(0.5, 8), (11.2, 16), (12, 16), (33.6, 32), (26, 24), (8, 8), (1792, 1792)]
)
def test_channels_are_multiples_of_8_and_never_lose_a_tenth(channels, multiple):
    assert divisible(channels) == multiple
    assert divisible(channels) >= 0.9 * channels


@pytest.mark.parametrize(("module", "pixels"), [
    (functools.partial(MobileNetV2, 0.1, 5, stages=STAGES), {False: 4, True: 16}),
    (functools.partial(ImageNetResNet, (4, 6), 5), {False: 2, True: 8}),
])  # fmt: skip
@pytest.mark.parametrize("small_images", [False, True])
def test_small_images_are_halved_twice_less(module, pixels, small_images):
    network = module(small_images=small_images)
    image = jax.ShapeDtypeStruct((1, 16, 16, 3), jnp.float32)

    def run(key, image):
        variables = network.init(key, image, train=False)
        return network.apply(variables, image, train=False, capture_intermediates=True, mutable="intermediates")[1]

    seen = jax.eval_shape(run, jax.random.key(0), image)["intermediates"]
    sizes = [layer["__call__"][0].shape[1] for name, layer in seen.items() if name.startswith("Conv_")]
    assert min(sizes) == pixels[small_images]


def test_a_width_without_channels_is_an_error():
    with pytest.raises(Error, match="width: expected at least 1/32, .* found 0.01"):
        mobilenet_v1(width=0.01)
    with pytest.raises(Error, match="width: expected above 0, found 0"):
        mobilenet_v2(width=0)


def test_an_unknown_model_is_an_error_that_lists_the_names():
    with pytest.raises(Error, match="expected one of mlp, mlp_bn, cnn, .*, mobilenet_v1.*, found 'resnet'"):
        by_name("resnet", num_classes=10)
    assert {"mlp", "mlp_bn", "cnn", "vgg", "vgg_small", "resnet20", "resnet56", "mobilenet_v1"} <= set(MODELS)


@pytest.mark.parametrize("depth", [2, 9, 18, 54])
def test_a_residual_network_needs_a_depth_of_6n_plus_2(depth):
    with pytest.raises(Error, match=rf"expected 6n \+ 2 .* found {depth}"):
        resnet(depth=depth)


def test_weights_start_with_the_variance_of_he():
    kernel = mlp(hidden=(500,)).init(jax.random.key(0), jnp.zeros((1, 20, 20, 1)))["params"]["Dense_0"]["kernel"]
    assert abs(float(kernel.var()) * 400 / 2 - 1) < 0.02
    layers = vgg(stages=((100, 100),), dense=()).init(jax.random.key(0), jnp.zeros((1, 4, 4, 1)))["params"]
    assert abs(float(layers["Conv_1"]["kernel"].var()) * 9 * 100 / 2 - 1) < 0.02


def test_batch_norm_normalises_and_keeps_a_tenth_of_each_batch():
    model = vgg(stages=((3,),), dense=(), num_classes=2)
    variables = model.init(jax.random.key(0), IMAGES)
    _, updated = model.apply(variables, IMAGES, train=True)
    windows = jax.lax.conv_general_dilated(
        IMAGES, variables["params"]["Conv_0"]["kernel"], (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    moved = updated["batch_stats"]["BatchNorm_0"]
    np.testing.assert_allclose(moved["mean"], 0.1 * windows.mean((0, 1, 2)), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(moved["var"], 0.9 + 0.1 * windows.var((0, 1, 2)), rtol=1e-4)


def test_max_pooling_halves_and_leaves_an_odd_row_out():
    image = jnp.arange(15.0).reshape(1, 3, 5, 1)
    assert halve(image)[0, :, :, 0].tolist() == [[6.0, 8.0]]


def test_overlapping_max_pooling_is_the_maximum_of_each_window():
    images = jax.random.normal(jax.random.key(0), (2, 7, 6, 3))
    windows = (1, 3, 3, 1), (1, 2, 2, 1), ((0, 0), (1, 1), (1, 1), (0, 0))
    expected = jax.lax.reduce_window(images, -jnp.inf, jax.lax.max, *windows)
    np.testing.assert_array_equal(max_pool(images), expected)
    slopes = jax.grad(lambda x: (max_pool(x) ** 2).sum())(images)
    reference = jax.grad(lambda x: (jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, *windows) ** 2).sum())(images)
    np.testing.assert_allclose(slopes, reference, rtol=1e-6)


def test_images_too_small_for_the_poolings_are_an_error():
    model = vgg(stages=((2,), (2,), (2,), (2,)), dense=())
    with pytest.raises(Error, match="at least 2 x 2 pixels before each pooling, found 1 x 1"):
        jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 8, 8, 1)))


def test_the_shortcut_takes_every_second_pixel_and_pads_channels_with_zeros():
    image = jnp.arange(1.0, 33).reshape(1, 4, 4, 2)
    out = shortcut(image, 5, 2)
    np.testing.assert_array_equal(out[..., :2], image[:, ::2, ::2])
    assert out.shape == (1, 2, 2, 5)
    assert not out[..., 2:].any()
