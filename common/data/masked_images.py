"""Images with masks, held in memory and augmented together."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache

import torch
from torch import Tensor

from common.data.batching import BatchDataset
from common.data.normalization import Normalization
from common.network.batches import Batch


class MaskedImages(BatchDataset):
    """Images and their masks, held in memory as bytes: ``(C + K) S^2`` bytes per image, e.g. 64 KiB in colour at 128.

    Args:
        images: ``(N, C, S, S)``, uint8, with C = 1 (grey) or 3.
        masks: ``(N, K, S, S)``, bool.
        normalization: of the pixels.
        augment: whether to vary each image at random whenever it is read, see :func:`augmentation`.
    """

    def __init__(self, images: Tensor, masks: Tensor, normalization: Normalization, augment: bool = False) -> None:
        self.images, self.masks, self.normalization, self.augment = images, masks, normalization, augment

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, indices: Sequence[int]) -> Batch:
        """Return inputs ``(N, 3, S, S)`` and targets ``(N, K, S, S)``, both in float32, for a list of indices."""
        index = torch.as_tensor(indices)
        images, masks = self.images[index], self.masks[index]
        if self.augment:
            pairs = list(map(augmentation(), images, masks))
            images, masks = (torch.stack(tensors) for tensors in zip(*pairs, strict=True))
        return self.normalization(images.float() / 255), masks.float()


@cache
def augmentation() -> Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Return a function that changes an image ``(C, S, S)`` and its masks ``(K, S, S)`` together at random.

    It draws both flips, a rotation of up to 10 degrees either way (with black at the borders; masks by the nearest
    pixel), and factors of 0.9 to 1.1 for brightness and contrast.
    """
    from common.torchvision_compat import torchvision

    v2, tensors = torchvision.transforms.v2, torchvision.tv_tensors
    transform = v2.Compose(
        [
            v2.RandomHorizontalFlip(),
            v2.RandomVerticalFlip(),
            v2.RandomRotation(10, interpolation=v2.InterpolationMode.BILINEAR),
            v2.ColorJitter(brightness=0.1, contrast=0.1),
        ]
    )

    def augment(image: Tensor, masks: Tensor) -> tuple[Tensor, Tensor]:
        changed, moved = transform(tensors.Image(image), tensors.Mask(masks))
        return changed.as_subclass(Tensor), moved.as_subclass(Tensor)

    return augment
