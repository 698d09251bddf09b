"""``load_data``: a data set by name."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, TypedDict, Unpack

from common.data.batching import Splits, make_loader
from common.data.bundle import DataBundle
from common.data.normalization import IMAGENET
from common.data.registry import DATASETS, DataSet, ReadSettings
from common.data.tasks import TASKS
from common.validation import check_choice

NORMALIZATIONS = ("dataset", "imagenet")
UNANNOTATED = ("keep", "drop")
MAX_WORKERS = 8
SMALLEST = {"image_size": 8, "batch_size": 2, "limit": 2, "workers": 0}


class LoadOptions(TypedDict, total=False):
    """The rarer arguments of :func:`load_data`.

    Attributes:
        split_seed: fixes the splits, and the images that ``phantoms`` generates. It is separate from ``seed``: a
            network trained under one seed never meets its training images in the validation or test split of
            another. Default: 0.
        augment: vary the images of training and calibration at random; None for the data set's default.
        normalize: ``dataset`` (default) for the data set's own mean and deviation, or ``imagenet`` for a network that
            starts from torchvision's weights.
        unannotated: ``keep`` (default) or ``drop`` images of ``coco`` that have no annotation. Kept ones count as
            images of nothing. Drop them where objects were left without an annotation.
        workers: number of processes that read and augment; None for one a core, at most 8, where files are read, and
            none where images are held in memory.
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
        name: one of :data:`common.data.DATASETS`; each one's file says what it is and where its images lie.
        root: folder that holds the data set; some need none.
        image_size: height and width to which images are resized, in pixels; None for the data set's default.
        batch_size: number of images in a batch, in every loader.
        seed: fixes the order of training.
        limit: use at most this many images of each split, for quick tries.
        download: fetch the data set into ``root`` when it is not there, if it can be fetched.
        options: see :class:`LoadOptions`.

    Raises:
        TypeError: there is no such option.
        ValueError: an argument is unknown or out of range, or the data set is damaged.
        FileNotFoundError: ``root`` does not hold the data set.
        ConnectionError: the download failed.
    """
    if unknown := sorted(options.keys() - DEFAULTS.keys()):
        raise TypeError(f"load_data() got an unexpected keyword argument {unknown[0]!r}")
    chosen: LoadOptions = {**DEFAULTS, **options}
    asked: dict[str, Any] = {"image_size": image_size, "batch_size": batch_size, "limit": limit, **chosen}
    DATASETS.check(name)
    check_choice("normalize", chosen["normalize"], NORMALIZATIONS)
    check_choice("unannotated", chosen["unannotated"], UNANNOTATED)
    for parameter, smallest in SMALLEST.items():
        if asked[parameter] is not None and asked[parameter] < smallest:
            raise ValueError(f"{parameter}={asked[parameter]!r}: it must be at least {smallest}")
    dataset = DATASETS[name]
    if dataset.layout and root is None:
        raise ValueError(f"data_root=None: {name} needs the folder that holds {dataset.layout}")
    settings = ReadSettings(
        root=None if root is None else Path(root),
        image_size=dataset.image_size if image_size is None else image_size,
        normalization=IMAGENET if chosen["normalize"] == "imagenet" else dataset.normalization,
        augment=dataset.augment if chosen["augment"] is None else chosen["augment"],
        split_seed=chosen["split_seed"],
        limit=limit,
        download=download,
        unannotated=chosen["unannotated"],
    )
    source = {"name": name, "root": root, **asked, "seed": seed}
    return _bundle(dataset, dataset.read(settings), settings, source)


def _bundle(dataset: DataSet, splits: Splits, settings: ReadSettings, asked: dict[str, Any]) -> DataBundle:
    """Batch the splits, and note the arguments that made them.

    Values that were left open are noted as they were filled in, so that equal data have equal arguments.
    """
    source = asked | {
        "root": None if settings.root is None else str(settings.root.resolve()),
        "image_size": settings.image_size,
        "download": False,
        "augment": settings.augment,
        "normalize": "imagenet" if settings.normalization == IMAGENET else "dataset",
        "metric": asked["metric"] or dataset.metric or TASKS[dataset.task].metric,
    }
    size, workers = asked["batch_size"], asked["workers"]
    if workers is None:
        workers = 0 if dataset.in_memory else min(MAX_WORKERS, _cores())
    return DataBundle(
        name=dataset.name,
        train=make_loader(splits.train, size, whole_batches=True, shuffle_seed=asked["seed"], workers=workers),
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
