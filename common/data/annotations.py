"""What the annotation files of a COCO set say."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PARTS = ("train", "valid", "test")
ANNOTATIONS = "_annotations.coco.json"


class LeftOut:
    """What a set's reader had to pass over: a kind of fault -> the names."""

    def __init__(self) -> None:
        self.names: dict[str, list[str]] = defaultdict(list)

    def add(self, kind: str, name: str) -> None:
        """Count one more, e.g. of ``missing images``."""
        self.names[kind].append(name)

    def __str__(self) -> str:
        return "; ".join(f"{kind}: {len(names)} ({shorten(names)})" for kind, names in self.names.items())


def shorten(names: Sequence[str]) -> str:
    """The first three names, and how many more there are."""
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more


@dataclass(frozen=True)
class Region:
    """An annotation: its category's name and its region as it stands in the file."""

    name: str
    category: str
    segmentation: Any


@dataclass(frozen=True)
class AnnotatedImage:
    """An image's entry; ``size`` is (height, width) in pixels, or None for that of the file."""

    path: Path
    size: tuple[int, int] | None
    regions: list[Region]


@dataclass(frozen=True)
class AnnotationFile:
    """One split: its images in the order of the file, and category name -> the names of its supercategories."""

    path: Path
    images: list[AnnotatedImage]
    categories: dict[str, set[str]]


def read_coco(root: Path, left_out: LeftOut) -> tuple[dict[str, AnnotationFile], tuple[str, ...]]:
    """The annotation files of ``train/``, ``valid/`` and ``test/``, and the names of the classes.

    Categories that share a name are one class. A category that no annotation of any split uses is none: exporters add
    parents of the others, and on a class that is never there every network is right.

    Args:
        root: holds the three folders, each with its images and ``_annotations.coco.json``.
        left_out: receives what has to be passed over.

    Raises:
        FileNotFoundError: an annotation file is missing.
        ValueError: an annotation file is no JSON, not in COCO's format, or holds no image.
    """
    missing = [str(path) for path in (root / part / ANNOTATIONS for part in PARTS) if not path.is_file()]
    if missing:
        raise FileNotFoundError(f"data_root={str(root)!r} does not hold a COCO set: {', '.join(missing)} is missing")
    files = {part: _read_annotations(root / part / ANNOTATIONS, left_out) for part in PARTS}
    used = {region.category for file in files.values() for image in file.images for region in image.regions}
    train = files["train"]
    classes = tuple(name for name in train.categories if name in used)
    parents = {parent for name, others in train.categories.items() for parent in others - {name}}
    for name in train.categories:
        if name not in used and name not in parents:
            left_out.add("categories without annotations", name)
    if not any(image.regions for image in train.images):
        raise ValueError(f"{train.path} has no annotation that can be used: there is nothing to learn")
    return files, classes


def _read_annotations(path: Path, left_out: LeftOut) -> AnnotationFile:
    try:
        content = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is no whole JSON file: {error}") from error
    entries, annotations, categories = (
        _records(path, content, key) for key in ("images", "annotations", "categories")
    )
    names: dict[Any, str] = {}
    parents: dict[str, set[str]] = {}
    for category in categories:
        if _is_key(category.get("id")) and isinstance(category.get("name"), str):
            name = names[category["id"]] = category["name"].strip()
            parents.setdefault(name, set()).add(str(category.get("supercategory", "")).strip())
    images: dict[Any, AnnotatedImage] = {}
    split = path.parent.name
    for entry in entries:
        number, file = entry.get("id"), entry.get("file_name")
        if not _is_key(number) or number in images or not isinstance(file, str):
            left_out.add("image entries without an id or a name of their own", f"{split} {file or number}")
            continue
        images[number] = AnnotatedImage(path.parent / file, _size(entry), [])
    if not images:
        raise ValueError(f"{path} holds no image")
    for annotation in annotations:
        key, kind = annotation.get("image_id"), annotation.get("category_id")
        name = f"{split} {annotation.get('id')}"
        if not _is_key(key) or key not in images:
            left_out.add("annotations of unknown images", name)
        elif not _is_key(kind) or kind not in names:
            left_out.add("annotations of unknown categories", name)
        else:
            images[key].regions.append(Region(name, names[kind], annotation.get("segmentation")))
    return AnnotationFile(path, list(images.values()), parents)


def _records(path: Path, content: Any, key: str) -> list[dict[str, Any]]:
    records = content.get(key) if isinstance(content, dict) else None
    if not isinstance(records, list) or not all(isinstance(record, dict) for record in records):
        raise ValueError(f"{path} is not in COCO's format: it holds no list of {key}")
    return records


def _is_key(value: object) -> bool:
    return isinstance(value, int | str)


def _size(entry: dict[str, Any]) -> tuple[int, int] | None:
    height, width = entry.get("height"), entry.get("width")
    return (height, width) if isinstance(height, int) and isinstance(width, int) else None
