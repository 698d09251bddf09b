"""``DataSet``: the description of a data set, and the registry of all data sets."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from common.data.batching import Splits
from common.data.normalization import Normalization
from common.validation import Registry


@dataclass(frozen=True)
class ReadSettings:
    """Settings for reading a data set: the arguments of ``load_data`` with all defaults filled in.

    Attributes:
        root: folder of the data set; None only if the data set needs none.
        image_size: height and width of the network inputs, in pixels.
        normalization: how pixels become network inputs.
        augment: whether to vary the images of training and calibration at random.
        split_seed: fixes the splits.
        limit: maximum number of images to use from each split; None for all.
        download: whether to download the data set into ``root`` if it is missing there.
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
    """Description of a data set.

    Attributes:
        name: name by which ``load_data`` finds it.
        title: one line for help texts.
        read: function that makes the splits. It imports the libraries that it needs, so that importing this package
            loads none.
        normalization: normalization by the statistics of the data set's pixels.
        task: name of the task, see :data:`common.data.TASKS`.
        image_size: default height and width, in pixels.
        augment: whether training images are varied at random by default.
        layout: what the root folder must hold, in words; empty if no root is needed.
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
