"""Sets that torchvision knows by the checksums of their files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from common.torchvision_compat import torchvision


def load_published(name: str, root: str | Path, files: str, download: bool) -> tuple[Any, Any]:
    """What torchvision makes of the set: its training images, then its test images.

    Args:
        name: of the class in ``torchvision.datasets``.
        root: the folder that holds, or is to hold, the set's own.
        files: that folder below ``root``.
        download: fetch the set when it is not there.

    Raises:
        FileNotFoundError: ``root`` does not hold the published files and ``download`` is off.
        ConnectionError: the download failed.
    """
    folder = Path(root)
    known = getattr(torchvision.datasets, name)
    try:
        return known(folder, train=True, download=download), known(folder, train=False, download=download)
    except RuntimeError as error:
        if not download:
            message = (
                f"data_root={str(root)!r} does not hold {name}: {folder / files} lacks its files, or they are altered"
            )
            raise FileNotFoundError(f"{message}; give the right folder, or allow the download") from error
        raise ConnectionError(f"{name} could not be downloaded to data_root={str(root)!r}: {error}") from error
    except OSError as error:  # URLError among them
        if not download:
            raise
        raise ConnectionError(f"{name} could not be downloaded to data_root={str(root)!r}: {error}") from error
