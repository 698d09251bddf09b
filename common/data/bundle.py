"""``DataBundle`` and the data loaders it is made of."""

from __future__ import annotations

import math
import sys
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import BatchSampler, DataLoader, Dataset, RandomSampler, Sampler, SequentialSampler, Subset

from common.data.normalization import AS_GIVEN, Normalization
from common.data.own import OwnLoader, seed_order
from common.network.batches import Batch
from common.validation import check_choice

Loader = DataLoader[Any] | OwnLoader

SPLITS = ("train", "calibration", "validation", "test")
TASKS = ("classification", "segmentation")
CALIBRATION_IMAGES = 2000
"""Images of the training split that serve as calibration where there is no loader for it."""


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

    Loaders of the user's own, e.g. ordinary ``DataLoader`` objects, are wrapped in
    :class:`common.data.own.OwnLoader`, which reads their first batch and checks every batch that comes. See also
    :meth:`from_loaders`.

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

    Raises:
        ValueError: ``task`` is unknown, or a loader gives no batch or batches that do not fit the task or the classes.
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

    def __post_init__(self) -> None:
        check_choice("task", self.task, TASKS)
        for split in SPLITS:
            loader = getattr(self, split)
            if not _is_served(loader):
                object.__setattr__(self, split, _serve(loader, split, self.task, len(self.classes)))

    @classmethod
    def from_loaders(
        cls,
        train: Any,
        validation: Any,
        test: Any = None,
        calibration: Any = None,
        *,
        name: str = "custom",
        classes: Sequence[str] | None = None,
        image_size: int | None = None,
        normalization: Normalization = AS_GIVEN,
        task: str | None = None,
    ) -> DataBundle:
        """A bundle of the user's own data loaders.

        A loader yields pairs of inputs ``(N, C, H, W)`` in floating point, scaled as the network wants them, and
        class numbers ``(N,)`` or masks ``(N, K, H, W)``. The seed of a training goes to the generators of the
        ``train`` loader and its samplers; a shuffling sampler of torch's without a generator gets one. Where the
        order cannot be seeded (an ``IterableDataset``, a sampler of one's own), training works, but a training that
        goes on after a stop may see the images in another order. The other loaders begin every pass with one seed.

        Args:
            train: to learn from.
            validation: for every choice that is made.
            test: to be read once, at the end; None takes every second image of ``validation``, and a line on stderr
                says so.
            calibration: for statistics of the activations; None takes the first batches of ``train`` in a seeded
                order, about 2,000 images. They are learnt from, too.
            name: of the data set, in logs and tables.
            classes: names of the classes; None takes the data set's own ``classes``, if it has them, otherwise the
                numbers up to the greatest in ``validation`` (which is read for that) and in the first batch of
                ``train``, or one for each mask.
            image_size: height and width of the inputs; None takes the greater of both from the first batch.
            normalization: how pixels became inputs, for pictures and to check networks against; by default it is
                taken as not known.
            task: ``classification`` or ``segmentation``; None goes by the targets of the first batch.

        Raises:
            ValueError: a loader gives no batch or can be read only once, its batches cannot serve, or ``test`` is
                missing and ``validation`` changes from pass to pass.
        """
        if task is not None:
            check_choice("task", task, TASKS)
        count = None if classes is None else len(classes)
        first = _serve(train, "train", task, count)
        if classes is None and first.task == "segmentation":
            count = first.targets.shape[1]
        chosen = _serve(validation, "validation", first.task, count)
        names = _class_names(first, chosen) if classes is None else tuple(classes)
        if calibration is None:
            statistics = _serve(train, "calibration", first.task, count)
            statistics.most = math.ceil(CALIBRATION_IMAGES / statistics.shape[0])
        else:
            statistics = _serve(calibration, "calibration", first.task, count)
        if test is None:
            chosen, tested = _halves(chosen, name)
        else:
            tested = _serve(test, "test", first.task, count)
        return cls(
            name=name,
            train=first,
            calibration=statistics,
            validation=chosen,
            test=tested,
            classes=names,
            image_size=image_size or max(first.shape[2:]),
            normalization=normalization,
            task=first.task,
        )

    @property
    def num_classes(self) -> int:
        """K."""
        return len(self.classes)

    @property
    def metric(self) -> str:
        """The name of what decides among networks, in :func:`common.training.evaluate`; greater is better."""
        return "dice" if self.task == "segmentation" else "accuracy"

    def shuffle(self, seed: int) -> None:
        """Fix the order in which the training images come in the next pass, see :func:`common.data.own.seed_order`.

        What augmentation draws comes from torch's global generator; with worker processes it depends on their number
        too.
        """
        seed_order(self.train, seed)

    def train_part(self, part: int, parts: int) -> Loader:
        """The training batches as one of several processes takes them: every ``parts``-th image, from ``part`` on.

        Raises:
            ValueError: a batch has less than two images for each process, or not as many for each, there is
                no whole batch, or the processes cannot read the batches in the same order.
        """
        if parts == 1:
            return self.train
        if isinstance(self.train, OwnLoader):
            return self.train.for_process(part, parts)
        batches = self.train.sampler
        assert isinstance(batches, BatchSampler)  # as make_loader builds them
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

    def validation_images(self) -> int:
        """How many images the validation split has; a loader of the user's own is read to count them."""
        if isinstance(self.validation, OwnLoader):
            return self.validation.images
        return len(self.validation.dataset)  # type: ignore[arg-type]

    def example(self) -> Tensor:
        """One input ``(1, 3, H, W)`` from the calibration split."""
        return next(iter(self.calibration))[0][:1]


def _is_served(loader: object) -> bool:
    """Whether a loader is one of :func:`make_loader`'s, or wrapped already."""
    if isinstance(loader, DataLoader):
        return isinstance(loader.dataset, BatchDataset) and isinstance(loader.sampler, BatchSampler)
    return isinstance(loader, OwnLoader)


def _serve(loader: Any, split: str, task: str | None, classes: int | None) -> OwnLoader:
    """Wrap a loader for a split."""
    seed = None if split == "train" else 0
    return OwnLoader(loader, split, task, classes, seed=seed, pairs=split in ("train", "calibration"))


def _halves(validation: OwnLoader, name: str) -> tuple[OwnLoader, OwnLoader]:
    """Validation and test, each with every second image of a validation loader."""
    if not validation.keeps_order():
        raise ValueError(
            "test=None: half of validation would serve as test, but the validation loader gives other images at every "
            "pass; give a test loader, or a validation loader with shuffle=False and no augmentation"
        )
    chosen, test = validation.share(0, 2), validation.share(1, 2)
    if not test.images:
        raise ValueError("test=None: half of validation would serve as test, but it has one image only")
    test.split = "test"
    print(f"{name} has no test loader: every second image of validation is the test split", file=sys.stderr)
    return chosen, test


def _class_names(train: OwnLoader, validation: OwnLoader) -> tuple[str, ...]:
    """Names of the classes: the data set's own where they can be right, otherwise numbers."""
    dataset = train.dataset
    while isinstance(dataset, Subset):
        dataset = dataset.dataset
    names = getattr(dataset, "classes", None)
    if not isinstance(names, list | tuple) or not all(isinstance(name, str) for name in names):
        names = ()
    if train.task == "segmentation":
        count = train.targets.shape[1]
        return tuple(names) if len(names) == count else tuple(map(str, range(count)))
    count = int(train.targets.max()) + 1
    if len(names) >= count and getattr(dataset, "target_transform", None) is None:
        return tuple(names)
    return tuple(map(str, range(max(count, *(int(targets.max()) + 1 for _, targets in validation)))))


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
