"""Read the annotation files of a COCO set."""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common.data.coco_layout import Part, find_parts
from common.files import read_bounded

MOST_BYTES = 2**30
"""Maximum size of an annotation file."""
SHARES = (-0.01, 1.01)
"""Range of coordinates in shares of the image, with a margin for rounding. In pixels, it would span only one."""
SOUGHT = 20
"""Number of images to search for when looking for their folder."""


class LeftOut:
    """The parts of a data set that could not be used.

    Attributes:
        names: kind of fault -> names in the data set.
        resized: names of images whose size differs from their entries. These images are used.
    """

    def __init__(self) -> None:
        self.names: dict[str, list[str]] = defaultdict(list)
        self.resized: list[str] = []

    def add(self, kind: str, name: str) -> None:
        """Add a name to a kind of fault, e.g. ``missing images``."""
        self.names[kind].append(name)

    def also(self) -> str:
        """Return the end of an error message that names what was left out; empty if nothing was."""
        return f"; left out {self}" if self.names else ""

    def lines(self) -> list[str]:
        """Return a line on what was left out and one on images of another size, if there are any."""
        lines = [f"left out {self}"] if self.names else []
        if self.resized:
            lines.append(
                f"{len(self.resized)} images do not have the size in their entries ({shorten(self.resized)}); their "
                "regions are scaled to the images"
            )
        return lines

    def __str__(self) -> str:
        return "; ".join(f"{kind}: {len(names)} ({shorten(names)})" for kind, names in self.names.items())


def shorten(names: Sequence[str]) -> str:
    """Join the first three names; count the others."""
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more


@dataclass(frozen=True)
class Region:
    """An annotation: its name and category, its region as the file gives it, and whether it has a box."""

    name: str
    category: str
    segmentation: Any
    boxed: bool = False


@dataclass(frozen=True)
class AnnotatedImage:
    """The entry of an image. ``size`` is (height, width) in pixels, or None for the size of the image file."""

    path: Path
    size: tuple[int, int] | None
    regions: list[Region]


@dataclass(frozen=True)
class AnnotationFile:
    """The annotations of one part of a data set.

    Attributes:
        path: path of the annotation file.
        split: name of the part.
        folder: folder of the part's images.
        folders: all folders that may hold them.
        images: the images in the order of the file.
        categories: name -> the names of its supercategories.
    """

    path: Path
    split: str
    folder: Path
    folders: tuple[Path, ...]
    images: list[AnnotatedImage]
    categories: dict[str, set[str]]


def read_coco(root: Path, left_out: LeftOut) -> tuple[dict[str, AnnotationFile], tuple[str, ...]]:
    """Read the annotation files of ``train``, ``valid`` and, if it exists, ``test``.

    Categories that share a name are one class. A category without any annotation is not a class: exporters add parent
    categories, and every network would be right on a class that never occurs.

    Args:
        root: see :func:`common.data.coco_layout.find_parts`.
        left_out: receives the names of what cannot be used.

    Returns:
        Part -> its annotations, and the names of the classes.

    Raises:
        FileNotFoundError: an annotation file is missing.
        ValueError: an annotation file is too large, is not JSON, is not in COCO's format, holds no image or has no
            usable annotation; or a part has two files.
    """
    files = {part: _read_annotations(found, left_out) for part, found in find_parts(root).items()}
    used = {region.category for file in files.values() for image in file.images for region in image.regions}
    train = files["train"]
    classes = tuple(name for name in train.categories if name in used)
    parents = {parent for name, others in train.categories.items() for parent in others - {name}}
    for name in train.categories:
        if name not in used and name not in parents:
            left_out.add("categories without annotations", name)
    if not any(image.regions for image in train.images):
        raise ValueError(
            f"{train.path} has no annotation that can be used, so there is nothing to learn{left_out.also()}"
        )
    return files, classes


