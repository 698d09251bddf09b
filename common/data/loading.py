"""``load_data``: a data set by name."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from common.choices import check_choice
from common.data.bundle import DataBundle, ImageTensors, make_loader
from common.data.digits import load_digits
from common.data.mnist import load_mnist
from common.data.splits import split_indices

DATASETS = ("digits", "mnist")
_DEFAULT_SIZE = {"digits": 32, "mnist": 32}


def load_data(
    name: str,
    root: str | Path | None = None,
    image_size: int | None = None,
    *,
    batch_size: int = 128,
    seed: int = 0,
    limit: int | None = None,
    download: bool = False,
) -> DataBundle:
    """Load a data set and split it.

    Args:
        name: ``digits`` (1,797 images of 8x8 from scikit-learn, no files needed) or ``mnist``.
        root: the folder that holds the set, in torchvision's layout; not needed for ``digits``.
        image_size: images are resized to this height and width; None for the set's own default, 32.
        batch_size: of every loader.
        seed: fixes the splits and the order of training.
        limit: use at most this many images of each split, for quick tries.
        download: fetch the set into ``root`` when it is not there.

    Raises:
        ValueError: an argument is unknown or out of range.
        FileNotFoundError: ``root`` does not hold the set.
        ConnectionError: the download failed.
    """
    check_choice("dataset", name, DATASETS)
    image_size = _DEFAULT_SIZE[name] if image_size is None else image_size
    for parameter, value, least in (("image_size", image_size, 8), ("batch_size", batch_size, 2), ("limit", limit, 2)):
        if value is not None and value < least:
            raise ValueError(f"{parameter}={value!r}: it must be at least {least}")
    if name == "digits":
        images, labels, test_images, test_labels = load_digits(seed)
        mean, deviation, validation, calibration = 0.3053, 0.3760, 240, 160
    else:
        images, labels, test_images, test_labels = load_mnist(root, download)
        mean, deviation, validation, calibration = 0.1307, 0.3081, 5000, 2000

    parts = split_indices(len(images), {"validation": validation, "calibration": calibration}, seed)

    def dataset(images: Tensor, labels: Tensor) -> ImageTensors:
        return ImageTensors(images[:limit], labels[:limit], image_size, mean, deviation)

    splits = {part: dataset(images[index], labels[index]) for part, index in parts.items()}
    return DataBundle(
        name=name,
        train=make_loader(splits["train"], batch_size, shuffle_seed=seed),
        calibration=make_loader(splits["calibration"], batch_size),
        validation=make_loader(splits["validation"], batch_size),
        test=make_loader(dataset(test_images, test_labels), batch_size),
        num_classes=int(labels.max()) + 1,
        image_size=image_size,
    )
