"""U-Net for segmentation (Ronneberger, Fischer and Brox 2015), with padding and BatchNorm."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from common.models.registry import MODELS, Architecture
from common.validation import check_choice

UPSAMPLING = ("transposed", "bilinear")
DEEPEST = 16
"""Maximum depth. A file of a stranger may ask for any, and widths double with each level."""


class UNet(nn.Module):
    """Maps images ``(N, in_channels, H, W)`` of any size to logits ``(N, num_classes, H, W)``.

    Args:
        num_classes: number of masks. Each class has a logit.
        in_channels: channels of the image.
        width: channels of the first level. Each deeper level has twice as many.
        depth: number of times that the image is halved.
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
        """Return logits of the image's size. If a level has an odd size, its upsampled map is padded at the end."""
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
    """Return two 3x3 convolutions, each with BatchNorm and ReLU."""
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, padding=1, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(),
        nn.Conv2d(outputs, outputs, 3, padding=1, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(),
    )


def _upsample(inputs: int, outputs: int, kind: str) -> nn.Module:
    """Return a module that doubles height and width."""
    if kind == "transposed":
        return nn.ConvTranspose2d(inputs, outputs, 2, 2)
    return nn.Sequential(nn.Upsample(scale_factor=2, mode="bilinear"), nn.Conv2d(inputs, outputs, 1))


def build_unet(num_classes: int, width: int, depth: int, upsampling: str) -> UNet:
    """Build a U-Net for colour images.

    Raises:
        ValueError: an argument is out of range or unknown.
    """
    for name, value in (("width", width), ("depth", depth)):
        if value < 1:
            raise ValueError(f"{name}={value!r}: it must be at least 1")
    if depth > DEEPEST:
        raise ValueError(f"depth={depth!r}: it must be at most {DEEPEST}; an image has at least 2^depth pixels a side")
    check_choice("upsampling", upsampling, UPSAMPLING)
    return UNet(num_classes, width=width, depth=depth, upsampling=upsampling)


def _min_size(depth: int, **_: object) -> int:
    """Return the size that leaves one pixel on the deepest level."""
    least: int = 2**depth
    return least


MODELS.add(
    Architecture(
        "unet",
        "U-Net (Ronneberger et al. 2015)",
        build_unet,
        task="segmentation",
        arguments={"width": 64, "depth": 4, "upsampling": UPSAMPLING[0]},
        min_classes=1,
        min_size=_min_size,
    )
)
