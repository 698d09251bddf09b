"""Outlines of masks on the images to which they belong."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from numpy.typing import NDArray

from common.reporting.figures.style import WIDE, message, palette, picture, styled

Array = NDArray[Any]


def sample_masks(pictures: Mapping[str, Array]) -> Figure:
    """A row for each image: the image alone, with the outline of its true mask, and with that of each network's mask.

    Args:
        pictures: title -> ``(N, H, W)``. The first entry holds the images, in grey, the second the true masks, and the
            others the masks of networks. Values above 0.5 are inside a mask. The Dice coefficient is written below
            each network's mask.

    Raises:
        ValueError: there are fewer than two entries, or they differ in shape.
    """
    if len(pictures) < 2 or len({picture.shape for picture in pictures.values()}) > 1:
        shapes = {title: picture.shape for title, picture in pictures.items()}
        raise ValueError(f"pictures have the shapes {shapes}; images and true masks are needed, all of one shape")
    (_, images), (_, truth), *_ = pictures.items()
    if not len(images):
        return message("There is no image to show.")
    colors = palette(3)
    with styled(axes_grid=False):
        figure = picture(WIDE, WIDE / len(pictures) * len(images) * 1.1 + 0.5)
        grid = figure.subplots(len(images), len(pictures), squeeze=False)
        for row, image in enumerate(images):
            for column, (title, masks) in enumerate(pictures.items()):
                axes = grid[row, column]
                axes.imshow(image, cmap="gray", interpolation="nearest")
                axes.set(xticks=[], yticks=[])
                if row == 0:
                    axes.set_title(title)
                if column > 0:
                    _outline(axes, truth[row], colors[0])
                if column > 1:
                    _outline(axes, masks[row], colors[1])
                    axes.set_xlabel(f"Dice {_dice(masks[row], truth[row]):.2f}")
        keys = ("true mask", "mask of the network above the column")[: len(pictures) - 1]
        handles = [Line2D([], [], color=color, label=key) for color, key in zip(colors, keys, strict=False)]
        figure.legend(handles=handles, loc="outside lower center", ncols=2, frameon=False)
    return figure


def _dice(mask: Array, truth: Array) -> float:
    inside, wanted = mask > 0.5, truth > 0.5
    whole = inside.sum() + wanted.sum()
    return float(2 * (inside & wanted).sum() / whole) if whole else 1.0


def _outline(axes: Any, mask: Array, color: Any) -> None:
    """Draw the outline of a mask. An empty mask has none."""
    inside = np.pad(mask > 0.5, 1)
    if inside.any():
        height, width = mask.shape
        axes.contour(np.arange(-1, width + 1), np.arange(-1, height + 1), inside, levels=[0.5], colors=[color])
        axes.set(xlim=(-0.5, width - 0.5), ylim=(height - 0.5, -0.5))
