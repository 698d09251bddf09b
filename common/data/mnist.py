"""MNIST through torchvision."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from common.data.published import load_published


def load_mnist(root: str | Path | None, download: bool) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Images ``(N, 28, 28)`` in uint8 and labels ``(N,)``: the 60,000 of training, then the 10,000 of the test split.

    Raises:
        ValueError: ``root`` is None.
        FileNotFoundError: ``root`` does not hold the set and ``download`` is off.
        ConnectionError: the download failed.
    """
    if root is None:
        raise ValueError("data_root=None: mnist needs the folder that holds MNIST/raw (or a folder to download it to)")
    train, test = load_published("MNIST", root, "MNIST/raw", download)
    return train.data, train.targets, test.data, test.targets
