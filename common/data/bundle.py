"""``DataBundle`` and the data loaders it is made of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import BatchSampler, DataLoader, Dataset, RandomSampler, SequentialSampler

from common.torchvision_compat import torchvision

Batch = tuple[Tensor, Tensor]
Loader = DataLoader[Batch]


@dataclass(frozen=True)
class DataBundle:
    """The four disjoint splits of a data set; every loader yields ``(inputs, targets)``.

    Attributes:
        train: shuffled anew each epoch; the last, smaller batch is left out.
        calibration: for statistics of the activations, in whole batches; its targets are not looked at. Its images
            are augmented as those of training are: BatchNorm's statistics belong to what the network was trained on.
        validation: for every choice that is made.
        test: to be read once, at the end.
        task: ``classification``; targets are class numbers ``(N,)``.
        source: the arguments of ``load_data`` that made it, from which another process can make it again; empty for
            a bundle that was put together otherwise.
    """

    name: str
    train: Loader
    calibration: Loader
    validation: Loader
    test: Loader
    num_classes: int
    image_size: int
    task: str = "classification"
    source: Mapping[str, Any] = field(default_factory=dict, repr=False)

    @property
    def metric(self) -> str:
        """The metric that decides; greater is better."""
        return "accuracy" if self.task == "classification" else "dice"

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
    """Small images kept in memory as bytes; a whole batch is resized, augmented and normalised at once.

    Args:
        images: ``(N, C, H, W)``, uint8, with C = 1 (grey) or 3.
        labels: ``(N,)``, int64.
        image_size: height and width after resizing.
        mean: of each channel's values in [0, 1].
        deviation: standard deviation of the same.
        augment: mirror every second image at random and move each by up to an eighth of its size, black behind it.
    """

    def __init__(
        self,
        images: Tensor,
        labels: Tensor,
        image_size: int,
        mean: Sequence[float],
        deviation: Sequence[float],
        augment: bool = False,
    ) -> None:
        self.images, self.labels, self.image_size, self.augment = images, labels, image_size, augment
        self.mean = torch.tensor(mean).view(1, -1, 1, 1)
        self.deviation = torch.tensor(deviation).view(1, -1, 1, 1)

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
        images = (images - self.mean) / self.deviation
        return images.expand(-1, 3, -1, -1).contiguous(), self.labels[index]


def _mirror_and_move(images: Tensor, most: int) -> Tensor:
    """Each image ``(N, C, S, S)`` mirrored or not, and moved by up to ``most`` pixels in both directions."""
    count, size = len(images), images.shape[-1]
    mirrored = torch.rand(count) < 0.5
    images = torch.where(mirrored[:, None, None, None], images.flip(3), images)
    padded = nn.functional.pad(images, (most, most, most, most))
    top, left = (torch.randint(2 * most + 1, (count, 1)) + torch.arange(size) for _ in range(2))
    moved = padded[torch.arange(count)[:, None, None], :, top[:, :, None], left[:, None, :]]
    return moved.permute(0, 3, 1, 2)


def make_loader(
    dataset: ImageTensors, batch_size: int, *, whole_batches: bool = False, shuffle_seed: int | None = None
) -> Loader:
    """A loader that asks the data set for whole batches.

    Args:
        dataset: the images.
        batch_size: images in a batch.
        whole_batches: leave out a last, smaller batch, unless it is the only one; BatchNorm cannot learn from one
            image.
        shuffle_seed: of a random order; None for the data set's own.
    """
    order: RandomSampler | SequentialSampler = SequentialSampler(dataset)
    if shuffle_seed is not None:
        order = RandomSampler(dataset, generator=torch.Generator().manual_seed(shuffle_seed))
    batches = BatchSampler(order, batch_size, drop_last=whole_batches and len(dataset) >= batch_size)
    return DataLoader(dataset, sampler=batches, batch_size=None)
