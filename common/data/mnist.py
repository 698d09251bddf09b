"""MNIST through torchvision."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from common.torchvision_compat import torchvision


def load_mnist(root: str | Path | None, download: bool) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Images ``(N, 28, 28)`` in uint8 and labels ``(N,)``: the 60,000 of training, then the 10,000 of the test split.

    Raises:
        ValueError: ``root`` is None.
        FileNotFoundError: ``root`` does not hold the set and ``download`` is off.
        ConnectionError: the download failed.
    """
    if root is None:
        raise ValueError("data_root=None: mnist needs the folder that holds MNIST/raw (or a folder to download it to)")
    folder = Path(root)
    try:
        train, test = (torchvision.datasets.MNIST(folder, train=part, download=download) for part in (True, False))
    except RuntimeError as error:
        if not download:
            message = f"data_root={str(root)!r} does not hold MNIST: {folder / 'MNIST' / 'raw'} lacks its files"
            raise FileNotFoundError(f"{message}; give the right folder, or allow the download") from error
        raise ConnectionError(f"MNIST could not be downloaded to data_root={str(root)!r}: {error}") from error
    except OSError as error:  # URLError among them
        if not download:
            raise
        raise ConnectionError(f"MNIST could not be downloaded to data_root={str(root)!r}: {error}") from error
    return train.data, train.targets, test.data, test.targets
