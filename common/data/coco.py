"""Your own COCO set: images with annotated regions and a mask for each category.

The root folder holds ``train/``, ``valid/`` (or ``val/``, ``validation/``) and ``test/``, each with its images and
``_annotations.coco.json``; or it has the official layout, ``annotations/instances_train2017.json`` etc. beside
``train2017/`` etc. If there is no part for testing, half of validation is the test split.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from common.data.annotations import AnnotationFile, LeftOut, read_coco
from common.data.batching import Splits
from common.data.coco_images import read_images
from common.data.masked_images import MaskedImages
from common.data.normalization import CENTRED
from common.data.registry import DATASETS, DataSet, ReadSettings, root_of
from common.data.splits import split_indices, subset

CALIBRATION_IMAGES = 64
Pair = tuple[Tensor, Tensor]
"""Images and masks."""


def coco_splits(name: str, root: Path, settings: ReadSettings) -> Splits:
    """Read the splits of a COCO set. Calibration has 64 images of ``train/``, or a fifth if there are fewer than 320.

    Lines on stderr name what was left out, and state if half of validation is the test split.

    Args:
        name: name of the data set, for these lines.
        root: folder of the data set.
        settings: how to read it.

    Raises:
        FileNotFoundError: an annotation file is missing.
        ValueError: an annotation file is damaged; a split would be empty; no annotation of a part covers a pixel; or
            more than 5% of a split's images are missing or broken.
    """
    reader = _Reader(root, settings)
    files, seed = reader.files, settings.split_seed
    count = len(files["train"].images)
    parts = split_indices(count, {"calibration": max(2, min(CALIBRATION_IMAGES, count // 5))}, seed)
    train, calibration = reader.read("train", parts["train"].tolist(), parts["calibration"].tolist())
    if "test" in files:
        (validation,), (test,) = (
            reader.read(part, subset(len(files[part].images), settings.limit, seed).tolist())
            for part in ("valid", "test")
        )
    else:
        halves = _halves(files["valid"], seed)
        validation, test = reader.read("valid", halves["train"].tolist(), halves["test"].tolist())
        half = f"half of {files['valid'].split}, drawn by split_seed, is the test split"
        print(f"{name} in {root}: there is no part for testing; {half}", file=sys.stderr)
    for line in reader.left_out.lines():
        print(f"{name} in {root}: {line}", file=sys.stderr)
    return Splits(
        MaskedImages(*train, settings.normalization, settings.augment),
        MaskedImages(*calibration, settings.normalization, settings.augment),
        MaskedImages(*validation, settings.normalization),
        MaskedImages(*test, settings.normalization),
        reader.classes,
    )


class _Reader:
    """Reads images and masks of a COCO set.

    Attributes:
        left_out: names of what could not be used.
        files: part -> its annotations.
        classes: names of the classes.
    """

    def __init__(self, root: Path, settings: ReadSettings) -> None:
        self._settings, self.left_out = settings, LeftOut()
        self.files, self.classes = read_coco(root, self.left_out)
        if settings.unannotated == "drop":
            self.files = {part: _annotated(file, self.left_out) for part, file in self.files.items()}

    def read(self, part: str, *groups: Sequence[int]) -> list[Pair]:
        """Read images and masks of each group of indices, at most ``limit`` of each."""
        drop = self._settings.unannotated == "drop"
        file, size = self.files[part], self._settings.image_size
        groups = tuple(group[: self._settings.limit] for group in groups)
        indices = [index for group in groups for index in group]
        images, masks, readable = read_images(file, indices, self.classes, size, self.left_out)
        also = self.left_out.also()
        sizes = [int(flags.sum()) for flags in readable.split([len(group) for group in groups])]
        categories = {region.category for index in indices for region in file.images[index].regions}
        if (part == "train" or not drop) and not masks.any() and categories & set(self.classes):
            raise ValueError(f"{file.path}: no annotation covers a pixel{also}")
        used = masks.flatten(1).any(1) if drop else torch.ones(len(masks), dtype=torch.bool)
        if not all(some.any() for some in used.split(sizes)):
            raise ValueError(f"unannotated='drop' leaves no image of {file.path}{also}")
        read_groups = zip(images.split(sizes), masks.split(sizes), used.split(sizes), strict=True)
        return [(images[some], masks[some]) for images, masks, some in read_groups]


def _halves(file: AnnotationFile, split_seed: int) -> dict[str, Tensor]:
    """Return indices for validation (as ``train``) and ``test`` if one part is used for both."""
    count = len(file.images)
    if count < 2:
        raise ValueError(f"{file.path} has one image, which cannot be divided, and there is no part for testing")
    return split_indices(count, {"test": count // 2}, split_seed)


def _annotated(file: AnnotationFile, left_out: LeftOut) -> AnnotationFile:
    """Drop the images that have no annotation."""
    images = [image for image in file.images if image.regions]
    if not images:
        raise ValueError(f"unannotated='drop' leaves no image of {file.path}{left_out.also()}")
    return dataclasses.replace(file, images=images)


def read(settings: ReadSettings) -> Splits:
    """Read a COCO set."""
    return coco_splits("coco", root_of(settings), settings)


DATASETS.add(
    DataSet(
        "coco",
        "your own images with masks in COCO's format",
        read,
        CENTRED,
        task="segmentation",
        image_size=128,
        augment=True,
        layout="train/, valid/ and test/, or annotations/",
    )
)
