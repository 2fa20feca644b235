"""MobileNets: networks of depthwise separable convolutions. `models.mobilenet_v1` and `mobilenet_v2` make them."""

from collections.abc import Sequence

import flax.linen as nn
import jax

from updcomp.training.network_layers import BatchNorm, Conv, Dense

# Channels and stride of MobileNetV1's separable blocks. The paper's table says stride 2 in the last one too, but its
# sizes there, 7 x 7 before and after, say 1.
_SEPARABLE = ((64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2), *5 * ((512, 1),), (1024, 2), (1024, 1))
# Expansion, channels, blocks and first stride of MobileNetV2's stages: the paper's t, c, n and s.
_INVERTED = (
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)


class MobileNetV1(nn.Module):
    """Howard et al., MobileNets (2017), table 1."""

    width: float
    num_classes: int
    blocks: Sequence[tuple[int, int]] = _SEPARABLE

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """Logits of images."""

        def layer(x: jax.Array, channels: int, window: int, stride: int, groups: int = 1) -> jax.Array:
            x = Conv(channels, (window, window), strides=stride, feature_group_count=groups)(x)
            return nn.relu(BatchNorm(use_running_average=not train)(x))

        x = layer(x, round(32 * self.width), 3, 2)
        for channels, stride in self.blocks:
            x = layer(x, x.shape[-1], 3, stride, groups=x.shape[-1])
            x = layer(x, round(channels * self.width), 1, 1)
        return Dense(self.num_classes)(x.mean(axis=(1, 2)))


class MobileNetV2(nn.Module):
    """Sandler et al., MobileNetV2 (CVPR 2018), table 2. The authors' padding: odd pixels go to the bottom and right."""

    width: float
    num_classes: int
    small_images: bool  # leaves the first two halvings out
    stages: Sequence[tuple[int, int, int, int]] = _INVERTED

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """Logits of images."""

        def layer(x: jax.Array, channels: int, window: int, stride: int = 1, groups: int = 1) -> jax.Array:
            x = Conv(channels, (window, window), strides=stride, feature_group_count=groups)(x)
            return BatchNorm(use_running_average=not train)(x)

        def inverted(x: jax.Array, expansion: int, channels: int, stride: int) -> jax.Array:
            """Wide, depthwise, narrow again; no ReLU on what is narrow."""
            inner = expansion * x.shape[-1]
            y = nn.relu6(layer(x, inner, 1)) if expansion > 1 else x
            y = nn.relu6(layer(y, inner, 3, stride, groups=inner))
            y = layer(y, channels, 1)
            return x + y if stride == 1 and channels == x.shape[-1] else y

        x = nn.relu6(layer(x, divisible(32 * self.width), 3, 1 if self.small_images else 2))
        for stage, (expansion, channels, blocks, stride) in enumerate(self.stages):
            kept = self.small_images and stage == 1
            for block in range(blocks):
                x = inverted(x, expansion, divisible(channels * self.width), 1 if block or kept else stride)
        x = nn.relu6(layer(x, divisible(1280 * max(1.0, self.width)), 1))
        return Dense(self.num_classes)(x.mean(axis=(1, 2)))


def divisible(channels: float) -> int:
    """The nearest multiple of 8, at least 8 and at least 90 % of the channels, as in the authors' code.

    >>> [divisible(channels) for channels in (1.5, 11.2, 12, 33.6)]
    [8, 16, 16, 32]
    """
    nearest = max(8, int(channels + 4) // 8 * 8)
    return nearest if nearest >= 0.9 * channels else nearest + 8
