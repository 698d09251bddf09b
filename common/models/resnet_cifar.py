"""ResNet-20 and ResNet-56 for images of 32 x 32 pixels (He et al. 2016, section 4.2)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from common.models.registry import MODELS, Architecture


class Block(nn.Module):
    """Two 3x3 convolutions and a shortcut without parameters (option A): subsampled, and padded by zero channels."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.stride, self.added = stride, outputs - inputs

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(N, inputs, H, W)`` to ``(N, outputs, H / stride, W / stride)``."""
        out = self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(x)))))
        shortcut = x[:, :, :: self.stride, :: self.stride]
        return torch.relu(
            out + nn.functional.pad(shortcut, (0, 0, 0, 0, self.added // 2, self.added - self.added // 2))
        )


class CifarResNet(nn.Module):
    """Three stages of 16, 32 and 64 channels.

    Args:
        blocks: number of blocks in each stage. The network has ``6 * blocks + 2`` layers.
        num_classes: number of classes.
    """

    def __init__(self, blocks: int, num_classes: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        stages, inputs = [], 16
        for outputs in (16, 32, 64):
            stride = 1 if outputs == 16 else 2
            stage = [
                Block(inputs if index == 0 else outputs, outputs, stride if index == 0 else 1)
                for index in range(blocks)
            ]
            stages.append(nn.Sequential(*stage))
            inputs = outputs
        self.layer1, self.layer2, self.layer3 = stages
        self.fc = nn.Linear(64, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(N, 3, H, W)`` to logits ``(N, num_classes)``."""
        x = torch.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.fc(x.mean((2, 3)))


def build_resnet20(num_classes: int) -> CifarResNet:
    """Build ResNet-20 with 0.27 M parameters."""
    return CifarResNet(3, num_classes)


def build_resnet56(num_classes: int) -> CifarResNet:
    """Build ResNet-56 with 0.85 M parameters."""
    return CifarResNet(9, num_classes)


MODELS.add(Architecture("resnet20", "ResNet-20 for CIFAR-10 (He et al. 2016)", build_resnet20, family="cifar resnet"))
MODELS.add(Architecture("resnet56", "ResNet-56 for CIFAR-10 (He et al. 2016)", build_resnet56, family="cifar resnet"))
