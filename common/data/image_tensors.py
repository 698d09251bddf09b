"""Small images with class numbers, held in memory."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from common.data.batching import BatchDataset, Splits
from common.data.normalization import Normalization
from common.data.registry import ReadSettings
from common.data.splits import split_indices, subset
from common.network.batches import Batch


class SplitSizes(NamedTuple):
    """Numbers of training images that become the validation and calibration splits."""

    validation: int = 5000
    calibration: int = 2000


class ImageTensors(BatchDataset):
    """Small images, held in memory as bytes. A whole batch is resized, augmented and normalised at once.

    Args:
        images: ``(N, C, H, W)``, uint8, with C = 1 (grey) or 3.
        labels: ``(N,)``, int64.
        image_size: height and width after resizing.
        normalization: of the pixels.
        augment: whether to mirror each image with probability one half and to shift it by up to an eighth of its size,
            with black at the borders.
    """

    def __init__(
        self, images: Tensor, labels: Tensor, image_size: int, normalization: Normalization, augment: bool = False
    ) -> None:
        self.images, self.labels, self.image_size, self.augment = images, labels, image_size, augment
        self.normalization = normalization

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, indices: Sequence[int]) -> Batch:
        """Return inputs ``(N, 3, S, S)`` in float32 and targets ``(N,)`` for a list of indices."""
        index = torch.as_tensor(indices)
        images = self.images[index].float() / 255
        if images.shape[-2:] != (self.image_size, self.image_size):
            images = _resized(images, self.image_size)
        if self.augment:
            images = _mirror_and_move(images, self.image_size // 8)
        return self.normalization(images), self.labels[index]


def tensor_splits(
    name: str,
    tensors: tuple[Tensor, Tensor, Tensor, Tensor],
    classes: tuple[str, ...],
    sizes: SplitSizes,
    settings: ReadSettings,
) -> Splits:
    """Split a data set that is held in memory.

    Args:
        name: name of the data set, for error messages.
        tensors: images ``(N, H, W)`` or ``(N, C, H, W)`` in uint8 and labels ``(N,)``: those of training, then those
            of the test split.
        classes: names of the classes.
        sizes: numbers of images in validation and calibration, which are drawn from training.
        settings: how to read the data set.

    Raises:
        ValueError: there are too few images for the splits.
    """
    images, labels, test_images, test_labels = tensors
    limit, seed = settings.limit, settings.split_seed
    try:
        parts = split_indices(len(images), sizes._asdict(), seed)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None

    def dataset(images: Tensor, labels: Tensor, index: Tensor, augment: bool = False) -> ImageTensors:
        images = images[index] if images.dim() == 4 else images[index].unsqueeze(1)
        return ImageTensors(images, labels[index], settings.image_size, settings.normalization, augment)

    return Splits(
        dataset(images, labels, parts["train"][:limit], settings.augment),
        dataset(images, labels, parts["calibration"][:limit], settings.augment),
        dataset(images, labels, parts["validation"][:limit]),
        dataset(test_images, test_labels, subset(len(test_images), limit, seed)),
        classes,
    )


def _resized(images: Tensor, size: int) -> Tensor:
    """Resize images ``(N, C, H, W)`` to ``(N, C, size, size)``."""
    from common.torchvision_compat import torchvision

    resized: Tensor = torchvision.transforms.v2.functional.resize(images, [size, size], antialias=True)
    return resized


def _mirror_and_move(images: Tensor, most: int) -> Tensor:
    """Mirror each image ``(N, C, S, S)`` with probability one half, and shift it by up to ``most`` pixels each way."""
    count, size = len(images), images.shape[-1]
    mirrored = torch.rand(count) < 0.5
    images = torch.where(mirrored[:, None, None, None], images.flip(3), images)
    padded = nn.functional.pad(images, (most, most, most, most))
    top, left = (torch.randint(2 * most + 1, (count, 1)) + torch.arange(size) for _ in range(2))
    moved = padded[torch.arange(count)[:, None, None], :, top[:, :, None], left[:, None, :]]
    return moved.permute(0, 3, 1, 2)
