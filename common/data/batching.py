"""Data sets that return whole batches, their four splits, and their loaders."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.data import BatchSampler, DataLoader, Dataset, RandomSampler, Sampler, SequentialSampler

from common.network.batches import Batch


class BatchDataset(Dataset[Batch], ABC):
    """A data set that returns a whole batch ``(inputs, targets)`` for a list of indices."""

    @abstractmethod
    def __len__(self) -> int:
        """Return the number of images."""

    @abstractmethod
    def __getitem__(self, indices: Sequence[int]) -> Batch:
        """Return inputs ``(N, 3, S, S)`` in float32 and their targets."""


@dataclass(frozen=True)
class Splits:
    """The four disjoint splits before they are batched, and the names of the classes."""

    train: BatchDataset
    calibration: BatchDataset
    validation: BatchDataset
    test: BatchDataset
    classes: tuple[str, ...]


def make_loader(
    dataset: BatchDataset,
    batch_size: int,
    *,
    whole_batches: bool = False,
    shuffle_seed: int | None = None,
    workers: int = 0,
) -> DataLoader[Any]:
    """Make a loader that requests whole batches from the data set.

    Args:
        dataset: the images.
        batch_size: number of images in a batch.
        whole_batches: whether to leave out a smaller last batch, unless it is the only one. BatchNorm cannot learn
            from one image.
        shuffle_seed: seed of a random order; None for the order of the data set.
        workers: number of processes that make batches; 0 to make them in this process.
    """
    order: RandomSampler | SequentialSampler = SequentialSampler(dataset)
    if shuffle_seed is not None:
        order = RandomSampler(dataset, generator=torch.Generator().manual_seed(shuffle_seed))
    batches = BatchSampler(order, batch_size, drop_last=whole_batches and len(dataset) >= batch_size)
    return DataLoader(dataset, sampler=batches, batch_size=None, num_workers=workers)


def makes_whole_batches(loader: object) -> bool:
    """Whether :func:`make_loader` made this loader."""
    if not isinstance(loader, DataLoader):
        return False
    return isinstance(loader.dataset, BatchDataset) and isinstance(loader.sampler, BatchSampler)


def loader_part(loader: DataLoader[Any], part: int, parts: int) -> DataLoader[Any]:
    """Return a loader of every ``parts``-th image of each batch, from ``part`` on.

    Args:
        loader: made by :func:`make_loader`.
        part: number of this process, from 0.
        parts: number of processes.

    Raises:
        ValueError: a batch has fewer than two images for each process, or cannot be divided equally; or there is no
            whole batch.
    """
    batches = loader.sampler
    assert isinstance(batches, BatchSampler)
    images: int = len(loader.dataset)  # type: ignore[arg-type]
    if batches.batch_size < 2 * parts or batches.batch_size % parts:
        raise ValueError(batch_size_message(batches.batch_size, parts))
    if images < batches.batch_size:
        raise ValueError(
            f"the training split has {images} images, fewer than batch_size={batches.batch_size}: {parts} processes "
            "can share only whole batches"
        )
    shared = _Part(batches, part, parts)
    return DataLoader(loader.dataset, sampler=shared, batch_size=None, num_workers=loader.num_workers)


def batch_size_message(batch_size: int, parts: int) -> str:
    """Return the error message for a batch that ``parts`` processes cannot share."""
    return (
        f"batch_size={batch_size}: {parts} processes share each batch; it must be a multiple of {parts}, at least "
        f"{2 * parts}"
    )


class _Part(Sampler[list[int]]):
    """Every ``parts``-th index of each batch, from ``part`` on."""

    def __init__(self, batches: BatchSampler, part: int, parts: int) -> None:
        self.batches, self.part, self.parts = batches, part, parts

    def __iter__(self) -> Iterator[list[int]]:
        return (batch[self.part :: self.parts] for batch in self.batches)

    def __len__(self) -> int:
        return len(self.batches)
