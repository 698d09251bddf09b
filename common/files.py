"""Check that folders are writable, read files of bounded size, and replace files atomically."""

from __future__ import annotations

import errno
import os
import re
import shutil
import stat
import tempfile
import time
import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

LONGEST_NAME = 200
"""Maximum length of a name in bytes. File systems allow 255, and suffixes follow."""
ABANDONED_S = 3600.0
"""What a dead process left half-written is removed after this many seconds: the process may run on another machine."""


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


def is_file(path: str | Path) -> bool:
    """Whether there is such a file. A name that no file can have, such as one that is too long, raises nothing."""
    return os.path.isfile(path)  # noqa: PTH113 - Path.is_file() raises an OSError


def is_folder(path: str | Path) -> bool:
    """Whether there is such a folder, as :func:`is_file`."""
    return os.path.isdir(path)  # noqa: PTH112 - Path.is_dir() raises an OSError


def check_name(parameter: str, name: str) -> None:
    """Raise unless a file in a folder can have this name, with a suffix.

    Raises:
        ValueError: ``name`` is empty, too long, has control characters or names a place elsewhere.
    """
    if (
        not name
        or name != Path(name).name
        or name in {".", ".."}
        or any(unicodedata.category(character) == "Cc" for character in name)
        or len(name.encode(errors="replace")) > LONGEST_NAME
    ):
        raise ValueError(
            f"{parameter}={name!r} cannot name a file; use up to {LONGEST_NAME} letters, digits, '-' and '_'"
        )


def check_regular(path: str | Path, name: str) -> None:
    """Raise unless ``path`` is missing or a regular file, so that nothing is written through a link that others made.

    Args:
        path: file to be written in place. Its folder may be a link; the file may not.
        name: how the error message names the file.

    Raises:
        ValueError: ``path`` is a link, a pipe, a folder or a device.
    """
    try:
        mode = Path(path).lstat().st_mode
    except FileNotFoundError:
        return
    if stat.S_ISLNK(mode):
        raise ValueError(
            f"{name} {path} is a link to another file, which is not written to; name that file, or copy it"
        )
    if not stat.S_ISREG(mode):
        raise ValueError(f"{name} {path} is no regular file; remove it or give another name")


def write_whole(path: str | Path, content: bytes) -> None:
    """Write a file by `replacing`, so that a reader sees the old content or the whole new one."""
    with replacing(path) as partial:
        partial.write_bytes(content)


def read_bounded(path: str | Path, most: int) -> bytes:
    """Return the content of a regular file that others made. It may claim any size without taking any disk.

    Args:
        path: the file.
        most: maximum size, in bytes.

    Raises:
        OSError: the file is missing or cannot be read.
        ValueError: the file is larger.
    """
    with Path(path).open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        if size > most:
            raise ValueError(f"{path} is larger than {most:,} bytes")
        return file.read(size)


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """Replace ``path`` at the end of the ``with`` block by the file that the block writes.

    A reader sees either the old file or the whole new one. If the block fails, the old file stays. If ``path`` is a
    link, the link is replaced; the file that it names stays.

    Args:
        path: destination path. Missing folders are created.

    Yields:
        The path to write to, in a folder beside ``path`` that is removed at the end.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    _remove_abandoned(path)
    folder = path.with_name(f".{path.name}.{os.getpid()}.partial")
    _remove(folder)  # a dead process with this number left it, or another program made it a link
    folder.mkdir()
    partial = folder / path.name
    try:
        yield partial
        with partial.open("rb") as file:
            os.fsync(file.fileno())  # else a machine that loses power may keep the new name but not the content
        partial.replace(path)
    finally:
        _remove(folder)


def _remove_abandoned(path: Path) -> None:
    """Remove what processes that were killed left of ``path``, so that many kills do not fill the disk."""
    pattern = re.compile(re.escape(f".{path.name}.") + r"(\d+)\.partial")
    with os.scandir(path.parent) as entries:
        left = [(entry, int(match[1])) for entry in entries if (match := pattern.fullmatch(entry.name))]
    for entry, process in left:
        age = time.time() - entry.stat(follow_symlinks=False).st_mtime
        if age > ABANDONED_S and not psutil.pid_exists(process):
            _remove(Path(entry.path))


def _remove(path: Path) -> None:
    """Remove a folder with its files, or a file or link, if it exists."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
