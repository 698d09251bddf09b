"""Published data sets, whose files torchvision checks by their checksums."""

from __future__ import annotations

from pathlib import Path
from typing import Any

MOST_BYTES = 2**28
"""Maximum size of a file. The largest that is published has 31 MB."""
GZIP, ZIP = b"\x1f\x8b", b"PK\x03\x04"


def load_published(name: str, root: str | Path, files: str, download: bool) -> tuple[Any, Any]:
    """Return torchvision's data sets of training and test images.

    Args:
        name: name of the class in ``torchvision.datasets``.
        root: parent of the data set's folder.
        files: name of the data set's folder in ``root``.
        download: whether to download the data set if it is missing.

    Raises:
        FileNotFoundError: ``root`` does not hold the published files and ``download`` is off.
        ConnectionError: the download failed.
    """
    if download:
        return download_published(name, root)
    folder, known = Path(root), _known(name)
    try:
        if any(_is_huge(folder / files / name) for name, _ in _listed(known)):
            raise RuntimeError  # its checksum would take hours
        return known(folder, train=True), known(folder, train=False)
    except RuntimeError as error:
        folder = folder / files
        found = _differences(known, folder)
        message = f"data_root={str(root)!r} does not hold {name}: files in {folder} are missing or altered{found}"
        raise FileNotFoundError(f"{message}; give the right folder, or allow the download") from error


def download_published(name: str, root: str | Path) -> tuple[Any, Any]:
    """Return the same data sets. If their files are missing, download them.

    Raises:
        ConnectionError: the download failed.
    """
    folder, known = Path(root), _known(name)
    try:
        return known(folder, train=True, download=True), known(folder, train=False, download=True)
    except (RuntimeError, OSError) as error:  # URLError among them
        raise ConnectionError(f"{name} could not be downloaded to data_root={str(root)!r}: {error}") from error


def _known(name: str) -> Any:
    """Return the class in ``torchvision.datasets``."""
    from common.torchvision_compat import torchvision

    return getattr(torchvision.datasets, name)


def _listed(known: Any) -> list[tuple[str, str]]:
    """Return the name and the checksum of each file of a data set."""
    return [*known.train_list, *known.test_list, (known.meta["filename"], known.meta["md5"])]


def _is_huge(path: Path) -> bool:
    return path.is_file() and path.stat().st_size > MOST_BYTES


def _differences(known: Any, folder: Path) -> str:
    """Name the files that are missing or whose checksums differ from those in torchvision."""
    from common.torchvision_compat import torchvision

    listed = _listed(known)
    missing = [name for name, _ in listed if not (folder / name).is_file()]
    altered = [
        f"{name} {_kind_of(folder / name) or 'has another checksum'}"
        for name, checksum in listed
        if name not in missing
        and (_is_huge(folder / name) or not torchvision.datasets.utils.check_integrity(folder / name, checksum))
    ]
    reasons = [*([f"missing: {', '.join(missing)}"] if missing else []), *altered]
    return f" ({'; '.join(reasons)})" if reasons else ""


def _kind_of(path: Path) -> str:
    """Say what a file holds, see `wrong_kind`. Only its beginning is read."""
    with path.open("rb") as file:
        return wrong_kind(file.read(1024))


def wrong_kind(content: bytes) -> str:
    """Say what a file holds in place of the published content; empty if that is not recognised."""
    start = content[:1024].lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if not content:
        return "is empty"
    if content.startswith(GZIP):
        return "is still packed by gzip"
    if content.startswith(ZIP):
        return "is a zip archive"
    if start.startswith((b"<!doctype", b"<html", b"<?xml", b"<head", b"<body", b"<!--")):
        return "is a web page"
    return ""
