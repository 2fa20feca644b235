"""Models as pure (init, apply) pairs over plain parameter trees, on flax linen."""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from updcomp.training.convolution import convolve
from updcomp.wire.errors import Error

Variables = dict[str, Any]

_he = nn.initializers.he_normal()
_Dense = functools.partial(nn.Dense, kernel_init=_he)
# Batch norm follows every convolution and has the bias.
_Conv = functools.partial(nn.Conv, use_bias=False, kernel_init=_he, conv_general_dilated=convolve)
_BatchNorm = functools.partial(nn.BatchNorm, momentum=0.9, epsilon=1e-5)
# Channels and stride of MobileNetV1's separable blocks. The paper's table says stride 2 in the last one too, but its
# sizes there, 7 x 7 before and after, say 1.
_MOBILENET_V1 = ((64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2), *5 * ((512, 1),), (1024, 2), (1024, 1))


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
            x = _Dense(width, use_bias=not self.batch_norm)(x)
            if self.batch_norm:
                x = _BatchNorm(use_running_average=not train)(x)
            x = nn.relu(x)
        return _Dense(self.num_classes)(x)


class _Vgg(nn.Module):
    stages: Sequence[Sequence[int]]
    dense: Sequence[int]
    num_classes: int

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        for widths in self.stages:
            for width in widths:
                x = nn.relu(_BatchNorm(use_running_average=not train)(_Conv(width, (3, 3))(x)))
            x = _halve(x)
        x = x.reshape(len(x), -1)
        for width in self.dense:
            x = _Dense(width, use_bias=False)(x)
            x = nn.relu(_BatchNorm(use_running_average=not train)(x))
        return _Dense(self.num_classes)(x)


class _ResNet(nn.Module):
    blocks: int  # per stage
    num_classes: int

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        norm = functools.partial(_BatchNorm, use_running_average=not train)
        x = nn.relu(norm()(_Conv(16, (3, 3))(x)))
        for width in (16, 32, 64):
            for block in range(self.blocks):
                stride = 2 if block == 0 and width > 16 else 1
                y = nn.relu(norm()(_Conv(width, (3, 3), strides=stride, padding=1)(x)))
                y = norm()(_Conv(width, (3, 3))(y))
                x = nn.relu(y + _shortcut(x, width, stride))
        return _Dense(self.num_classes)(x.mean(axis=(1, 2)))


class _MobileNetV1(nn.Module):
    width: float
    num_classes: int

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        def layer(x: jax.Array, channels: int, window: int, stride: int, groups: int = 1) -> jax.Array:
            x = _Conv(channels, (window, window), strides=stride, feature_group_count=groups)(x)
            return nn.relu(_BatchNorm(use_running_average=not train)(x))

        x = layer(x, round(32 * self.width), 3, 2)
        for channels, stride in _MOBILENET_V1:
            x = layer(x, x.shape[-1], 3, stride, groups=x.shape[-1])
            x = layer(x, round(channels * self.width), 1, 1)
        return _Dense(self.num_classes)(x.mean(axis=(1, 2)))


def _halve(x: jax.Array) -> jax.Array:
    """Max pooling 2 x 2; an odd last row or column is left out. A reshape, as its gradient is fast everywhere."""
    n, h, w, c = x.shape
    if min(h, w) < 2:
        raise Error(f"vgg: expected at least 2 x 2 pixels before each pooling, found {h} x {w}; use fewer stages")
    return x[:, : h // 2 * 2, : w // 2 * 2].reshape(n, h // 2, 2, w // 2, 2, c).max(axis=(2, 4))


def _shortcut(x: jax.Array, width: int, stride: int) -> jax.Array:
    """He et al.'s option A, without parameters: every second pixel, and zeros in the new channels."""
    return jnp.pad(x[:, ::stride, ::stride], ((0, 0), (0, 0), (0, 0), (0, width - x.shape[-1])))


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
    num_classes: int = 10,
) -> Model:
    """Stages of 3 x 3 convolutions, each halved by max pooling, then fully connected layers; batch norm throughout.

    The defaults are the VGGNet for CIFAR-10 of Courbariaux et al., BinaryConnect (NeurIPS 2015):
    2x128C3 - MP2 - 2x256C3 - MP2 - 2x512C3 - MP2 - 2x1024FC - 10.

    Args:
      stages: the channels of every convolution, stage by stage; images need at least 2^len(stages) pixels a side.
      dense: width of each hidden fully connected layer.
      num_classes: number of logits.

    Returns:
      A model with batch statistics; its functions raise an Error for images that are too small.

    >>> variables = vgg(stages=((4,), (8,)), dense=(16,)).init(jax.random.key(0), jnp.zeros((1, 8, 8, 1)))
    >>> variables["params"]["Conv_1"]["kernel"].shape
    (3, 3, 4, 8)
    """
    return _model(_Vgg(tuple(map(tuple, stages)), tuple(dense), num_classes))


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
    return _model(_ResNet(depth // 6, num_classes))


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
    return _model(_MobileNetV1(width, num_classes))


MODELS: dict[str, Callable[..., Model]] = {
    "mlp": mlp,
    "mlp_bn": functools.partial(mlp, batch_norm=True),
    "cnn": functools.partial(vgg, stages=((16,), (32,)), dense=(64,)),
    "vgg": vgg,
    "resnet20": functools.partial(resnet, depth=20),
    "resnet56": functools.partial(resnet, depth=56),
    "mobilenet_v1": mobilenet_v1,
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
