"""``DataBundle`` and the data loaders it is made of."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import BatchSampler, DataLoader, Dataset, RandomSampler, Sampler, SequentialSampler

from common.data.normalization import Normalization

Batch = tuple[Tensor, Tensor]
Loader = DataLoader[Batch]


class BatchDataset(Dataset[Batch], ABC):
    """A data set that is asked for whole batches: a list of indices gives ``(inputs, targets)``."""

    @abstractmethod
    def __len__(self) -> int:
        """How many images there are."""

    @abstractmethod
    def __getitem__(self, indices: Sequence[int]) -> Batch:
        """Inputs ``(N, 3, S, S)`` in float32 and their targets."""


@dataclass(frozen=True)
class Splits:
    """The four disjoint splits before they are batched, and the names of the classes."""

    train: BatchDataset
    calibration: BatchDataset
    validation: BatchDataset
    test: BatchDataset
    classes: tuple[str, ...]


@dataclass(frozen=True)
class DataBundle:
    """The four disjoint splits of a data set; every loader yields ``(inputs, targets)``.

    Attributes:
        train: shuffled anew each epoch; the last, smaller batch is left out.
        calibration: for statistics of the activations, in whole batches; its targets are not looked at. Its images
            are augmented as those of training are: BatchNorm's statistics belong to what the network was trained on.
        validation: for every choice that is made.
        test: to be read once, at the end.
        classes: names of the K classes.
        normalization: how pixels became inputs.
        task: ``classification``; targets are class numbers ``(N,)``. Or ``segmentation``; targets are masks
            ``(N, K, H, W)`` in float32, 0 or 1, in which a pixel may be of several classes or of none.
        source: the arguments of ``load_data`` that made it, from which another process can make it again; empty for
            a bundle that was put together otherwise.
    """

    name: str
    train: Loader
    calibration: Loader
    validation: Loader
    test: Loader
    classes: tuple[str, ...]
    image_size: int
    normalization: Normalization
    task: str = "classification"
    source: Mapping[str, Any] = field(default_factory=dict, repr=False)

    @property
    def num_classes(self) -> int:
        """K."""
        return len(self.classes)

    @property
    def metric(self) -> str:
        """The name of what decides among networks, in :func:`common.metrics.evaluate`; greater is better."""
        return "dice" if self.task == "segmentation" else "accuracy"

    def shuffle(self, seed: int) -> None:
        """Fix the order in which the training images come in the next pass.

        What augmentation draws comes from torch's global generator; with worker processes it depends on their number
        too.
        """
        batches = self.train.sampler
        assert isinstance(batches, BatchSampler)
        assert isinstance(batches.sampler, RandomSampler)
        batches.sampler.generator.manual_seed(seed)

    def train_part(self, part: int, parts: int) -> Loader:
        """The training batches as one of several processes takes them: every ``parts``-th image, from ``part`` on.

        Raises:
            ValueError: a batch has less than two images for each process, or not as many for each, or there is
                no whole batch.
        """
        if parts == 1:
            return self.train
        batches = self.train.sampler
        assert isinstance(batches, BatchSampler)
        if batches.batch_size < 2 * parts or batches.batch_size % parts:
            raise ValueError(
                f"batch_size={batches.batch_size}: {parts} processes share each batch; it must be a multiple of "
                f"{parts}, at least {2 * parts}"
            )
        if len(self.train.dataset) < batches.batch_size:  # type: ignore[arg-type]
            raise ValueError(
                f"the training split has {len(self.train.dataset)} images, "  # type: ignore[arg-type]
                f"less than batch_size={batches.batch_size}: {parts} processes share whole batches only"
            )
        shared = _Part(batches, part, parts)
        return DataLoader(self.train.dataset, sampler=shared, batch_size=None, num_workers=self.train.num_workers)

    def example(self) -> Tensor:
        """One input ``(1, 3, H, W)`` from the calibration split."""
        return next(iter(self.calibration))[0][:1]


class _Part(Sampler[list[int]]):
    """Every ``parts``-th index of each batch, from ``part`` on."""

    def __init__(self, batches: BatchSampler, part: int, parts: int) -> None:
        self.batches, self.part, self.parts = batches, part, parts

    def __iter__(self) -> Iterator[list[int]]:
        return (batch[self.part :: self.parts] for batch in self.batches)

    def __len__(self) -> int:
        return len(self.batches)


def make_bundle(
    name: str,
    splits: Splits,
    *,
    image_size: int,
    normalization: Normalization,
    task: str,
    batch_size: int,
    seed: int,
    workers: int,
    source: Mapping[str, Any],
) -> DataBundle:
    """Batch the splits; ``source`` are the arguments of :func:`common.data.load_data`, the others some of them."""
    return DataBundle(
        name=name,
        train=make_loader(splits.train, batch_size, whole_batches=True, shuffle_seed=seed, workers=workers),
        calibration=make_loader(splits.calibration, batch_size, whole_batches=True, workers=workers),
        validation=make_loader(splits.validation, batch_size, workers=workers),
        test=make_loader(splits.test, batch_size, workers=workers),
        classes=splits.classes,
        image_size=image_size,
        normalization=normalization,
        task=task,
        source=source,
    )


def make_loader(
    dataset: BatchDataset,
    batch_size: int,
    *,
    whole_batches: bool = False,
    shuffle_seed: int | None = None,
    workers: int = 0,
) -> Loader:
    """A loader that asks the data set for whole batches.

    Args:
        dataset: the images.
        batch_size: images in a batch.
        whole_batches: leave out a last, smaller batch, unless it is the only one; BatchNorm cannot learn from one
            image.
        shuffle_seed: of a random order; None for the data set's own.
        workers: processes that make batches; 0 for none beside this one.
    """
    order: RandomSampler | SequentialSampler = SequentialSampler(dataset)
    if shuffle_seed is not None:
        order = RandomSampler(dataset, generator=torch.Generator().manual_seed(shuffle_seed))
    batches = BatchSampler(order, batch_size, drop_last=whole_batches and len(dataset) >= batch_size)
    return DataLoader(dataset, sampler=batches, batch_size=None, num_workers=workers)
