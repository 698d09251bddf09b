"""Convert COCO's regions (polygons and run-length encodings) to masks."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Mask = NDArray[np.bool_]
LONGEST = 2**22
"""Maximum length of a polygon's outline, in pixels. The rasteriser takes some 80 bytes for each."""


def region_mask(segmentation: Any, height: int, width: int) -> Mask:
    """Return the pixels ``(height, width)`` of one annotation's region, clipped to the image.

    Args:
        segmentation: a list of polygons ``[x1, y1, x2, y2, ...]`` in pixels, in which points and lines cover nothing;
            or a run-length encoding by columns, ``{"size": [height, width], "counts": ...}``, whose counts are a list
            or COCO's compressed text.
        height: height of the image, in pixels.
        width: width of the image, in pixels.

    Raises:
        ValueError: ``segmentation`` is neither, or its numbers are invalid.
    """
    if isinstance(segmentation, list):
        return _polygon_mask(segmentation, height, width)
    if isinstance(segmentation, dict):
        return _run_length_mask(segmentation, height, width)
    raise ValueError("a region must be a list of polygons or a run-length encoding")


def _polygon_mask(polygons: list[Any], height: int, width: int) -> Mask:
    """Return the pixels that are in any of the polygons."""
    farthest = 10 * max(height, width)  # the rasteriser's time and memory grow with a polygon's extent
    if not all(isinstance(polygon, list) for polygon in polygons):
        raise ValueError("a polygon must be a list of numbers")
    drawn = [polygon for polygon in polygons if len(polygon) not in (2, 4)]  # annotation tools leave points and lines
    if polygons and not drawn:
        raise ValueError("a polygon must have at least three points")
    for polygon in drawn:
        if len(polygon) < 6 or len(polygon) % 2:
            raise ValueError("a polygon must have at least three points")
        if not all(isinstance(value, int | float) and abs(value) <= farthest for value in polygon):
            raise ValueError("a polygon's coordinates must be numbers in or near the image")
        corners = np.array(polygon, dtype=np.float64).reshape(-1, 2)
        if np.abs(np.diff(corners, axis=0, append=corners[:1])).max(1).sum() > LONGEST:
            raise ValueError(f"a polygon's outline must be at most {LONGEST:,} pixels long")
    if not drawn:
        return np.zeros((height, width), dtype=bool)
    import pycocotools.mask

    with warnings.catch_warnings():  # pycocotools 2.0.11 does not know numpy 2's arguments
        warnings.simplefilter("ignore", DeprecationWarning)
        runs = pycocotools.mask.frPyObjects(drawn, height, width)
        return pycocotools.mask.decode(pycocotools.mask.merge(runs)).astype(bool)


def _run_length_mask(encoding: dict[str, Any], height: int, width: int) -> Mask:
    """Decode a run-length encoding. On damaged ones, pycocotools would read and write outside its memory."""
    counts = encoding.get("counts")
    if encoding.get("size") != [height, width]:
        raise ValueError(f"its size is {encoding.get('size')}, the image's [{height}, {width}]")
    if isinstance(counts, str):
        counts = _decompress(counts)
    if isinstance(counts, list):  # some programs write whole numbers as 100.0
        counts = [int(c) if isinstance(c, float) and c.is_integer() else c for c in counts]
    if not isinstance(counts, list) or not all(isinstance(count, int) and count >= 0 for count in counts):
        raise ValueError("its counts must be whole numbers >= 0")
    if sum(counts) != height * width:
        raise ValueError(f"its counts add up to {sum(counts)}, not to {height * width}")
    return np.repeat(np.arange(len(counts)) % 2 == 1, counts).reshape(width, height).T


def _decompress(text: str) -> list[int]:
    """Decode COCO's compressed counts.

    Each number is written in groups of five bits, the lowest first. The character of a group has the code 48 + the
    group, + 32 if more groups follow. Bit 4 of the last group is the sign. From the fourth number on, each number is
    the difference from the number two places before.
    """
    counts: list[int] = []
    value = shift = 0
    for character in text:
        code = ord(character) - 48
        if not 0 <= code < 64:
            raise ValueError(f"its counts hold the character {character!r}")
        value |= (code & 31) << shift
        shift += 5
        if shift > 60:
            raise ValueError("its counts hold a number of more than 60 bits")
        if code & 32:
            continue
        value -= (code >> 4) << shift
        counts.append(value + (counts[-2] if len(counts) > 2 else 0))
        value = shift = 0
    if shift:
        raise ValueError("its counts end in the middle of a number")
    return counts


def resize_mask(mask: Mask, size: int) -> Mask:
    """Resize a mask ``(H, W)`` to ``(size, size)`` so that its area stays and no region disappears.

    The new mask consists of the pixels that the region covers most. Their number is the region's area in new pixels,
    at least one. Ties with the last of them are included, so a region that covers many pixels alike grows. For a large
    region, this equals the usual threshold of half coverage. A thin structure stays in one piece; a threshold of half
    coverage would lose it, and sampling the nearest pixel would keep it only by chance.
    """
    if not mask.any():
        return np.zeros((size, size), dtype=bool)
    image = Image.fromarray(mask.astype(np.float32))
    coverage = np.asarray(image.resize((size, size), Image.Resampling.BOX))
    count = max(1, math.floor(coverage.sum() + 0.5))
    last = np.partition(coverage, -count, axis=None)[-count]
    return (coverage > 0) & (coverage >= last * (1 - 1e-3))


def union(masks: Sequence[Mask], size: int) -> Mask:
    """Return the pixels ``(size, size)`` that are in any of the masks."""
    return np.logical_or.reduce(masks) if masks else np.zeros((size, size), dtype=bool)
