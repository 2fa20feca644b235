"""Residual networks (He et al., CVPR 2016), for CIFAR and for ImageNet. `models.resnet` and `resnet18` make them."""

import functools
from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp

from updcomp.training.network_layers import BatchNorm, Conv, Dense, max_pool


class CifarResNet(nn.Module):
    """Section 4.2: three stages and shortcuts without parameters."""

    blocks: int  # per stage
    num_classes: int

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """Logits of images."""
        norm = functools.partial(BatchNorm, use_running_average=not train)
        x = nn.relu(norm()(Conv(16, (3, 3))(x)))
        for width in (16, 32, 64):
            for block in range(self.blocks):
                stride = 2 if block == 0 and width > 16 else 1
                y = nn.relu(norm()(Conv(width, (3, 3), strides=stride, padding=1)(x)))
                y = norm()(Conv(width, (3, 3))(y))
                x = nn.relu(y + shortcut(x, width, stride))
        return Dense(self.num_classes)(x.mean(axis=(1, 2)))


class ImageNetResNet(nn.Module):
    """Table 1, 18 layers: stages of two blocks, and shortcuts of option B."""

    widths: Sequence[int]  # channels of each stage
    num_classes: int
    small_images: bool

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """Logits of images."""
        norm = functools.partial(BatchNorm, use_running_average=not train)
        if self.small_images:
            x = nn.relu(norm()(Conv(self.widths[0], (3, 3))(x)))
        else:
            x = max_pool(nn.relu(norm()(Conv(self.widths[0], (7, 7), strides=2, padding=3)(x))))
        for stage, width in enumerate(self.widths):
            for stride in (1 if stage == 0 else 2, 1):
                y = nn.relu(norm()(Conv(width, (3, 3), strides=stride, padding=1)(x)))
                y = norm()(Conv(width, (3, 3))(y))
                changes = stride > 1 or x.shape[-1] != width
                x = nn.relu(y + (norm()(Conv(width, (1, 1), strides=stride)(x)) if changes else x))
        return Dense(self.num_classes)(x.mean(axis=(1, 2)))


def shortcut(x: jax.Array, width: int, stride: int) -> jax.Array:
    """He et al.'s option A, without parameters: every second pixel, and zeros in the new channels."""
    return jnp.pad(x[:, ::stride, ::stride], ((0, 0), (0, 0), (0, 0), (0, width - x.shape[-1])))
