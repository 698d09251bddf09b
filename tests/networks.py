"""Small networks and data for tests that need no accuracy."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from common.data import DataBundle, load_data


class TinyCNN(nn.Module):
    """A stem, a strided block with a 1x1 shortcut and a head: every layer kind of a ResNet."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU())
        self.conv = nn.Conv2d(width, 2 * width, 3, stride=2, padding=1)
        self.norm = nn.BatchNorm2d(2 * width)
        self.shortcut = nn.Conv2d(width, 2 * width, 1, stride=2, bias=False)
        self.head = nn.Linear(2 * width, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = torch.relu(self.norm(self.conv(x)) + self.shortcut(x))
        return self.head(x.mean((2, 3)))


def tiny_cnn(seed: int = 0, width: int = 16) -> TinyCNN:
    torch.manual_seed(seed)
    return TinyCNN(width).eval()


def tiny_digits(limit: int = 96, batch_size: int = 32) -> DataBundle:
    return load_data("digits", image_size=8, batch_size=batch_size, limit=limit)


def same_weights(one: nn.Module, other: nn.Module) -> bool:
    mine, theirs = one.state_dict(), other.state_dict()
    return mine.keys() == theirs.keys() and all(torch.equal(mine[name], theirs[name]) for name in mine)


def lived_in(model: nn.Module, seed: int = 0) -> nn.Module:
    """Give the BatchNorms of a network statistics, scales and shifts other than 0 and 1, as after training."""
    generator = torch.Generator().manual_seed(seed)
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            for tensor in (module.running_mean, module.bias):
                if tensor is not None:
                    tensor.data.normal_(generator=generator)
            for tensor in (module.running_var, module.weight):
                if tensor is not None:
                    tensor.data.uniform_(0.5, 1.5, generator=generator)
    return model.eval()


class Returning(nn.Module):
    """A network that returns ``make(logits, training)``."""

    def __init__(self, make: Callable[[Tensor, bool], object], body: nn.Module | None = None) -> None:
        super().__init__()
        self.body, self.make = body or tiny_cnn(), make

    def forward(self, x: Tensor) -> object:
        return self.make(self.body(x), self.training)


def bright_images(count: int) -> TensorDataset:
    """Return images whose brightness is given by their class."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(count) % 10
    return TensorDataset(torch.randn(count, 3, 8, 8, generator=generator) + labels.view(-1, 1, 1, 1), labels)
