"""Small images with class numbers, kept in memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from common.data.bundle import BatchDataset, Splits
from common.data.normalization import Normalization
from common.data.splits import split_indices, subset
from common.network.batches import Batch
from common.torchvision_compat import torchvision


class ImageTensors(BatchDataset):
    """Small images kept in memory as bytes; a whole batch is resized, augmented and normalised at once.

    Args:
        images: ``(N, C, H, W)``, uint8, with C = 1 (grey) or 3.
        labels: ``(N,)``, int64.
        image_size: height and width after resizing.
        normalization: of the pixels.
        augment: mirror every second image at random and move each by up to an eighth of its size, black behind it.
    """

    def __init__(
        self, images: Tensor, labels: Tensor, image_size: int, normalization: Normalization, augment: bool = False
    ) -> None:
        self.images, self.labels, self.image_size, self.augment = images, labels, image_size, augment
        self.normalization = normalization

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, indices: Sequence[int]) -> Batch:
        """Inputs ``(N, 3, S, S)`` in float32 and targets ``(N,)`` for a list of indices."""
        index = torch.as_tensor(indices)
        images = self.images[index].float() / 255
        size = self.image_size
        if images.shape[-2:] != (size, size):
            images = torchvision.transforms.v2.functional.resize(images, [size, size], antialias=True)
        if self.augment:
            images = _mirror_and_move(images, size // 8)
        return self.normalization(images), self.labels[index]


def tensor_splits(
    name: str,
    tensors: tuple[Tensor, Tensor, Tensor, Tensor],
    sizes: Mapping[str, int],
    classes: tuple[str, ...],
    image_size: int,
    normalization: Normalization,
    *,
    augment: bool,
    split_seed: int,
    limit: int | None,
) -> Splits:
    """The splits of a set in memory; those that are not named here are as for :func:`common.data.load_data`.

    Args:
        name: of the set, for errors.
        tensors: images ``(N, H, W)`` or ``(N, C, H, W)`` in uint8 and labels ``(N,)`` to learn and choose from, then
            those of the test split.
        sizes: images of ``validation`` and of ``calibration``, which are taken from the former.
        classes: their names.
        image_size: height and width after resizing.
        normalization: of the pixels.
        augment: training and calibration.
        split_seed: of the splits.
        limit: images of each split at most.

    Raises:
        ValueError: there are too few images for the splits.
    """
    images, labels, test_images, test_labels = tensors
    try:
        parts = split_indices(len(images), sizes, split_seed)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None

    def dataset(images: Tensor, labels: Tensor, index: Tensor, augment: bool = False) -> ImageTensors:
        images = images[index] if images.dim() == 4 else images[index].unsqueeze(1)
        return ImageTensors(images, labels[index], image_size, normalization, augment)

    return Splits(
        dataset(images, labels, parts["train"][:limit], augment),
        dataset(images, labels, parts["calibration"][:limit], augment),
        dataset(images, labels, parts["validation"][:limit]),
        dataset(test_images, test_labels, subset(len(test_images), limit, split_seed)),
        classes,
    )


def _mirror_and_move(images: Tensor, most: int) -> Tensor:
    """Each image ``(N, C, S, S)`` mirrored or not, and moved by up to ``most`` pixels in both directions."""
    count, size = len(images), images.shape[-1]
    mirrored = torch.rand(count) < 0.5
    images = torch.where(mirrored[:, None, None, None], images.flip(3), images)
    padded = nn.functional.pad(images, (most, most, most, most))
    top, left = (torch.randint(2 * most + 1, (count, 1)) + torch.arange(size) for _ in range(2))
    moved = padded[torch.arange(count)[:, None, None], :, top[:, :, None], left[:, None, :]]
    return moved.permute(0, 3, 1, 2)
