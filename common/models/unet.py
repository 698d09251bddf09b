"""U-Net for segmentation (Ronneberger, Fischer and Brox 2015), with padding and BatchNorm."""

from __future__ import annotations

import torch
from torch import Tensor, nn

UPSAMPLING = ("transposed", "bilinear")


class UNet(nn.Module):
    """``(N, in_channels, H, W)`` to logits ``(N, num_classes, H, W)``, H and W of any size.

    Args:
        num_classes: 1 for one mask (its logit), otherwise one logit a class.
        in_channels: of the image.
        width: channels of the first level; each level down has twice as many.
        depth: how many times the image is halved.
        upsampling: ``transposed`` (a 2x2 transposed convolution) or ``bilinear`` (followed by a 1x1 convolution).
    """

    def __init__(
        self,
        num_classes: int = 1,
        in_channels: int = 3,
        width: int = 64,
        depth: int = 4,
        upsampling: str = "transposed",
    ) -> None:
        super().__init__()
        widths = [width * 2**level for level in range(depth + 1)]
        self.down = nn.ModuleList(
            _double(inputs, outputs) for inputs, outputs in zip([in_channels, *widths], widths, strict=False)
        )
        pairs = list(zip(widths[:0:-1], widths[-2::-1], strict=True))
        self.up = nn.ModuleList(_upsample(inputs, outputs, upsampling) for inputs, outputs in pairs)
        self.merge = nn.ModuleList(_double(2 * outputs, outputs) for _, outputs in pairs)
        self.head = nn.Conv2d(width, num_classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Logits of the image's own size; where a level was of odd size, the upsampled map is padded at its end."""
        levels: list[Tensor] = []
        for index, block in enumerate(self.down):
            x = block(x if index == 0 else nn.functional.max_pool2d(x, 2, ceil_mode=False))
            levels.append(x)
        for up, merge, skip in zip(self.up, self.merge, levels[-2::-1], strict=True):
            x = up(x)
            missing = (skip.shape[-1] - x.shape[-1], skip.shape[-2] - x.shape[-2])
            if any(missing):
                x = nn.functional.pad(x, (0, missing[0], 0, missing[1]), mode="replicate")
            x = merge(torch.cat([skip, x], dim=1))
        return self.head(x)


def _double(inputs: int, outputs: int) -> nn.Sequential:
    """Two 3x3 convolutions, each with BatchNorm and ReLU."""
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, padding=1, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(),
        nn.Conv2d(outputs, outputs, 3, padding=1, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(),
    )


def _upsample(inputs: int, outputs: int, kind: str) -> nn.Module:
    if kind == "transposed":
        return nn.ConvTranspose2d(inputs, outputs, 2, 2)
    return nn.Sequential(nn.Upsample(scale_factor=2, mode="bilinear"), nn.Conv2d(inputs, outputs, 1))
