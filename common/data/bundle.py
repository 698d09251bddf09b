"""``DataBundle``: the four splits of a data set, and the task to learn from them."""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypedDict, Unpack

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Subset

from common.data.batching import loader_part, makes_whole_batches
from common.data.normalization import AS_GIVEN, Normalization
from common.data.own import OwnLoader, seed_order
from common.data.tasks import METRICS, TASKS, metrics_of
from common.data.tasks.base import may_be_soft
from common.network.modes import random_state_kept
from common.validation import check_choice

Loader = DataLoader[Any] | OwnLoader

SPLITS = ("train", "calibration", "validation", "test")
CALIBRATION_IMAGES = 2000
"""Number of training images that are used for calibration if no loader is given for it."""


class BundleOptions(TypedDict, total=False):
    """The rarer arguments of :meth:`DataBundle.from_loaders`.

    Attributes:
        image_size: height and width of the inputs, in pixels; None (default) for the greatest axis in the first
            batch.
        normalization: how pixels became inputs, for showing images and for checking networks. By default it is
            unknown.
        metric: name of the metric that decides; empty (default) for that of the task.
    """

    image_size: int | None
    normalization: Normalization
    metric: str


@dataclass(frozen=True)
class DataBundle:
    """The four disjoint splits of a data set. Every loader yields ``(inputs, targets)``.

    Ordinary loaders, such as ``DataLoader``, are wrapped in :class:`common.data.own.OwnLoader`, which reads their
    first batch and checks every batch. See also :meth:`from_loaders`.

    Attributes:
        name: name of the data set, in logs and tables.
        train: the training split, shuffled in each epoch. A smaller last batch is left out.
        calibration: whole batches for statistics of the activations. Its targets are not used. Its images are
            augmented like those of training, because BatchNorm's statistics describe the training distribution.
        validation: the split by which everything is chosen.
        test: the split that is read once, at the end.
        classes: names of the K classes.
        image_size: height and width of the inputs, in pixels.
        normalization: how pixels became inputs.
        task: name of the task, see :data:`common.data.TASKS`.
        source: the arguments of ``load_data`` that made the bundle, so that another process can make it again; empty
            for any other bundle.
        metric: name of the metric that decides among networks, see :data:`common.data.METRICS`; empty for that of the
            task.

    Raises:
        ValueError: the task or the metric is unknown; the metric cannot decide for the task; or a loader gives no
            batch, or batches that do not fit the task or the classes.
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
    metric: str = ""

    def __post_init__(self) -> None:
        TASKS.check(self.task)
        if not self.metric:
            object.__setattr__(self, "metric", TASKS[self.task].metric)
        _check_metric(self.metric, self.task)
        for split in SPLITS:
            loader = getattr(self, split)
            if not isinstance(loader, OwnLoader) and not makes_whole_batches(loader):
                object.__setattr__(self, split, _wrap(loader, split, self.task, len(self.classes)))

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
        task: str | None = None,
        **options: Unpack[BundleOptions],
    ) -> DataBundle:
        """Make a bundle of your own data loaders.

        A loader yields images ``(N, C, H, W)``, signals ``(N, C, L)`` or volumes ``(N, C, D, H, W)`` as floats, scaled
        as the network expects them, and targets of the task, such as class numbers ``(N,)`` or masks ``(N, K, H, W)``.
        Every pass over a split other than ``train`` starts from the same seed. For the order of ``train`` see
        :func:`common.data.own.seed_order`. If it cannot be seeded, a training that continues after a stop may see the
        images in another order.

        Args:
            train: the training split.
            validation: the split by which everything is chosen.
            test: the split that is read once, at the end. None for every second image of ``validation``; a line on
                stderr then says so.
            calibration: the split for statistics of the activations. None for the first batches of ``train``, about
                2,000 images, in a seeded order. (The network also learns from these images.)
            name: name of the data set, in logs and tables.
            classes: names of the classes. None for the data set's own ``classes``; if it has none, the names are
                numbers up to the greatest target in ``validation`` and the first batch of ``train``, or a number for
                each mask.
            task: name of the task. None to recognise it by the targets of the first batch.
            options: see :class:`BundleOptions`.

        Raises:
            ValueError: a loader gives no batch, can be read only once or gives unsuitable batches; or ``test`` is
                missing and ``validation`` changes from pass to pass.
        """
        if unknown := sorted(options.keys() - BundleOptions.__annotations__.keys()):
            known = ", ".join(BundleOptions.__annotations__)
            raise TypeError(f"{unknown[0]!r} is no parameter of from_loaders; besides its own it takes {known}")
        if task is not None:
            TASKS.check(task)
        count = None if classes is None else len(classes)
        first = _wrap(train, "train", task, count)
        if task is None and may_be_soft(first.targets):
            print(f"{name}: targets in [0, 1] are taken for {first.task}; name another with task=", file=sys.stderr)
        if classes is None and TASKS[first.task].shows_all_classes:
            count = TASKS[first.task].count_classes(first.targets)
        chosen = _wrap(validation, "validation", first.task, count)
        names = _class_names(first, chosen) if classes is None else tuple(classes)
        statistics = _wrap(train if calibration is None else calibration, "calibration", first.task, count)
        if calibration is None:
            statistics.most = math.ceil(CALIBRATION_IMAGES / statistics.shape[0])
        tested = None if test is None else _wrap(test, "test", first.task, count)
        if tested is None:
            chosen, tested = _halves(chosen, name)
        size = options.get("image_size") or max(first.shape[2:])
        scale, metric = options.get("normalization", AS_GIVEN), options.get("metric", "")
        return cls(name, first, statistics, chosen, tested, names, size, scale, task=first.task, metric=metric)

    @property
    def num_classes(self) -> int:
        """Number of classes, K."""
        return len(self.classes)

    def shuffle(self, seed: int) -> None:
        """Fix the order of the training images in the next pass, see :func:`common.data.own.seed_order`.

        Augmentation draws from torch's global generator. With worker processes, it also depends on their number.
        """
        seed_order(self.train, seed)

    def train_part(self, part: int, parts: int) -> Loader:
        """Return the training batches for one of several processes: every ``parts``-th image, from ``part`` on.

        Raises:
            ValueError: a batch has fewer than two images for each process, or cannot be divided equally; there is no
                whole batch; or the processes cannot read the batches in the same order.
        """
        if parts == 1:
            return self.train
        if isinstance(self.train, OwnLoader):
            return self.train.for_process(part, parts)
        return loader_part(self.train, part, parts)

    def validation_images(self) -> int:
        """Count the images of the validation split. A loader of your own is read to count them."""
        return _count_images(self.validation)

    def test_images(self) -> int:
        """Count the images of the test split, as :meth:`validation_images`."""
        return _count_images(self.test)

    def example(self, most: int = 1) -> Tensor:
        """Return up to `most` inputs of the calibration split, ``(N, 3, H, W)`` of images. The random state stays."""
        with random_state_kept(torch.device("cpu"), 0):  # they may be augmented
            if makes_whole_batches(self.calibration):
                return self.calibration.dataset[list(range(min(most, _count_images(self.calibration))))][0]
            return next(iter(self.calibration))[0][:most]


def _count_images(loader: Loader) -> int:
    """Count the images of a split."""
    return loader.images if isinstance(loader, OwnLoader) else len(loader.dataset)  # type: ignore[arg-type]


def _check_metric(name: str, task: str) -> None:
    """Raise a ValueError unless this metric can decide among networks for this task."""
    METRICS.check(name)
    check_choice("metric", name, [metric.name for metric in metrics_of(task) if metric.greater_is_better])


def _wrap(loader: Any, split: str, task: str | None, classes: int | None) -> OwnLoader:
    """Wrap a loader for a split."""
    seed = None if split == "train" else 0
    return OwnLoader(loader, split, task, classes, seed=seed, pairs=split in ("train", "calibration"))


def _halves(validation: OwnLoader, name: str) -> tuple[OwnLoader, OwnLoader]:
    """Return validation and test, each with every second image of a validation loader."""
    if not validation.keeps_order():
        raise ValueError(
            "test=None: half of validation would be the test split, but the validation loader gives other images in "
            "every pass; give a test loader, or a validation loader with shuffle=False and no augmentation"
        )
    chosen, test = validation.share(0, 2), validation.share(1, 2)
    if not test.images:
        raise ValueError("test=None: half of validation would be the test split, but validation has only one image")
    test.split = "test"
    print(f"{name} has no test loader: every second image of validation is the test split", file=sys.stderr)
    return chosen, test


def _class_names(train: OwnLoader, validation: OwnLoader) -> tuple[str, ...]:
    """Return the data set's own class names if their number fits, otherwise numbers."""
    dataset, task = train.dataset, TASKS[train.task]
    while isinstance(dataset, Subset):
        dataset = dataset.dataset
    names = getattr(dataset, "classes", None)
    if not isinstance(names, list | tuple) or not all(isinstance(name, str) for name in names):
        names = ()
    count = task.count_classes(train.targets)
    if task.shows_all_classes:
        return tuple(names) if len(names) == count else tuple(map(str, range(count)))
    if len(names) >= count and getattr(dataset, "target_transform", None) is None:
        return tuple(names)
    return tuple(map(str, range(max(count, *(task.count_classes(targets) for _, targets in validation)))))
