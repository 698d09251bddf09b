"""Generate slices of heads with lesions as a COCO set, so that segmentation can be tried without real data."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from common.data.batching import Splits
from common.data.coco import coco_splits
from common.data.coco_layout import ANNOTATIONS
from common.data.normalization import CENTRED
from common.data.registry import DATASETS, DataSet, ReadSettings

SIZE = 96
"""Height and width in pixels."""
COUNTS = {"train": 240, "valid": 60, "test": 60}
WITHOUT_LESION = 0.25
VERSION = 1
"""Part of the folder's name, so that this module ignores the folders of its older versions."""

Slice = NDArray[np.float64]
Generator = np.random.Generator


def phantoms_folder(root: str | Path | None, seed: int) -> Path:
    """Return the folder of the images for this ``seed``. If they are missing or incomplete, generate them.

    Args:
        root: parent of the folder; None for the user's cache (``$XDG_CACHE_HOME``, otherwise ``~/.cache``).
        seed: fixes all random numbers.
    """
    if root is None:
        root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "low-rank-cnn"
    folder = Path(root) / f"phantoms-{VERSION}-{seed}"
    if _is_whole(folder):
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-") as scratch:
        fresh = Path(scratch) / folder.name
        write_phantoms(fresh, seed)
        if folder.exists() and not _is_whole(folder):
            shutil.rmtree(folder)
        try:
            fresh.rename(folder)
        except OSError:  # another process was faster
            if not _is_whole(folder):
                raise
    return folder


def _is_whole(folder: Path) -> bool:
    """Whether the folder holds all files."""
    return all(
        (folder / part / ANNOTATIONS).is_file() and len(list((folder / part).glob("*.png"))) == count
        for part, count in COUNTS.items()
    )


def write_phantoms(folder: Path, seed: int) -> None:
    """Write 360 grey PNGs of 96 x 96 pixels and their annotations: ``train/`` 240, ``valid/`` 60, ``test/`` 60.

    A head is a bright skull around brain tissue of varying brightness, with two dark ventricles and a few bright
    vessels. Three slices in four have one or two lesions: blobs a little brighter than their surroundings, with a
    soft edge. A lesion's polygon is its outline at half contrast.
    """
    generator = np.random.default_rng(seed)
    for part, count in COUNTS.items():
        (folder / part).mkdir(parents=True)
        images: list[dict[str, object]] = []
        annotations: list[dict[str, object]] = []
        for index in range(count):
            pixels, outlines = _draw(generator)
            name = f"{index:03d}.png"
            Image.fromarray(np.round(pixels.clip(0, 1) * 255).astype(np.uint8)).save(folder / part / name)
            images.append({"id": index, "file_name": name, "height": SIZE, "width": SIZE})
            annotations += [
                {
                    "id": len(annotations) + order,
                    "image_id": index,
                    "category_id": 1,
                    "iscrowd": 0,
                    "segmentation": [line],
                }
                for order, line in enumerate(outlines)
            ]
        content = {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "lesion"}]}
        (folder / part / ANNOTATIONS).write_text(json.dumps(content))


