"""``DataSet``: what the suite knows of a data set before it is read, and the registry of all."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from common.data.batching import Splits
from common.data.normalization import Normalization
from common.validation import Registry


@dataclass(frozen=True)
class ReadSettings:
    """How a data set is to be read; the values that a caller of ``load_data`` left open are filled in.

    Attributes:
        root: the folder that holds the data set; None only where the data set needs none.
        image_size: height and width of the network inputs, in pixels.
        normalization: how pixels become network inputs.
        augment: vary the images of training and calibration at random.
        split_seed: fixes the splits.
        limit: use at most this many images of each split; None uses all.
        download: fetch the data set into ``root`` when it is not there.
        unannotated: ``keep`` or ``drop`` images without any annotation.
    """

    root: Path | None
    image_size: int
    normalization: Normalization
    augment: bool
    split_seed: int
    limit: int | None
    download: bool
    unannotated: str


@dataclass(frozen=True)
class DataSet:
    """What the suite knows of a data set before it is read.

    Attributes:
        name: by which ``load_data`` finds it.
        title: one line for help texts.
        read: makes the splits. It imports the libraries that it needs, so that importing this package loads none.
        normalization: of the data set's own pixels.
        task: name of the task, see :data:`common.data.TASKS`.
        image_size: default height and width, in pixels.
        augment: whether training images are varied at random by default.
        layout: what the root folder has to hold, in words; empty where no root is needed.
        downloads: whether ``download=True`` fetches it.
        in_memory: whether its images are held in memory. Otherwise worker processes read files, one for each
            processor core by default.
        metric: name of the metric that decides; empty for that of the task.
    """

    name: str
    title: str
    read: Callable[[ReadSettings], Splits]
    normalization: Normalization
    task: str = "classification"
    image_size: int = 32
    augment: bool = False
    layout: str = ""
    downloads: bool = False
    in_memory: bool = True
    metric: str = ""


DATASETS: Registry[DataSet] = Registry("dataset", lambda dataset: dataset.name)


def root_of(settings: ReadSettings) -> Path:
    """Return the root folder of a data set that needs one; ``load_data`` has checked that it is given."""
    assert settings.root is not None
    return settings.root