def _read_annotations(part: Part, left_out: LeftOut) -> AnnotationFile:
    """Read the annotation file of one part."""
    path = part.annotations
    held = read_bounded(path, MOST_BYTES)
    try:
        content = json.loads(held)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not a complete JSON file: {error}") from error
    entries, annotations, categories = (
        _records(path, content, key) for key in ("images", "annotations", "categories")
    )
    _check_pixels(path, annotations)
    names, parents = _categories(part.name, categories, left_out)
    folder = part.image_folder([str(entry.get("file_name")) for entry in entries[:SOUGHT]])
    images = _images(part.name, folder, entries, left_out)
    if not images:
        raise ValueError(f"{path} holds no image{left_out.also()}")
    for annotation in annotations:
        key, kind = _key(annotation.get("image_id")), _key(annotation.get("category_id"))
        name = f"{part.name} {annotation.get('id')}"
        if key not in images:
            left_out.add("annotations of unknown images", name)
        elif kind not in names:
            left_out.add("annotations of unknown categories", name)
        else:
            region = Region(name, names[kind], annotation.get("segmentation"), bool(annotation.get("bbox")))
            images[key].regions.append(region)
    if annotations and not any(image.regions for image in images.values()):
        raise ValueError(f"{path} has no annotation that can be used{left_out.also()}")
    return AnnotationFile(path, part.name, folder, part.folders, list(images.values()), parents)


def _categories(
    split: str, categories: list[dict[str, Any]], left_out: LeftOut
) -> tuple[dict[int | str | None, str], dict[str, set[str]]]:
    """Return id -> name, and name -> names of its supercategories."""
    names: dict[int | str | None, str] = {}
    parents: dict[str, set[str]] = {}
    for category in categories:
        number, name = _key(category.get("id")), category.get("name")
        if number is None or number in names or not isinstance(name, str):
            left_out.add("category entries without a unique id or a name", f"{split} {name or number}")
            continue
        names[number] = name.strip()
        parents.setdefault(name.strip(), set()).add(str(category.get("supercategory", "")).strip())
    return names, parents


def _images(
    split: str, folder: Path, entries: list[dict[str, Any]], left_out: LeftOut
) -> dict[int | str | None, AnnotatedImage]:
    """Return id -> image, without regions so far."""
    images: dict[int | str | None, AnnotatedImage] = {}
    for entry in entries:
        number, file = _key(entry.get("id")), entry.get("file_name")
        if number is None or number in images or not isinstance(file, str):
            left_out.add("image entries without a unique id or a name", f"{split} {file or entry.get('id')}")
            continue
        images[number] = AnnotatedImage(folder / file, _size(entry), [])
    return images


def _records(path: Path, content: Any, key: str) -> list[dict[str, Any]]:
    """Return one of the lists in a COCO file."""
    records = content.get(key) if isinstance(content, dict) else None
    if not isinstance(records, list) or not all(isinstance(record, dict) for record in records):
        raise ValueError(f"{path} is not in COCO's format: it holds no list of {key}")
    return records


def _check_pixels(path: Path, annotations: list[dict[str, Any]]) -> None:
    """Raise a ValueError if all polygons of a file are in shares of their images instead of pixels."""
    polygons = [values for annotation in annotations if (values := coordinates(annotation.get("segmentation")))]
    if polygons and all(map(are_shares, polygons)):
        raise ValueError(
            f"{path}: every coordinate of its polygons lies in [0, 1]; they must be in pixels, not in shares of the "
            "image, so multiply them by its width and height"
        )


def coordinates(segmentation: Any, axis: int | None = None) -> list[float]:
    """Return the coordinates in a list of polygons, all or those of one axis (0 across, 1 down); [] for other data."""
    polygons = segmentation if isinstance(segmentation, list) else []
    chosen = slice(axis, None, None if axis is None else 2)
    values = [value for polygon in polygons if isinstance(polygon, list) for value in polygon[chosen]]
    return [value for value in values if isinstance(value, int | float)]


def are_shares(values: Iterable[float]) -> bool:
    """Whether coordinates must be shares of an image, because in pixels they would span a single one."""
    return all(SHARES[0] <= value <= SHARES[1] for value in values)


def _key(value: object) -> int | str | None:
    """Return an id in a comparable form, in which 3, 3.0 and "3" are equal; None for anything that is not an id."""
    if isinstance(value, str):
        number = re.fullmatch(r"([+-]?\d{1,18})(\.0*)?", value.strip())
        return int(number[1]) if number else value.strip() or None
    if isinstance(value, float):
        return int(value) if value.is_integer() else None
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _size(entry: dict[str, Any]) -> tuple[int, int] | None:
    """Return height and width; None unless the entry states both."""
    height, width = _key(entry.get("height")), _key(entry.get("width"))
    known = isinstance(height, int) and isinstance(width, int) and height > 0 and width > 0
    return (height, width) if known else None  # type: ignore[return-value]
