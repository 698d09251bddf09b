"""Images with masks, kept in memory and augmented together."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from common.data.annotations import AnnotationFile, LeftOut, read_coco, shorten
from common.data.bundle import BatchDataset, Splits
from common.data.coco import read_images
from common.data.normalization import Normalization
from common.data.splits import split_indices, subset
from common.network.batches import Batch
from common.torchvision_compat import torchvision

_v2, _tensors = torchvision.transforms.v2, torchvision.tv_tensors

AUGMENTATION = _v2.Compose(
    [
        _v2.RandomHorizontalFlip(),
        _v2.RandomVerticalFlip(),
        _v2.RandomRotation(10, interpolation=_v2.InterpolationMode.BILINEAR),
        _v2.ColorJitter(brightness=0.1, contrast=0.1),
    ]
)
"""Both flips, up to 10 degrees either way (black behind; masks by the nearest pixel), brightness and contrast times
0.9 to 1.1."""

CALIBRATION_IMAGES = 64


class MaskedImages(BatchDataset):
    """Images and their masks kept in memory as bytes: ``(C + K) S^2`` of them an image, 64 KiB for colour at 128.

    Args:
        images: ``(N, C, S, S)``, uint8, with C = 1 (grey) or 3.
        masks: ``(N, K, S, S)``, bool.
        normalization: of the pixels.
        augment: draw :data:`AUGMENTATION` anew for each image, every time it is read.
    """

    def __init__(self, images: Tensor, masks: Tensor, normalization: Normalization, augment: bool = False) -> None:
        self.images, self.masks, self.normalization, self.augment = images, masks, normalization, augment

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, indices: Sequence[int]) -> Batch:
        """Inputs ``(N, 3, S, S)`` and targets ``(N, K, S, S)``, both in float32, for a list of indices."""
        index = torch.as_tensor(indices)
        images, masks = self.images[index], self.masks[index]
        if self.augment:
            pairs = [
                AUGMENTATION(_tensors.Image(image), _tensors.Mask(mask))
                for image, mask in zip(images, masks, strict=True)
            ]
            images = torch.stack([image.as_subclass(Tensor) for image, _ in pairs])
            masks = torch.stack([mask.as_subclass(Tensor) for _, mask in pairs])
        return self.normalization(images.float() / 255), masks.float()


def coco_splits(
    name: str,
    root: Path,
    image_size: int,
    normalization: Normalization,
    *,
    augment: bool,
    split_seed: int,
    limit: int | None,
    unannotated: str,
) -> Splits:
    """The splits of a COCO set; calibration is 64 images of its ``train/``, or a fifth where it has fewer than 320.

    Arguments are as for :func:`common.data.load_data`, classes as in :func:`common.data.annotations.read_coco`. Lines
    on stderr name what was left out, if anything was, and say so where half of validation is the test split.

    Raises:
        FileNotFoundError: an annotation file is missing.
        ValueError: an annotation file is damaged, nothing is left of a split, no annotation of a part covers
            a pixel, or more than 5% of a split's images are missing or broken.
    """
    left_out = LeftOut()
    files, classes = read_coco(root, left_out)
    if unannotated == "drop":
        files = {part: _annotated(file, left_out) for part, file in files.items()}

    def read(part: str, *groups: Sequence[int]) -> list[tuple[Tensor, Tensor]]:
        """Images and masks of each group of indices, at most ``limit`` of each."""
        groups = tuple(group[:limit] for group in groups)
        indices = [index for group in groups for index in group]
        images, masks, readable = read_images(files[part], indices, classes, image_size, left_out)
        sizes = [int(flags.sum()) for flags in readable.split([len(group) for group in groups])]
        categories = {region.category for index in indices for region in files[part].images[index].regions}
        if (part == "train" or unannotated == "keep") and not masks.any() and categories & set(classes):
            raise ValueError(f"{files[part].path}: no annotation covers a pixel{left_out.also()}")
        used = masks.flatten(1).any(1) if unannotated == "drop" else torch.ones(len(masks), dtype=torch.bool)
        if not all(some.any() for some in used.split(sizes)):
            raise ValueError(f"unannotated='drop' leaves no image of {files[part].path}{left_out.also()}")
        read_groups = zip(images.split(sizes), masks.split(sizes), used.split(sizes), strict=True)
        return [(images[some], masks[some]) for images, masks, some in read_groups]

    count = len(files["train"].images)
    parts = split_indices(count, {"calibration": max(2, min(CALIBRATION_IMAGES, count // 5))}, split_seed)
    train, calibration = read("train", parts["train"].tolist(), parts["calibration"].tolist())
    if "test" in files:
        (validation,), (test,) = (
            read(part, subset(len(files[part].images), limit, split_seed).tolist()) for part in ("valid", "test")
        )
    else:
        halves = _halves(files["valid"], split_seed)
        validation, test = read("valid", halves["train"].tolist(), halves["test"].tolist())
        half = f"half of {files['valid'].split}, drawn by split_seed, is the test split"
        print(f"{name} in {root}: there is no part to test on; {half}", file=sys.stderr)
    if left_out.names:
        print(f"{name} in {root}: left out {left_out}", file=sys.stderr)
    if left_out.resized:
        print(
            f"{name} in {root}: {len(left_out.resized)} images are not of the size that their entries tell "
            f"({shorten(left_out.resized)}); their regions are scaled along",
            file=sys.stderr,
        )
    return Splits(
        MaskedImages(*train, normalization, augment),
        MaskedImages(*calibration, normalization, augment),
        MaskedImages(*validation, normalization),
        MaskedImages(*test, normalization),
        classes,
    )


def _halves(file: AnnotationFile, split_seed: int) -> dict[str, Tensor]:
    """Indices for validation (as ``train``) and ``test`` where one part has to serve for both."""
    count = len(file.images)
    if count < 2:
        raise ValueError(f"{file.path} has one image, and there is no part to test on: half of it cannot serve")
    return split_indices(count, {"test": count // 2}, split_seed)


def _annotated(file: AnnotationFile, left_out: LeftOut) -> AnnotationFile:
    images = [image for image in file.images if image.regions]
    if not images:
        raise ValueError(f"unannotated='drop' leaves no image of {file.path}{left_out.also()}")
    return dataclasses.replace(file, images=images)
