"""Files and folders: whether they can be written, and writing them whole or not at all."""

from __future__ import annotations

import errno
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def check_writable(folder: str | Path, name: str = "logs") -> Path:
    """The folder, made when it is not there, once a file was written there and removed.

    Args:
        folder: where something is to be written later.
        name: of the parameter, for the sentence.

    Raises:
        ValueError: it is a file, cannot be made, or cannot be written in.
    """
    path = Path(folder)
    try:
        path.mkdir(parents=True, exist_ok=True)
        if not os.access(path, os.W_OK | os.X_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        with tempfile.TemporaryFile(dir=path):
            pass
    except FileExistsError:
        raise ValueError(f"{name}={str(folder)!r} must be a folder, and there is a file of that name") from None
    except OSError as error:
        reason = error.strerror or str(error)
        raise ValueError(f"{name}={str(folder)!r}: nothing can be written in this folder: {reason}") from None
    return path


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """A file to write in the ``with`` block, which takes the place of ``path`` at its end.

    A reader sees the old file or the new one, never a part of it. When the block fails, the old one stays.

    Args:
        path: Destination path; its folder is made when it is not there.

    Yields:
        The path to write to, in the same folder.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        yield partial
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