def _draw(generator: Generator) -> tuple[Slice, list[list[float]]]:
    """Draw a slice ``(S, S)`` with values around [0, 1]; return it with the polygons of its lesions."""
    y, x = (np.mgrid[:SIZE, :SIZE] + 0.5) / SIZE
    centre = 0.5 + generator.uniform(-0.03, 0.03, 2)
    axes = generator.uniform((0.34, 0.40), (0.40, 0.46))
    angle = generator.uniform(-0.3, 0.3)
    u, v = _rotated(x - centre[0], y - centre[1], angle)
    distance = np.hypot(u / axes[0], v / axes[1])  # 1 at the outside of the skull
    tissue = 0.42 + 0.10 * _texture(generator, 4) + 0.05 * _texture(generator, 16)
    for side in (-1, 1):
        offset, length, thickness = generator.uniform((0.05, 0.08, 0.02), (0.08, 0.14, 0.035))
        ventricle = np.hypot((u - side * offset) / thickness, (v + 0.02) / length)
        tissue -= 0.25 * _inside(1 - ventricle, 0.15)
    for _ in range(generator.integers(2, 7)):
        place = _place(generator, 0.8, centre, axes, angle)
        tissue += 0.3 * np.exp(-((x - place[0]) ** 2 + (y - place[1]) ** 2) / (2 * 0.008**2))
    outlines: list[list[float]] = []
    lesions = 0 if generator.random() < WITHOUT_LESION else int(generator.integers(1, 3))
    for _ in range(lesions):
        place = _place(generator, 0.6, centre, axes, angle)
        blob, outline = _lesion(generator, x - place[0], y - place[1])
        tissue += generator.uniform(0.10, 0.25) * blob
        outlines.append(((outline + place) * SIZE).round(2).flatten().tolist())
    head = tissue * _inside(0.86 - distance, 0.01) + 0.8 * _inside(1 - distance, 0.01) * _inside(distance - 0.9, 0.01)
    return head + 0.04 * generator.standard_normal((SIZE, SIZE)), outlines


def _lesion(generator: Generator, x: Slice, y: Slice) -> tuple[Slice, Slice]:
    """Draw a blob around the origin; return its brightness in [0, 1] and its outline ``(points, 2)`` at one half."""
    size = generator.uniform(0.04, 0.11)
    waves = np.arange(1, 5)
    heights, phases = generator.normal(0, 0.12, 4) / waves, generator.uniform(0, 2 * np.pi, 4)

    def radius(angle: Slice) -> Slice:
        return size * np.maximum(0.4, 1 + (heights * np.cos(angle[..., None] * waves + phases)).sum(-1))

    around = np.linspace(0, 2 * np.pi, 40, endpoint=False)
    outline = radius(around)[:, None] * np.stack([np.cos(around), np.sin(around)], axis=1)
    return _inside(radius(np.arctan2(y, x)) - np.hypot(x, y), generator.uniform(0.004, 0.012)), outline


def _place(generator: Generator, reach: float, centre: Slice, axes: Slice, angle: float) -> Slice:
    """Draw a point of the head, uniformly over its inner share ``reach``."""
    turn, away = generator.uniform(0, 2 * np.pi), reach * np.sqrt(generator.random())
    x, y = _rotated(away * axes[0] * np.cos(turn), away * axes[1] * np.sin(turn), -angle)
    return centre + np.array([x, y])


def _rotated(x: Slice, y: Slice, angle: float) -> tuple[Slice, Slice]:
    """Rotate points by an angle in radians."""
    return x * np.cos(angle) + y * np.sin(angle), y * np.cos(angle) - x * np.sin(angle)


def _inside(depth: Slice, softness: float) -> Slice:
    """Return 1 where ``depth`` is positive and 0 where it is negative, with a soft edge through one half at 0."""
    return 0.5 * (1 + np.tanh(depth / (2 * softness)))


def _texture(generator: Generator, cells: int) -> Slice:
    """Draw smooth noise in [-1, 1] with ``cells`` hills along a side."""
    noise = Image.fromarray(generator.uniform(-1, 1, (cells, cells)).astype(np.float32))
    return np.asarray(noise.resize((SIZE, SIZE), Image.Resampling.BICUBIC), dtype=np.float64)


def read(settings: ReadSettings) -> Splits:
    """Read the phantoms. If they are missing, generate them first."""
    return coco_splits("phantoms", phantoms_folder(settings.root, settings.split_seed), settings)


DATASETS.add(
    DataSet(
        "phantoms",
        "generated slices of heads with lesions and their masks, 96 x 96",
        read,
        CENTRED,
        task="segmentation",
        image_size=64,
        augment=True,
    )
)
