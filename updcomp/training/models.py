"""Models as pure (init, apply) pairs over plain parameter trees, on flax linen."""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from updcomp.training.mobilenets import MobileNetV1, MobileNetV2
from updcomp.training.network_layers import BatchNorm, Conv, Dense, halve
from updcomp.training.residual_networks import CifarResNet, ImageNetResNet
from updcomp.wire.errors import Error

Variables = dict[str, Any]


class Apply(Protocol):
    """The model's function.

    Args:
      variables: `{"params": {...}}`, and `"batch_stats"` where the model has batch norm.
      images: float32 (n, h, w, c) in [0, 1].
      train: True normalises with the batch's statistics and moves the running ones.

    Returns:
      (logits float32 (n, num_classes), `{"batch_stats": {...}}` as moved by this batch, or `{}` where there are none).
    """

    def __call__(self, variables: Variables, images: jax.Array, *, train: bool) -> tuple[jax.Array, Variables]:
        """(logits, the collections that the batch changed)."""

    def __hash__(self) -> int:
        """Objectives, and with them compiled functions, are kept by it."""


class Model(NamedTuple):
    """A model without its weights."""

    init: Callable[[jax.Array, ArrayLike], Variables]  # (key, images of the right shape) -> variables
    apply: Apply


class _Mlp(nn.Module):
    hidden: Sequence[int]
    num_classes: int
    batch_norm: bool

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        x = x.reshape(len(x), -1)
        for width in self.hidden:
            x = Dense(width, use_bias=not self.batch_norm)(x)
            if self.batch_norm:
                x = BatchNorm(use_running_average=not train)(x)
            x = nn.relu(x)
        return Dense(self.num_classes)(x)


class _Vgg(nn.Module):
    stages: Sequence[Sequence[int]]
    dense: Sequence[int]
    num_classes: int
    batch_norm: bool

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        def activate(x: jax.Array) -> jax.Array:
            return nn.relu(BatchNorm(use_running_average=not train)(x) if self.batch_norm else x)

        for widths in self.stages:
            for width in widths:
                x = activate(Conv(width, (3, 3), use_bias=not self.batch_norm)(x))
            x = halve(x)
        x = x.reshape(len(x), -1)
        for width in self.dense:
            x = activate(Dense(width, use_bias=not self.batch_norm)(x))
        return Dense(self.num_classes)(x)


def _model(module: nn.Module) -> Model:
    def init(key: jax.Array, images: ArrayLike) -> Variables:
        shape = (1, *jnp.shape(images)[1:])
        example = jax.ShapeDtypeStruct(shape, jnp.float32)
        return dict(module.lazy_init(key, example, train=False))  # computes the weights and nothing else

    def apply(variables: Variables, images: jax.Array, *, train: bool) -> tuple[jax.Array, Variables]:
        logits, updated = module.apply(variables, images, train=train, mutable=["batch_stats"] if train else [])
        return logits, dict(updated)

    return Model(init, apply)


def mlp(*, hidden: Sequence[int] = (512, 512), batch_norm: bool = False, num_classes: int = 10) -> Model:
    """Fully connected layers with ReLU between them.

    Args:
      hidden: width of each hidden layer.
      batch_norm: whether batch norm follows each hidden layer, in place of a bias and before the ReLU.
      num_classes: number of logits.

    Returns:
      A model; without batch norm it has no batch statistics.

    >>> variables = mlp(hidden=(4,)).init(jax.random.key(0), jnp.zeros((1, 8, 8, 1)))
    >>> variables["params"]["Dense_0"]["kernel"].shape
    (64, 4)
    """
    return _model(_Mlp(tuple(hidden), num_classes, batch_norm))


def vgg(
    *,
    stages: Sequence[Sequence[int]] = ((128, 128), (256, 256), (512, 512)),
    dense: Sequence[int] = (1024, 1024),
    batch_norm: bool = True,
    num_classes: int = 10,
) -> Model:
    """Stages of 3 x 3 convolutions, each halved by max pooling, then fully connected layers.

    The defaults are the VGGNet for CIFAR-10 of Courbariaux et al., BinaryConnect (NeurIPS 2015):
    2x128C3 - MP2 - 2x256C3 - MP2 - 2x512C3 - MP2 - 2x1024FC - 10.

    Args:
      stages: the channels of every convolution, stage by stage; images need at least 2^len(stages) pixels a side.
      dense: width of each hidden fully connected layer.
      batch_norm: whether batch norm follows each hidden layer, in place of a bias; devices often have it folded in.
      num_classes: number of logits.

    Returns:
      A model, with batch statistics if it has batch norm; its functions raise an Error for images that are too small.

    >>> variables = vgg(stages=((4,), (8,)), dense=(16,)).init(jax.random.key(0), jnp.zeros((1, 8, 8, 1)))
    >>> variables["params"]["Conv_1"]["kernel"].shape
    (3, 3, 4, 8)
    """
    return _model(_Vgg(tuple(map(tuple, stages)), tuple(dense), num_classes, batch_norm))


