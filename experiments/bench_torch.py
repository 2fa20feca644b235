"""The trainings of `bench_train` in PyTorch: the same models, optimizer and batches in memory. It needs torch."""

import importlib.util
import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from updcomp.training.data import Dataset

torch: Any = importlib.import_module("torch") if importlib.util.find_spec("torch") else None

Step = Callable[[], None]


def images(model: str, data: Dataset, *, batch_size: int, epochs: int) -> dict[str, Step]:
    """Plain training of an image model; of the MLP also recording and masking.

    Args:
      model: "MLP", "VGG" or "ResNet20", as in `bench_train`.
      data: uint8 images (n, h, w, c) and labels.
      batch_size: samples per step.
      epochs: per call.

    Returns:
      What is done -> a function that does it.
    """
    pixels, labels = _placed(data.images), _placed(data.labels).long()
    build = {"MLP": _mlp, "VGG": _vgg, "ResNet20": _resnet20}[model]

    def loss(network: Any, rows: Any) -> Any:
        batch = pixels[rows].float() / 255
        inputs = batch.flatten(1) if model == "MLP" else batch.permute(0, 3, 1, 2)
        return torch.nn.functional.cross_entropy(network(inputs), labels[rows])

    def step(**options: bool) -> Step:
        return _training(build(), loss, len(pixels), batch_size, epochs, **options)

    if model != "MLP":
        return {"plain": step()}
    return {"plain": step(), "recording": step(record=True), "masked": step(mask=True)}


def text(tokens: np.ndarray, sizes: Mapping[str, int], *, batch_size: int, epochs: int) -> dict[str, Step]:
    """Plain training of the transformer of `updcomp.training.transformer`.

    Args:
      tokens: uint8 (n, length + 1).
      sizes: its vocabulary, width, depth, heads and length.
      batch_size: rows per step.
      epochs: per call.

    Returns:
      What is done -> a function that does it.
    """
    placed = _placed(tokens).long()

    def loss(network: Any, rows: Any) -> Any:
        batch = placed[rows]
        logits = network(batch[:, :-1])
        return torch.nn.functional.cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten())

    return {"plain": _training(_transformer(sizes), loss, len(placed), batch_size, epochs)}


def _device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


def _placed(array: np.ndarray) -> Any:
    return torch.from_numpy(np.asarray(array)).to(_device())


def _training(
    network: Any,
    loss: Callable[[Any, Any], Any],
    samples: int,
    batch_size: int,
    epochs: int,
    *,
    record: bool = False,
    mask: bool = False,
) -> Step:
    network = network.to(_device())
    weights: list[Any] = list(network.parameters())
    optimizer = torch.optim.Adam(weights, lr=1e-3)
    local = [torch.zeros_like(weight) for weight in weights]
    sent = [torch.rand_like(weight) < 0.01 for weight in weights]

    def train(rows: Any) -> None:
        optimizer.zero_grad()
        loss(network, rows).backward()
        before = [weight.detach().clone() for weight in weights] if record or mask else []
        optimizer.step()
        with torch.no_grad():
            for weight, old, contribution, kept in zip(weights, before, local, sent, strict=False):
                if record:
                    contribution.sub_(weight.grad * (weight - old))
                if mask:
                    weight.copy_(torch.where(kept, weight, old))

    def step() -> None:
        for _ in range(epochs):
            for rows in torch.randperm(samples, device=_device()).split(batch_size):
                train(rows)
        if _device() == "cuda":
            torch.cuda.synchronize()

    return step


def _mlp() -> Any:
    nn = torch.nn
    return nn.Sequential(nn.Linear(784, 512), nn.ReLU(), nn.Linear(512, 512), nn.ReLU(), nn.Linear(512, 10))


def _conv(channels: int, out: int, stride: int = 1) -> list[Any]:
    """A 3 x 3 convolution without a bias, and batch norm."""
    nn = torch.nn
    return [nn.Conv2d(channels, out, 3, stride, padding=1, bias=False), nn.BatchNorm2d(out)]


def _vgg() -> Any:
    nn = torch.nn
    stages = [[*_conv(3, 16), nn.ReLU(), nn.MaxPool2d(2)], [*_conv(16, 32), nn.ReLU(), nn.MaxPool2d(2)]]
    dense = [nn.Flatten(), nn.Linear(32 * 8 * 8, 64, bias=False), nn.BatchNorm1d(64), nn.ReLU(), nn.Linear(64, 10)]
    return nn.Sequential(*stages[0], *stages[1], *dense)


def _resnet20() -> Any:
    nn = torch.nn

    class Residual(nn.Module):  # type: ignore[misc, name-defined]
        def __init__(self, channels: int, width: int, stride: int) -> None:
            super().__init__()
            self.added = width - channels
            self.stride = stride
            self.layers = nn.Sequential(*_conv(channels, width, stride), nn.ReLU(), *_conv(width, width))

        def forward(self, x: Any) -> Any:
            shortcut = nn.functional.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, 0, self.added))
            return torch.relu(self.layers(x) + shortcut)

    layers, channels = [*_conv(3, 16), nn.ReLU()], 16
    for width in (16, 32, 64):
        for block in range(3):
            layers.append(Residual(channels, width, 2 if block == 0 and width > 16 else 1))
            channels = width
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10))


def _transformer(sizes: Mapping[str, int]) -> Any:
    nn, width = torch.nn, sizes["width"]

    class Block(nn.Module):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.norms = nn.ModuleList(nn.LayerNorm(width, bias=False) for _ in range(2))
            self.projections = nn.ModuleList(nn.Linear(width, width, bias=False) for _ in range(4))
            self.up, self.down = nn.Linear(width, 4 * width, bias=False), nn.Linear(4 * width, width, bias=False)

        def forward(self, x: Any) -> Any:
            n, t, _ = x.shape
            normed = self.norms[0](x)
            query, key, value = (
                project(normed).view(n, t, sizes["heads"], -1).transpose(1, 2) for project in self.projections[:3]
            )
            attended = nn.functional.scaled_dot_product_attention(query, key, value, is_causal=True)
            x = x + self.projections[3](attended.transpose(1, 2).reshape(n, t, width))
            return x + self.down(nn.functional.gelu(self.up(self.norms[1](x)), approximate="tanh"))

    class Network(nn.Module):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.tokens = nn.Embedding(sizes["vocabulary"], width)
            self.positions = nn.Embedding(sizes["length"], width)
            self.blocks = nn.Sequential(*(Block() for _ in range(sizes["depth"])))
            self.norm = nn.LayerNorm(width, bias=False)
            for table in (self.tokens, self.positions):
                nn.init.normal_(table.weight, std=1 / math.sqrt(width))

        def forward(self, tokens: Any) -> Any:
            positions = torch.arange(tokens.shape[1], device=tokens.device)
            x = self.blocks(self.tokens(tokens) + self.positions(positions))
            return self.norm(x) @ self.tokens.weight.T

    return Network()
