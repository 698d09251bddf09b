"""CIFAR-10 in its published files, in torchvision's layout, or as class folders of small images."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from common.data.batching import Splits
from common.data.image_tensors import SplitSizes, tensor_splits
from common.data.images import IMAGE_KINDS, open_image
from common.data.normalization import Normalization
from common.data.published import load_published
from common.data.registry import DATASETS, DataSet, ReadSettings, root_of
from common.progress import track

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
PUBLISHED = "cifar-10-batches-py"


def load_cifar10(root: str | Path, download: bool) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return images ``(N, 3, 32, 32)`` in uint8 and labels ``(N,)``: those of training, then those of the test split.

    The published files are Python pickles. torchvision opens them only if their checksums are the ones it knows, so
    that no other pickle is ever loaded.

    Args:
        root: the folder that holds ``cifar-10-batches-py/``, which is preferred, or ``train/<class>/`` and
            ``test/<class>/`` with the ten class names of CIFAR-10.
        download: whether to download the published files into ``root`` if neither is there.

    Raises:
        ValueError: an image of a class folder is broken.
        FileNotFoundError: ``root`` holds neither, a published file is altered, or a class folder is missing or empty.
        ConnectionError: the download failed.
    """
    folder = Path(root)
    if (folder / PUBLISHED).is_dir() or (download and not (folder / "train").is_dir()):
        train, test = load_published("CIFAR10", folder, PUBLISHED, download)
        return (*_tensors(train.data, train.targets), *_tensors(test.data, test.targets))
    return (*_read_folders(folder, "train"), *_read_folders(folder, "test"))


def _tensors(images: np.ndarray, labels: list[int]) -> tuple[Tensor, Tensor]:
    """Convert torchvision's arrays ``(N, 32, 32, 3)``."""
    return torch.from_numpy(images).permute(0, 3, 1, 2).contiguous(), torch.tensor(labels)


def _read_folders(root: Path, part: str) -> tuple[Tensor, Tensor]:
    """Read the class folders of one part."""
    files: list[tuple[Path, int]] = []
    for label, name in enumerate(CLASSES):
        found = sorted(path for path in (root / part / name).glob("*.*") if path.suffix.lower() in IMAGE_KINDS)
        if not found:
            packed = root / "cifar-10-python.tar.gz"
            advice = f"; unpack {packed.name}" if packed.is_file() else ""
            raise FileNotFoundError(
                f"data_root={str(root)!r} does not hold CIFAR-10: there is no {PUBLISHED}/, and "
                f"{root / part / name} has no images{advice}"
            )
        files += [(path, label) for path in found]
    images = np.empty((len(files), 3, 32, 32), dtype=np.uint8)
    for index, (path, _) in enumerate(track(files, f"reading cifar10/{part}", unit="image")):
        try:
            image = open_image(path)
        except OSError as error:
            raise ValueError(f"cifar10: {error}") from error
        images[index] = np.asarray(image.convert("RGB").resize((32, 32))).transpose(2, 0, 1)
    return torch.from_numpy(images), torch.tensor([label for _, label in files])


def read(settings: ReadSettings) -> Splits:
    """Read CIFAR-10."""
    tensors = load_cifar10(root_of(settings), settings.download)
    return tensor_splits("cifar10", tensors, CLASSES, SplitSizes(), settings)


DATASETS.add(
    DataSet(
        "cifar10",
        "60,000 photographs of ten classes, 32 x 32",
        read,
        Normalization((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
        augment=True,
        layout=f"{PUBLISHED}/, or train/<class>/ and test/<class>/",
        downloads=True,
    )
)
