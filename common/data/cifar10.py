"""CIFAR-10 as class folders of small images."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from common.progress import track

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


def load_cifar10(root: str | Path | None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Images ``(N, 3, 32, 32)`` in uint8 and labels ``(N,)``: those of ``train/``, then those of ``test/``.

    Args:
        root: the folder that holds ``train/<class>/`` and ``test/<class>/`` with the ten class names of CIFAR-10.

    Raises:
        ValueError: ``root`` is None.
        FileNotFoundError: a class folder is missing or empty.
    """
    if root is None:
        raise ValueError("data_root=None: cifar10 needs the folder that holds train/<class>/ and test/<class>/")
    return (*_read(Path(root), "train"), *_read(Path(root), "test"))


def _read(root: Path, part: str) -> tuple[Tensor, Tensor]:
    files: list[tuple[Path, int]] = []
    for label, name in enumerate(CLASSES):
        found = sorted((root / part / name).glob("*.*"))
        if not found:
            raise FileNotFoundError(
                f"data_root={str(root)!r} does not hold CIFAR-10: {root / part / name} has no images"
            )
        files += [(path, label) for path in found]
    images = np.empty((len(files), 3, 32, 32), dtype=np.uint8)
    for index, (path, _) in enumerate(track(files, f"reading cifar10/{part}", unit="image")):
        with Image.open(path) as image:
            images[index] = np.asarray(image.convert("RGB").resize((32, 32))).transpose(2, 0, 1)
    return torch.from_numpy(images), torch.tensor([label for _, label in files])
