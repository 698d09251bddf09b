"""``OwnLoader``: makes your own data loaders usable like those of the suite."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    DistributedSampler,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    SubsetRandomSampler,
    WeightedRandomSampler,
)

from common.data.batching import batch_size_message
from common.data.tasks import TASKS, task_of
from common.data.tasks.base import describe_tensor
from common.network.batches import Batch, pair_of
from common.network.outputs import describe

MOST_BATCHES = 1_000_000
"""A loader without a length counts as endless if it gives more batches than this."""
SHAPES = "(N, C, H, W), (N, C, L) for signals or (N, C, D, H, W) for volumes"
SHUFFLES = (RandomSampler, SubsetRandomSampler, WeightedRandomSampler)
"""Samplers that accept a generator."""


class OwnLoader:
    """Checked batches ``(inputs, targets)`` of your own loader.

    Inputs become float32, class numbers int64, masks and numbers to predict float32. Values are not scaled.

    Args:
        loader: an iterable of batches that can be read any number of times, e.g. a ``DataLoader``.
        split: name of the split in a ``DataBundle``, for error messages.
        task: name of the task; None to recognise it by the targets of the first batch.
        classes: number of classes; None allows any.
        seed: seed of the order of every pass, see :func:`seed_order`; None to leave the order to the caller.
        pairs: whether to leave out a batch of one image, unless the first batch has only one. BatchNorm cannot learn
            from one image.
        most: maximum number of batches in a pass; None for all.

    Attributes:
        task: name of the task.
        shape: shape of the first batch's inputs: ``(N, C, H, W)``, ``(N, C, L)`` or ``(N, C, D, H, W)``.
        targets: targets of the first batch.

    Raises:
        ValueError: the loader gives no batch, can be read only once, or its batches are unsuitable.
    """

    def __init__(
        self,
        loader: Any,
        split: str,
        task: str | None = None,
        classes: int | None = None,
        *,
        seed: int | None = 0,
        pairs: bool = False,
        most: int | None = None,
    ) -> None:
        self.loader, self.split, self.classes, self.seed, self.most = loader, split, classes, seed, most
        self._least, self._part, self._parts, self._equal = 1, 0, 1, False
        self._length: int | None = None
        self._images: int | None = None
        inputs, targets = pair_of(self._first(), f"a batch of the {split} loader")
        self.task = task or (task_of(targets) or next(iter(TASKS.values()))).name
        inputs, self.targets = self._checked(inputs, targets)
        if not inputs.isfinite().all():
            raise ValueError(f"the {split} loader: its first batch has inputs that are not finite")
        self.shape = tuple(inputs.shape)
        if pairs and len(inputs) > 1:
            self._least = 2

    def __iter__(self) -> Iterator[Batch]:
        """Yield the batches of a pass."""
        if self.seed is not None:
            seed_order(self.loader, self.seed)
        passed = 0
        for batch in itertools.islice(self.loader, self.most):
            inputs, targets = self._checked(*pair_of(batch, f"a batch of the {self.split} loader"))
            count = len(inputs)
            rows = slice((self._part - passed) % self._parts, count, self._parts)
            if self._equal:
                rows = slice(self._part, count - count % self._parts, self._parts)
            passed += count
            if count >= self._least and len(inputs[rows]):
                yield inputs[rows], targets[rows]

    def __len__(self) -> int:
        """Return the number of batches in a pass. A loader without a length is read once to count them."""
        if self._length is None and (self._parts == 1 or self._equal):
            self._length = self._known_length()
        if self._length is None:
            self._count()
        return self._length or 0

    @property
    def images(self) -> int:
        """Number of images in a pass. The first time, the loader is read to count them."""
        if self._images is None:
            self._count()
        return self._images or 0

    @property
    def dataset(self) -> Any:
        """The loader's own data set; None if there is none."""
        return getattr(self.loader, "dataset", None)

    def keeps_order(self) -> bool:
        """Whether two passes start with the same images even if the global random state differs."""
        firsts: list[Batch] = []
        for seed in (0, 1):
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(seed)
                firsts.append(next(iter(self)))
        return all(torch.equal(one, other) for one, other in zip(*firsts, strict=True))

    def share(self, part: int, parts: int) -> OwnLoader:
        """Return a copy that gives every ``parts``-th image of a pass, from ``part`` on."""
        shared = copy.copy(self)
        shared._part, shared._parts, shared._length, shared._images = part, parts, None, None
        return shared

    def for_process(self, part: int, parts: int) -> OwnLoader:
        """Return the part of each batch for one of several processes. All parts have the same size.

        A ``DistributedSampler`` already distributes the images, so its loader is returned unchanged.

        Raises:
            ValueError: the processes cannot read the images in the same order, or the batches are too small.
        """
        if isinstance(getattr(self.loader, "sampler", None), DistributedSampler):
            return self
        if not _has_known_order(self.loader):
            raise ValueError(
                f"the {self.split} loader: {parts} processes must read the same batches in the same order; give it "
                "one of torch's samplers, a sampler with a generator or a DistributedSampler"
            )
        if self.shape[0] < 2 * parts or self.shape[0] % parts:
            raise ValueError(batch_size_message(self.shape[0], parts))
        shared = self.share(part, parts)
        shared._least, shared._equal = 2 * parts, True
        return shared

    def _first(self) -> object:
        """Read the loader's first batch without drawing random numbers."""
        if not isinstance(self.loader, Iterable):
            raise ValueError(f"{self.split} is {describe(self.loader)}; it must be a DataLoader")
        if isinstance(self.loader, Iterator):
            raise ValueError(
                f"{self.split} is {describe(self.loader)}, which can be read only once; give a DataLoader"
            )
        try:
            with torch.random.fork_rng(devices=[]):
                for batch in self.loader:
                    return batch
        except Exception as error:  # your data set or collate_fn may raise anything
            raise ValueError(f"the first batch of the {self.split} loader cannot be read: {error}") from error
        batches = getattr(self.loader, "batch_sampler", None)
        reason = ""
        if isinstance(batches, BatchSampler) and batches.drop_last:
            reason = f"; drop_last leaves out a batch with fewer images than batch_size={batches.batch_size}"
        raise ValueError(f"the {self.split} loader gives no batch{reason}")

    def _known_length(self) -> int | None:
        """Return the number of batches in a pass that the loader states; None if it states none."""
        batches = getattr(self.loader, "batch_sampler", None)
        try:
            count = len(self.loader)
            if type(batches) is BatchSampler and not isinstance(self.dataset, IterableDataset):
                whole, rest = divmod(len(batches.sampler), batches.batch_size)  # type: ignore[arg-type]
                count = whole * (batches.batch_size >= self._least)
                count += rest >= self._least and not batches.drop_last
        except (TypeError, NotImplementedError):
            return None
        return count if self.most is None else min(count, self.most)

    def _count(self) -> None:
        """Read a pass to count its batches and images."""
        sizes: list[int] = []
        for _, targets in self:
            sizes.append(len(targets))
            if len(sizes) > MOST_BATCHES:
                raise ValueError(f"the {self.split} loader gave more than {MOST_BATCHES:,} batches; it must be finite")
        self._length, self._images = len(sizes), sum(sizes)

    def _checked(self, inputs: Tensor, targets: Tensor) -> Batch:
        """Return a batch in the suite's types; raise a ValueError if it is unsuitable."""
        where = f"the {self.split} loader"
        single = inputs.dim() == 3 and (not targets.dim() or len(targets) != len(inputs))  # an image without a batch
        if single or inputs.dim() not in (3, 4, 5) or not inputs.is_floating_point():
            advice = ""
            if single:
                advice = "; give the DataLoader a batch_size"
            elif inputs.dim() in (3, 4, 5) and not inputs.is_complex():
                advice = "; scale them as the network expects, e.g. inputs.float() / 255"
            given = describe_tensor(inputs)
            raise ValueError(f"{where}: inputs are {given}; they must be floats {SHAPES}{advice}")
        return inputs.float(), TASKS[self.task].checked_targets(targets, len(inputs), self.classes, where)


