"""``load_data``: a data set by name."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from common.data.bundle import DataBundle, make_bundle
from common.data.cifar10 import CLASSES as CIFAR10_CLASSES
from common.data.cifar10 import load_cifar10
from common.data.classification import tensor_splits
from common.data.digits import load_digits
from common.data.imagefolder import imagefolder_splits
from common.data.mnist import load_mnist
from common.data.normalization import CENTRED, IMAGENET, Normalization
from common.data.phantoms import phantoms_folder
from common.data.segmentation import coco_splits
from common.validation import check_choice

_TEN = tuple("0123456789")


@dataclass(frozen=True)
class _Recipe:
    """What is fixed for a data set: image size and augmentation unless told otherwise, its values' statistics."""

    normalization: Normalization
    image_size: int = 32
    augment: bool = False
    task: str = "classification"


@dataclass(frozen=True)
class _TensorRecipe(_Recipe):
    """For a set that is held in memory: the names of its classes and the sizes of the splits, too."""

    classes: tuple[str, ...] = _TEN
    validation: int = 5000
    calibration: int = 2000


_RECIPES = {
    "digits": _TensorRecipe(Normalization((0.3053,), (0.3760,)), validation=240, calibration=160),
    "mnist": _TensorRecipe(Normalization((0.1307,), (0.3081,))),
    "cifar10": _TensorRecipe(
        Normalization((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)), augment=True, classes=CIFAR10_CLASSES
    ),
    "imagefolder": _Recipe(IMAGENET, image_size=224, augment=True),
    "coco": _Recipe(CENTRED, image_size=128, augment=True, task="segmentation"),
    "phantoms": _Recipe(CENTRED, image_size=64, augment=True, task="segmentation"),
}
DATASETS = tuple(_RECIPES)
NORMALIZATIONS = ("dataset", "imagenet")
UNANNOTATED = ("keep", "drop")
MOST_WORKERS = 8


def load_data(
    name: str,
    root: str | Path | None = None,
    image_size: int | None = None,
    *,
    batch_size: int = 128,
    seed: int = 0,
    split_seed: int = 0,
    limit: int | None = None,
    download: bool = False,
    augment: bool | None = None,
    normalize: str = "dataset",
    unannotated: str = "keep",
    workers: int | None = None,
) -> DataBundle:
    """Load a data set and split it.

    Args:
        name: ``digits`` (1,797 images of 8x8 from scikit-learn), ``mnist``, ``cifar10`` or ``imagefolder``
            (ImageNet's layout) to classify; ``coco`` or ``phantoms`` (generated heads with lesions) to segment.
        root: the folder that holds the set. ``mnist``: torchvision's layout. ``cifar10``: torchvision's layout, or
            ``train/<class>/`` and ``test/<class>/``. ``imagefolder``: ``train/<class>/``, ``val/<class>/`` and, where
            half of ``val/`` is not to serve as test, ``test/<class>/``; every class needs an image in ``train/``.
            ``coco``: ``train/``, ``valid/`` (or ``val/``, ``validation/``) and ``test/``, each with its images and
            ``_annotations.coco.json``, or the official layout, ``annotations/instances_train2017.json`` and so on
            beside ``train2017/`` and others; where no part is for the test, half of validation serves. ``phantoms``:
            where to keep the generated files, by default the user's cache. ``digits`` needs none.
        image_size: images are resized to this height and width; None for what suits the set: 224 for
            ``imagefolder``, 128 for ``coco``, 64 for ``phantoms``, otherwise 32. ``imagefolder`` keeps the aspect
            ratio and cuts off what is over.
        batch_size: of every loader.
        seed: fixes the order of training.
        split_seed: fixes the splits, and what ``phantoms`` generates. It is apart from ``seed``, so that a network
            trained under one seed never meets its training images in the validation or test split of another.
        limit: use at most this many images of each split, for quick tries.
        download: fetch ``mnist`` or ``cifar10`` into ``root`` when it is not there.
        augment: vary the images of training and calibration at random; None for what suits the set (off for
            ``digits`` and ``mnist``).
        normalize: ``dataset`` (each set's own mean and deviation; ImageNet's for ``imagefolder``, 0.5 and 0.5 for
            ``coco`` and ``phantoms``) or ``imagenet``, for a network that starts from torchvision's weights.
        unannotated: what ``coco`` does with images that have no annotation: ``keep`` them, as images of nothing, or
            ``drop`` them, where they were not annotated though there is something to be seen.
        workers: processes that read and augment; None for as many as there are cores, 8 at most, with
            ``imagefolder``, and for none with the others, which are held in memory (``coco`` as one byte a pixel,
            channel and class).

    Raises:
        ValueError: an argument is unknown or out of range, or the set is damaged.
        FileNotFoundError: ``root`` does not hold the set.
        ConnectionError: the download failed.
    """
    source = {**locals(), "root": None if root is None else str(Path(root).resolve()), "download": False}
    check_choice("dataset", name, DATASETS)
    check_choice("normalize", normalize, NORMALIZATIONS)
    check_choice("unannotated", unannotated, UNANNOTATED)
    least = (
        ("image_size", image_size, 8),
        ("batch_size", batch_size, 2),
        ("limit", limit, 2),
        ("workers", workers, 0),
    )
    for parameter, value, smallest in least:
        if value is not None and value < smallest:
            raise ValueError(f"{parameter}={value!r}: it must be at least {smallest}")
    recipe = _RECIPES[name]
    size = recipe.image_size if image_size is None else image_size
    normalization = IMAGENET if normalize == "imagenet" else recipe.normalization
    augment = recipe.augment if augment is None else augment
    scale = "imagenet" if normalization == IMAGENET else "dataset"
    source |= {"image_size": size, "augment": augment, "normalize": scale}  # so that what is the same looks the same
    if isinstance(recipe, _TensorRecipe):
        splits = tensor_splits(
            name,
            _tensors(name, root, download, split_seed),
            {"validation": recipe.validation, "calibration": recipe.calibration},
            recipe.classes,
            size,
            normalization,
            augment=augment,
            split_seed=split_seed,
            limit=limit,
        )
    elif name == "imagefolder":
        splits = imagefolder_splits(root, size, normalization, augment=augment, split_seed=split_seed, limit=limit)
    else:
        folder = phantoms_folder(root, split_seed) if name == "phantoms" else _existing(root)
        splits = coco_splits(
            name,
            folder,
            size,
            normalization,
            augment=augment,
            split_seed=split_seed,
            limit=limit,
            unannotated=unannotated,
        )
    if workers is None:
        workers = min(MOST_WORKERS, _cores()) if name == "imagefolder" else 0
    return make_bundle(
        name,
        splits,
        image_size=size,
        normalization=normalization,
        task=recipe.task,
        batch_size=batch_size,
        seed=seed,
        workers=workers,
        source=source,
    )


def _cores() -> int:
    """Processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _existing(root: str | Path | None) -> Path:
    if root is None:
        raise ValueError("data_root=None: coco needs the folder that holds train/, valid/ and test/, or annotations/")
    return Path(root)


def _tensors(name: str, root: str | Path | None, download: bool, seed: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Images and labels to learn and choose from, then those of the test split."""
    if name == "digits":
        return load_digits(seed)
    return load_mnist(root, download) if name == "mnist" else load_cifar10(root, download)
