"""``load_data``: a data set by name."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, TypedDict, Unpack

from common.data.batching import Splits, make_loader
from common.data.bundle import DataBundle
from common.data.normalization import CENTRED, IMAGENET, UNIT
from common.data.registry import DATASETS, DataSet, ReadSettings
from common.data.tasks import TASKS
from common.validation import check_choice

SCALES = {"imagenet": IMAGENET, "centred": CENTRED, "unit": UNIT}
"""Name -> how pixels in [0, 1] become inputs, instead of by the data set's own mean and deviation."""
NORMALIZATIONS = ("dataset", *SCALES)
UNANNOTATED = ("keep", "drop")
MAX_WORKERS = 8
MOST_WORKERS = 64
"""Limit on the processes of a loader, where four for each core are not more."""
SMALLEST = {"image_size": 8, "batch_size": 2, "limit": 2, "workers": 0}


class LoadOptions(TypedDict, total=False):
    """The rarer arguments of :func:`load_data`.

    Attributes:
        split_seed: fixes the splits, and the images that ``phantoms`` generates. It is separate from ``seed``, so that
            the training images under one ``seed`` are never in the validation or test split under another. Default: 0.
        augment: whether to vary the images of training and calibration at random; None for the data set's default.
        normalize: ``dataset`` (default) for the data set's own mean and deviation; ``imagenet`` for a network that
            starts from torchvision's weights; ``unit`` for inputs in [0, 1], ``centred`` for inputs in [-1, 1].
        unannotated: ``keep`` (default) or ``drop`` images of ``coco`` that have no annotation. If kept, they count as
            images without objects. Drop them if some objects were not annotated.
        workers: number of processes that read and augment images. None for one per core, at most 8, if images are
            read from files, and for no process if they are held in memory.
        metric: name of the metric that decides; empty for that of the data set, see :data:`common.data.METRICS`.
    """

    split_seed: int
    augment: bool | None
    normalize: str
    unannotated: str
    workers: int | None
    metric: str


DEFAULTS: LoadOptions = {
    "split_seed": 0,
    "augment": None,
    "normalize": "dataset",
    "unannotated": "keep",
    "workers": None,
    "metric": "",
}


def load_data(
    name: str,
    root: str | Path | None = None,
    image_size: int | None = None,
    *,
    batch_size: int = 128,
    seed: int = 0,
    limit: int | None = None,
    download: bool = False,
    **options: Unpack[LoadOptions],
) -> DataBundle:
    """Load a data set and split it.

    Args:
        name: one of :data:`common.data.DATASETS`. The file of each data set describes it and its folder layout.
        root: folder of the data set. Some data sets need none.
        image_size: height and width to which images are resized, in pixels; None for the data set's default.
        batch_size: number of images in a batch, in every loader.
        seed: fixes the order of the training images.
        limit: maximum number of images to use from each split, for quick tries; None for all.
        download: whether to download the data set into ``root`` if it is missing there.
        options: see :class:`LoadOptions`.

    Raises:
        TypeError: an option is unknown.
        ValueError: an argument is unknown or out of range, or the data set is damaged.
        FileNotFoundError: ``root`` does not hold the data set.
        ConnectionError: the download failed.
    """
    if unknown := sorted(options.keys() - DEFAULTS.keys()):
        raise TypeError(f"load_data() got an unexpected keyword argument {unknown[0]!r}")
    chosen: LoadOptions = {**DEFAULTS, **options}
    given: dict[str, Any] = {"image_size": image_size, "batch_size": batch_size, "limit": limit, **chosen}
    DATASETS.check(name)
    check_choice("normalize", chosen["normalize"], NORMALIZATIONS)
    check_choice("unannotated", chosen["unannotated"], UNANNOTATED)
    for parameter, smallest in SMALLEST.items():
        if given[parameter] is not None and given[parameter] < smallest:
            raise ValueError(f"{parameter}={given[parameter]!r}: it must be at least {smallest}")
    most = max(MOST_WORKERS, 4 * _cores())
    if given["workers"] is not None and given["workers"] > most:
        raise ValueError(f"workers={given['workers']!r}: it must be at most {most} on this machine")
    dataset = DATASETS[name]
    if dataset.layout and root is None:
        raise ValueError(f"data_root=None: {name} needs the folder that holds {dataset.layout}")
    settings = ReadSettings(
        root=None if root is None else Path(root),
        image_size=dataset.image_size if image_size is None else image_size,
        normalization=SCALES.get(chosen["normalize"], dataset.normalization),
        augment=dataset.augment if chosen["augment"] is None else chosen["augment"],
        split_seed=chosen["split_seed"],
        limit=limit,
        download=download,
        unannotated=chosen["unannotated"],
    )
    source = {"name": name, "root": root, **given, "seed": seed}
    return _bundle(dataset, dataset.read(settings), settings, source)


def _bundle(dataset: DataSet, splits: Splits, settings: ReadSettings, given: dict[str, Any]) -> DataBundle:
    """Make the loaders of the splits, and store the arguments of ``load_data`` in the bundle.

    Defaults are stored as the values that replaced them, so that equal data have equal arguments.
    """
    source = given | {
        "root": None if settings.root is None else str(settings.root.resolve()),
        "image_size": settings.image_size,
        "download": False,
        "augment": settings.augment,
        "normalize": "imagenet" if settings.normalization == IMAGENET else given["normalize"],
        "metric": given["metric"] or dataset.metric or TASKS[dataset.task].metric,
    }
    size, workers = given["batch_size"], given["workers"]
    if workers is None:
        workers = 0 if dataset.in_memory else min(MAX_WORKERS, _cores())
    return DataBundle(
        name=dataset.name,
        train=make_loader(splits.train, size, whole_batches=True, shuffle_seed=given["seed"], workers=workers),
        calibration=make_loader(splits.calibration, size, whole_batches=True, workers=workers),
        validation=make_loader(splits.validation, size, workers=workers),
        test=make_loader(splits.test, size, workers=workers),
        classes=splits.classes,
        image_size=settings.image_size,
        normalization=settings.normalization,
        task=dataset.task,
        source=source,
        metric=source["metric"],
    )


def _cores() -> int:
    """Number of processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