def seed_order(loader: DataLoader[Any] | OwnLoader, seed: int) -> None:
    """Fix the order of a loader's next pass, as far as the loader allows.

    The seed goes to the generators of the loader and its samplers, and to a sampler's ``set_epoch``. torch's shuffling
    samplers get a generator if they have none. Any other loader, such as that of an ``IterableDataset``, keeps its own
    order.
    """
    for holder in _holders(loader):
        if isinstance(holder, SHUFFLES) and holder.generator is None:
            holder.generator = torch.Generator()
        generator = getattr(holder, "generator", None)
        if isinstance(generator, torch.Generator):
            generator.manual_seed(seed)
        set_epoch = getattr(holder, "set_epoch", None)
        if callable(set_epoch):
            set_epoch(seed)


def _holders(loader: Any) -> list[Any]:
    """Return the loader and its samplers, which determine the order."""
    while isinstance(loader, OwnLoader):
        loader = loader.loader
    found = [loader]
    for name in ("sampler", "batch_sampler"):
        inner = getattr(loader, name, None)
        found += [inner, getattr(inner, "sampler", None)]
    return [holder for holder in found if holder is not None]


def _has_known_order(loader: Any) -> bool:
    """Whether each sampler follows a seed or does not shuffle."""
    samplers = [holder for holder in _holders(loader)[1:] if type(holder) is not BatchSampler]
    known = (SequentialSampler, *SHUFFLES)
    return bool(samplers) and all(
        isinstance(sampler, known)
        or isinstance(getattr(sampler, "generator", None), torch.Generator)
        or callable(getattr(sampler, "set_epoch", None))
        for sampler in samplers
    )
