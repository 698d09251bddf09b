"""``DataBundle`` and the data loaders it is made of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.data import BatchSampler, DataLoader, Dataset, RandomSampler, SequentialSampler

from common.torchvision_compat import torchvision

Batch = tuple[Tensor, Tensor]
Loader = DataLoader[Batch]


@dataclass(frozen=True)
class DataBundle:
    """The four disjoint splits of a data set; every loader yields ``(inputs, targets)``.

    Attributes:
        train: shuffled anew each epoch; the last, smaller batch is left out.
        calibration: for statistics of the activations; its targets are not looked at.
        validation: for every choice that is made.
        test: to be read once, at the end.
        task: ``classification``; targets are class numbers ``(N,)``.
    """

    name: str
    train: Loader
    calibration: Loader
    validation: Loader
    test: Loader
    num_classes: int
    image_size: int
    task: str = "classification"

    def shuffle(self, seed: int) -> None:
        """Fix the order in which the training images come in the next pass."""
        batches = self.train.sampler
        assert isinstance(batches, BatchSampler)
        assert isinstance(batches.sampler, RandomSampler)
        batches.sampler.generator.manual_seed(seed)

    def example(self) -> Tensor:
        """One input ``(1, 3, H, W)`` from the calibration split."""
        return next(iter(self.calibration))[0][:1]


class ImageTensors(Dataset[Batch]):
    """Small images kept in memory as bytes; a whole batch is resized and normalised at once.

    Args:
        images: ``(N, H, W)``, uint8, grey.
        labels: ``(N,)``, int64.
        image_size: height and width after resizing.
        mean: of the images' values in [0, 1].
        deviation: standard deviation of the same.
    """

    def __init__(self, images: Tensor, labels: Tensor, image_size: int, mean: float, deviation: float) -> None:
        self.images, self.labels, self.image_size = images, labels, image_size
        self.mean, self.deviation = mean, deviation

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, indices: Sequence[int]) -> Batch:
        """Inputs ``(N, 3, S, S)`` in float32 and targets ``(N,)`` for a list of indices."""
        index = torch.as_tensor(indices)
        images = self.images[index].unsqueeze(1).float() / 255
        size = [self.image_size, self.image_size]
        images = torchvision.transforms.v2.functional.resize(images, size, antialias=True)
        images = (images - self.mean) / self.deviation
        return images.expand(-1, 3, -1, -1).contiguous(), self.labels[index]


def make_loader(dataset: ImageTensors, batch_size: int, shuffle_seed: int | None = None) -> Loader:
    """A loader that asks the data set for whole batches; shuffled when a seed is given."""
    if shuffle_seed is None:
        batches = BatchSampler(SequentialSampler(dataset), batch_size, drop_last=False)
    else:
        generator = torch.Generator().manual_seed(shuffle_seed)
        batches = BatchSampler(
            RandomSampler(dataset, generator=generator), batch_size, drop_last=len(dataset) >= batch_size
        )
    return DataLoader(dataset, sampler=batches, batch_size=None)
