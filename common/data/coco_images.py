"""Read the images and masks of a COCO set."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from common.data.annotations import AnnotatedImage, AnnotationFile, LeftOut, are_shares, coordinates, shorten
from common.data.images import MOST_PIXELS, open_image
from common.data.masks import region_mask, resize_mask, union
from common.progress import track

MOST_BROKEN = 0.05
"""Maximum share of a split's images that may be missing or broken."""


def read_images(
    file: AnnotationFile, indices: Sequence[int], classes: Sequence[str], size: int, left_out: LeftOut
) -> tuple[Tensor, Tensor, Tensor]:
    """Read some of a split's images and their masks, and resize them.

    Args:
        file: the split.
        indices: indices of the images to read.
        classes: the K classes. Annotations of other categories are left out.
        size: S, height and width after resizing. The aspect ratio is not kept.
        left_out: receives the names of what cannot be used.

    Returns:
        Images ``(N, C, S, S)`` in uint8, with C = 1 if all are grey and 3 otherwise; masks ``(N, K, S, S)`` in bool;
        and for each of ``indices`` whether its image is among the N.

    Raises:
        ValueError: more than 5% of the images are missing or broken.
    """
    images: list[NDArray[np.uint8]] = []
    masks: list[NDArray[np.bool_]] = []
    broken: dict[int, str] = {}
    reasons: list[OSError] = []
    for index in track(indices, f"reading {file.split}", unit="image"):
        entry = file.images[index]
        name = f"{file.split}/{entry.path.name}"
        try:
            _check_inside(entry.path, file.folders)
            image, (height, width) = _open(entry)
        except OSError as error:
            missing = isinstance(error, FileNotFoundError)
            left_out.add("missing images" if missing else "broken images", name)
            broken[index] = name
            reasons.append(error)
            continue
        if image.size != (width, height):
            left_out.resized.append(name)
        resized = np.asarray(image.resize((size, size), Image.Resampling.BILINEAR))
        images.append(resized[None] if image.mode == "L" else resized.transpose(2, 0, 1))
        masks.append(_class_masks(entry, (height, width), classes, size, left_out))
    if len(broken) > MOST_BROKEN * len(indices):
        raise ValueError(
            f"{file.folder}: {len(broken)} of {len(indices)} images are missing or broken "
            f"({shorten(list(broken.values()))}); at most {MOST_BROKEN:.0%} may be; the first: {reasons[0]}"
        )
    channels = max(len(image) for image in images)
    stacked = np.stack([np.broadcast_to(image, (channels, size, size)) for image in images])
    readable = torch.tensor([index not in broken for index in indices])
    return torch.from_numpy(stacked), torch.from_numpy(np.stack(masks)), readable


def _check_inside(path: Path, folders: Sequence[Path]) -> None:
    """Raise an OSError if an image lies outside the data set, because of its name or of a link.

    The data set's own folders may be links.
    """
    try:
        found = Path(os.path.realpath(path))
    except ValueError as error:
        raise OSError(f"{path!r} names no file: {error}") from None
    if not any(found.is_relative_to(os.path.realpath(folder)) for folder in folders):
        raise OSError(f"{path} lies outside the data set")


def _open(entry: AnnotatedImage) -> tuple[Image.Image, tuple[int, int]]:
    """Open an image; return it, and the height and width to which its regions refer.

    Raises:
        OSError: the image is missing or broken, or contradicts its entry.
    """
    image = open_image(entry.path, upright=True)  # the way annotation tools show it
    height, width = entry.size or (image.height, image.width)
    if (width, height) == image.size[::-1] != image.size:  # the annotation ignored the EXIF orientation
        image = open_image(entry.path)
        if image.size != (width, height):
            raise OSError(f"{entry.path} is turned by 90 degrees relative to its annotations")
    if height * width > MOST_PIXELS:
        raise OSError(f"{entry.path}: {height}x{width} pixels are out of range")
    if image.size != (width, height):
        polygons = [region.segmentation for region in entry.regions]
        across, down = (max((v for p in polygons for v in coordinates(p, axis)), default=0.0) for axis in (0, 1))
        if (across > width + 1 or down > height + 1) and across <= image.width + 1 and down <= image.height + 1:
            raise OSError(f"{entry.path}: its regions lie outside the {height}x{width} pixels of its entry")
    return image, (height, width)


def _class_masks(
    image: AnnotatedImage, shape: tuple[int, int], classes: Sequence[str], size: int, left_out: LeftOut
) -> NDArray[np.bool_]:
    """Return masks ``(K, S, S)``. Each region is resized separately, so that a small one beside a large one stays."""
    found: dict[str, list[NDArray[np.bool_]]] = {name: [] for name in classes}
    for region in image.regions:
        if region.category not in found:
            left_out.add("annotations of categories that train lacks", region.name)
            continue
        if not region.segmentation and (region.boxed or region.segmentation is None):
            kind = "annotations that are boxes alone" if region.boxed else "annotations without a region"
            left_out.add(kind, region.name)
            continue
        numbers = coordinates(region.segmentation)
        if numbers and are_shares(numbers):
            left_out.add("annotations in shares of the image, not in pixels", region.name)
            continue
        try:
            mask = region_mask(region.segmentation, *shape)
        except ValueError:
            left_out.add("annotations whose region is malformed", region.name)
            continue
        if not mask.any():
            left_out.add("annotations that cover no pixel", region.name)
        found[region.category].append(resize_mask(mask, size))
    return np.stack([union(masks, size) for masks in found.values()])
