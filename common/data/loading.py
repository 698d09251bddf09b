"""``load_data``: a data set by name."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from common.choices import check_choice
from common.data.bundle import DataBundle, ImageTensors, make_loader
from common.data.cifar10 import load_cifar10
from common.data.digits import load_digits
from common.data.mnist import load_mnist
from common.data.splits import split_indices


@dataclass(frozen=True)
class _Recipe:
    """What is fixed for a data set: its values' statistics, sizes of the splits, whether it is augmented."""

    mean: tuple[float, ...]
    deviation: tuple[float, ...]
    validation: int
    calibration: int
    augment: bool = False


_RECIPES = {
    "digits": _Recipe((0.3053,), (0.3760,), validation=240, calibration=160),
    "mnist": _Recipe((0.1307,), (0.3081,), validation=5000, calibration=2000),
    "cifar10": _Recipe(
        (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616), validation=5000, calibration=2000, augment=True
    ),
}
DATASETS = tuple(_RECIPES)


def load_data(
    name: str,
    root: str | Path | None = None,
    image_size: int = 32,
    *,
    batch_size: int = 128,
    seed: int = 0,
    split_seed: int = 0,
    limit: int | None = None,
    download: bool = False,
    augment: bool | None = None,
) -> DataBundle:
    """Load a data set and split it.

    Args:
        name: ``digits`` (1,797 images of 8x8 from scikit-learn, no files needed), ``mnist`` or ``cifar10``.
        root: the folder that holds the set: ``mnist`` in torchvision's layout, ``cifar10`` as class folders
            (``train/<class>/``, ``test/<class>/``); not needed for ``digits``.
        image_size: images are resized to this height and width.
        batch_size: of every loader.
        seed: fixes the order of training.
        split_seed: fixes the splits. It is apart from ``seed``, so that a network trained under one seed never meets
            its training images in the validation or test split of another.
        limit: use at most this many images of each split, for quick tries.
        download: fetch ``mnist`` into ``root`` when it is not there.
        augment: mirror and move the images of training and calibration at random; None for what suits the set
            (``cifar10`` alone).

    Raises:
        ValueError: an argument is unknown or out of range.
        FileNotFoundError: ``root`` does not hold the set.
        ConnectionError: the download failed.
    """
    source = {**locals(), "root": None if root is None else str(root), "download": False}
    check_choice("dataset", name, DATASETS)
    for parameter, value, least in (("image_size", image_size, 8), ("batch_size", batch_size, 2), ("limit", limit, 2)):
        if value is not None and value < least:
            raise ValueError(f"{parameter}={value!r}: it must be at least {least}")
    if name == "digits":
        images, labels, test_images, test_labels = load_digits(split_seed)
    elif name == "mnist":
        images, labels, test_images, test_labels = load_mnist(root, download)
    else:
        images, labels, test_images, test_labels = load_cifar10(root)
    recipe = _RECIPES[name]
    augment = recipe.augment if augment is None else augment
    sizes = {"validation": recipe.validation, "calibration": recipe.calibration}
    parts = split_indices(len(images), sizes, split_seed)

    def dataset(images: Tensor, labels: Tensor, augment: bool = False) -> ImageTensors:
        images = images[:limit] if images.dim() == 4 else images[:limit].unsqueeze(1)
        return ImageTensors(images, labels[:limit], image_size, recipe.mean, recipe.deviation, augment)

    def split(part: str, augment: bool = False) -> ImageTensors:
        return dataset(images[parts[part]], labels[parts[part]], augment)

    return DataBundle(
        name=name,
        train=make_loader(split("train", augment), batch_size, whole_batches=True, shuffle_seed=seed),
        calibration=make_loader(split("calibration", augment), batch_size, whole_batches=True),
        validation=make_loader(split("validation"), batch_size),
        test=make_loader(dataset(test_images, test_labels), batch_size),
        num_classes=int(labels.max()) + 1,
        image_size=image_size,
        source=source,
    )
