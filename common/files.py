"""Check that folders are writable, and replace files atomically."""

from __future__ import annotations

import errno
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def check_writable(folder: str | Path, name: str = "logs") -> Path:
    """Create a folder if it is missing, and check that a file can be written in it.

    Args:
        folder: folder for files to be written later.
        name: name of the parameter in the error message.

    Returns:
        The folder.

    Raises:
        ValueError: ``folder`` is a file, cannot be created or is not writable.
    """
    path = Path(folder)
    try:
        path.mkdir(parents=True, exist_ok=True)
        if not os.access(path, os.W_OK | os.X_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        with tempfile.TemporaryFile(dir=path):
            pass
    except FileExistsError:
        raise ValueError(f"{name}={str(folder)!r} must be a folder, but there is a file of that name") from None
    except OSError as error:
        reason = error.strerror or str(error)
        raise ValueError(f"{name}={str(folder)!r}: nothing can be written in this folder: {reason}") from None
    return path


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """Replace ``path`` at the end of the ``with`` block by the file that the block writes.

    A reader sees either the old file or the whole new one. If the block fails, the old file stays.

    Args:
        path: destination path. Missing folders are created.

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
