"""Small COCO sets on disk."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from common.data import DataBundle, load_data
from common.data.masked_images import MaskedImages

TUMOURS = [{"id": 1, "name": "tumour"}]


def square(left: float, top: float, side: float) -> list[float]:
    return [left, top, left + side, top, left + side, top + side, left, top + side]


def annotation(number: int, image: object, segmentation: object, category: object = 1) -> dict[str, Any]:
    return {"id": number, "image_id": image, "category_id": category, "iscrowd": 0, "segmentation": segmentation}


def write_part(
    folder: Path,
    count: int,
    annotations: Iterable[Mapping[str, Any]],
    categories: Iterable[Mapping[str, Any]] = TUMOURS,
    size: int = 20,
) -> dict[str, Any]:
    """Write ``count`` grey images of ``size`` pixels, each with its own brightness, named 0.png, 1.png etc."""
    folder.mkdir(parents=True)
    for number in range(count):
        Image.fromarray(np.full((size, size), number % 256, dtype=np.uint8)).save(folder / f"{number}.png")
    content = {
        "images": [{"id": n, "file_name": f"{n}.png", "height": size, "width": size} for n in range(count)],
        "annotations": [dict(item) for item in annotations],
        "categories": [dict(item) for item in categories],
    }
    write_annotations(folder, content)
    return content


def write_annotations(folder: Path, content: object) -> None:
    (folder / "_annotations.coco.json").write_text(json.dumps(content))


def write_set(root: Path, train: int = 10, others: int = 4) -> None:
    """Every second image has a square of 10 pixels in its upper left corner; the others have no annotation."""
    for part, count in (("train", train), ("valid", others), ("test", others)):
        write_part(root / part, count, [annotation(n, n, [square(0, 0, 10)]) for n in range(0, count, 2)])


def load_coco(root: Path, **options: Any) -> DataBundle:
    return load_data("coco", root, **{"image_size": 10, "batch_size": 4, **options})


def split(data: DataBundle, part: str) -> MaskedImages:
    dataset = getattr(data, part).dataset
    assert isinstance(dataset, MaskedImages)
    return dataset


def brightness(data: DataBundle, part: str) -> list[int]:
    """Return the number of each image of a set that ``write_part`` wrote."""
    return [int(image[0, 0, 0]) for image in split(data, part).images]


def areas(data: DataBundle, part: str) -> dict[int, list[int]]:
    """Image number -> pixels of each class."""
    counts = split(data, part).masks.sum((2, 3)).tolist()
    return dict(zip(brightness(data, part), counts, strict=True))


def json_of(folder: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((folder / "_annotations.coco.json").read_text())
    return content


def change_annotations(root: Path, change: Callable[[dict[str, Any]], object], *parts: str) -> None:
    """Change every annotation in the files of these parts; of all where none is named."""
    for part in parts or ("train", "valid", "test"):
        content = json_of(root / part)
        for item in content["annotations"]:
            change(item)
        write_annotations(root / part, content)
