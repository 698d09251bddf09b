"""MNIST in its published files, in torchvision's layout: ``MNIST/raw`` below the root folder."""

from __future__ import annotations

import math
import struct
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from common.data.batching import Splits
from common.data.image_tensors import SplitSizes, tensor_splits
from common.data.normalization import Normalization
from common.data.published import download_published, wrong_kind
from common.data.registry import DATASETS, DataSet, ReadSettings, root_of
from common.files import read_bounded

RAW = Path("MNIST") / "raw"
PARTS = ("train", "t10k")
IMAGES, LABELS = 2051, 2049
"""First number in a file of images and in a file of labels. Its last byte is the number of axes."""
CLASSES = tuple("0123456789")
MOST_BYTES = 2**28
"""Maximum size of a file. The largest that is published has 47 MB."""


def load_mnist(root: str | Path, download: bool) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return images ``(N, 28, 28)`` in uint8 and labels ``(N,)``: 60,000 of training, then 10,000 of the test split.

    Raises:
        ValueError: a file is damaged or of another kind.
        FileNotFoundError: ``root`` does not hold the data set and ``download`` is off.
        ConnectionError: the download failed.
    """
    folder = Path(root) / RAW
    files = [folder / f"{part}-{kind}-ubyte" for part in PARTS for kind in ("images-idx3", "labels-idx1")]
    missing = [path for path in files if not path.is_file()]
    if missing and download:
        download_published("MNIST", root)
    elif missing:
        packed = [path for path in missing if path.with_name(f"{path.name}.gz").is_file()]
        advice = f"; unpack {packed[0].name}.gz" if packed else "; give the right folder, or allow the download"
        names = ", ".join(path.name for path in missing)
        raise FileNotFoundError(f"data_root={str(root)!r} does not hold MNIST: {folder} lacks {names}{advice}")
    train, test = _read_part(*files[:2]), _read_part(*files[2:])
    return *train, *test


def _read_part(image_file: Path, label_file: Path) -> tuple[Tensor, Tensor]:
    """Read images and labels of one split."""
    images, labels = _read_idx(image_file, IMAGES), _read_idx(label_file, LABELS)
    if len(images) != len(labels):
        raise ValueError(
            f"{image_file} holds {len(images)} images and {label_file.name} {len(labels)} labels; the numbers must be "
            "equal"
        )
    if labels.max() >= len(CLASSES):
        raise ValueError(f"{label_file} holds the label {labels.max()}; MNIST's are 0 to {len(CLASSES) - 1}")
    return torch.from_numpy(images), torch.from_numpy(labels).long()


def _read_idx(path: Path, magic: int) -> np.ndarray:
    """Read the array in a file in MNIST's format: a magic number, the sizes of the axes, then a byte per element.

    Raises:
        ValueError: the file is of another kind, or is incomplete.
    """
    content = read_bounded(path, MOST_BYTES)
    if kind := wrong_kind(content):
        raise ValueError(f"{path} {kind}; unpack it or download it again")
    wanted, other = ("images", "labels") if magic == IMAGES else ("labels", "images")
    if content[:4] == struct.pack(">I", IMAGES + LABELS - magic):
        raise ValueError(f"{path} holds {other}; it must hold {wanted}")
    header = struct.Struct(f">{magic % 256 + 1}I")
    if len(content) < header.size or content[:4] != struct.pack(">I", magic):
        raise ValueError(f"{path} is not a file of MNIST; it must hold {wanted}")
    shape = header.unpack_from(content)[1:]
    size = header.size + math.prod(shape)
    if len(content) != size:
        raise ValueError(f"{path} has {len(content):,} bytes; by its header {shape} it must have {size:,}")
    if size == header.size:
        raise ValueError(f"{path} holds no {wanted}")
    return np.frombuffer(bytearray(content), dtype=np.uint8, offset=header.size).reshape(shape)


def read(settings: ReadSettings) -> Splits:
    """Read MNIST."""
    return tensor_splits("mnist", load_mnist(root_of(settings), settings.download), CLASSES, SplitSizes(), settings)


DATASETS.add(
    DataSet(
        "mnist",
        "70,000 handwritten digits, 28 x 28",
        read,
        Normalization((0.1307,), (0.3081,)),
        layout="MNIST/raw (or a folder to download it to)",
        downloads=True,
    )
)