def resnet(*, depth: int = 20, num_classes: int = 10) -> Model:
    """The residual network for CIFAR: 16, 32 and 64 channels, global average pooling, parameter-free shortcuts.

    He et al., Deep Residual Learning (CVPR 2016), section 4.2, option A.

    Args:
      depth: 6n + 2 with n >= 1 blocks of two convolutions per stage: 20, 32, 44, 56, 110.
      num_classes: number of logits.

    Returns:
      A model with batch statistics.

    Raises:
      Error: no n gives this depth.

    >>> variables = resnet(depth=8).init(jax.random.key(0), jnp.zeros((1, 32, 32, 3)))
    >>> sum(leaf.size for leaf in jax.tree.leaves(variables["params"]))
    75290
    """
    if depth < 8 or depth % 6 != 2:
        raise Error(f"depth: expected 6n + 2 (8, 14, 20, ..., 56), found {depth}; choose one of these")
    return _model(CifarResNet(depth // 6, num_classes))


def mobilenet_v1(*, width: float = 1.0, num_classes: int = 1000) -> Model:
    """Depthwise separable convolutions for 224 x 224 pixels, batch norm and ReLU after each; global average pooling.

    Howard et al., MobileNets (2017), table 1: 4.2 million parameters.

    Args:
      width: multiplies the channels of every layer; above 0.
      num_classes: number of logits.

    Returns:
      A model with batch statistics, for images of any size.

    Raises:
      Error: the width leaves a layer without channels.

    >>> variables = jax.eval_shape(mobilenet_v1().init, jax.random.key(0), jnp.zeros((1, 224, 224, 3)))
    >>> sum(leaf.size for leaf in jax.tree.leaves(variables["params"]))
    4231976
    """
    if round(32 * width) < 1:
        raise Error(f"width: expected at least 1/32, one channel in the first layer, found {width}; use 0.25 to 1")
    return _model(MobileNetV1(width, num_classes))


def mobilenet_v2(*, width: float = 1.0, num_classes: int = 1000, small_images: bool = False) -> Model:
    """Inverted residuals with linear bottlenecks for 224 x 224 pixels, batch norm and ReLU6; global average pooling.

    Sandler et al., MobileNetV2 (CVPR 2018), table 2: 3.5 million parameters. Without dropout.

    Args:
      width: multiplies the channels, which are rounded to multiples of 8, of all layers; of the last convolution where
        it is above 1 alone.
      num_classes: number of logits.
      small_images: for images of about 32 x 32 pixels, such as CIFAR's, of which 1 x 1 would remain: the first two
        halvings are left out, and 4 x 4 remain. The weights have the same shapes.

    Returns:
      A model with batch statistics, for images of any size.

    Raises:
      Error: the width is not above 0.

    >>> model = mobilenet_v2(width=0.35, num_classes=10, small_images=True)
    >>> variables = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 32, 32, 3)))
    >>> sum(leaf.size for leaf in jax.tree.leaves(variables["params"]))
    408938
    """
    if not width > 0:
        raise Error(f"width: expected above 0, found {width}; use 0.35 to 1.4")
    return _model(MobileNetV2(width, num_classes, small_images))


def resnet18(*, num_classes: int = 1000, small_images: bool = False) -> Model:
    """The residual network of 18 layers for ImageNet: 64 to 512 channels, projections where the shape changes.

    He et al., Deep Residual Learning (CVPR 2016), table 1, option B.

    Args:
      num_classes: number of logits.
      small_images: for images of about 32 x 32 pixels, such as CIFAR's, of which 1 x 1 would remain: the first
        convolution is 3 x 3 with stride 1 in place of 7 x 7 with stride 2, and no pooling follows; 4 x 4 remain.

    Returns:
      A model with batch statistics, for images of any size.

    >>> variables = jax.eval_shape(resnet18().init, jax.random.key(0), jnp.zeros((1, 224, 224, 3)))
    >>> sum(leaf.size for leaf in jax.tree.leaves(variables["params"]))
    11689512
    """
    return _model(ImageNetResNet((64, 128, 256, 512), num_classes, small_images))


MODELS: dict[str, Callable[..., Model]] = {
    "mlp": mlp,
    "mlp_bn": functools.partial(mlp, batch_norm=True),
    "cnn": functools.partial(vgg, stages=((16,), (32,)), dense=(64,)),
    "vgg": vgg,
    "vgg_small": functools.partial(vgg, stages=((16, 16), (32, 32), (64, 64)), dense=(128,), batch_norm=False),
    "resnet20": functools.partial(resnet, depth=20),
    "resnet56": functools.partial(resnet, depth=56),
    "mobilenet_v1": mobilenet_v1,
    "mobilenet_v2": mobilenet_v2,
    "mobilenet_v2_small": functools.partial(mobilenet_v2, width=0.35, small_images=True),  # for 32 x 32 pixels
    "resnet18": resnet18,
}


def by_name(name: str, *, num_classes: int) -> Model:
    """The model of this name with its usual sizes.

    Args:
      name: a key of `MODELS`.
      num_classes: number of logits.

    Returns:
      The model.

    Raises:
      Error: there is no such model; lists the names.
    """
    if name not in MODELS:
        raise Error(f"model: expected one of {', '.join(MODELS)}, found {name!r}")
    return MODELS[name](num_classes=num_classes)
