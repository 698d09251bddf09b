"""Google Colab: install what is missing, and copy results to a mounted Drive.

``python -m common.notebook.colab`` installs.

Colab brings torch, torchvision and numpy that fit its GPU and each other. They are never installed, and neither is
any package that is present in another version. This module imports nothing but the standard library.
"""

from __future__ import annotations

import contextlib
import glob
import json
import re
import shutil
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from common.files import replacing

REQUIREMENTS = Path(__file__).resolve().parents[2] / "requirements.txt"
DRIVE = Path("/content/drive/MyDrive/low-rank-cnn")
PAUSE_S, PAUSE_COPIES = 60.0, 9.0
"""Least time between two copies of a run in progress: in seconds, and in multiples of what the last copy took."""
NEVER_INSTALLED = {"torch", "torchvision", "numpy", "jupyter"}
_told: set[tuple[Path, str]] = set()
"""The runs, by log folder and name, whose loss has been announced."""


def missing_requirements(lines: Iterable[str]) -> list[str]:
    """Return the requirements (``name==version``) whose package is not installed in any version."""
    wanted = [line.split("#")[0].strip() for line in lines]
    return [
        requirement
        for requirement in filter(None, wanted)
        if (name := re.split(r"[^\w.-]", requirement)[0].lower()) not in NEVER_INSTALLED and not _is_installed(name)
    ]


def installed_versions(names: Iterable[str]) -> list[str]:
    """Return ``name==version`` of the installed packages, which pip must not change."""
    return [f"{name}=={version(name)}" for name in sorted(names) if _is_installed(name)]


def _is_installed(name: str) -> bool:
    try:
        version(name)
    except PackageNotFoundError:
        return False
    return True


def copy_to_drive(files: Iterable[str | Path], drive: str | Path = DRIVE) -> list[Path]:
    """Copy files to Google Drive, each whole or not at all; do nothing where no Drive is mounted.

    Runs write to the local disk, which is fast and knows ``fsync``. It ends with the session; the Drive stays.

    Args:
        files: the existing ones are copied. A file of the same name on the Drive is replaced unless it is as new.
        drive: a folder of the mounted Drive; it is created.

    Returns:
        The paths of the copies.
    """
    folder = Path(drive)
    if not folder.parent.is_dir():
        return []
    folder.mkdir(exist_ok=True)
    copies = []
    for file in map(Path, files):
        copy = folder / file.name
        if file.is_file() and not _is_copied(file, copy):
            with replacing(copy) as partial:
                shutil.copy2(file, partial)
            copies.append(copy)
    return copies


def _is_copied(file: Path, copy: Path) -> bool:
    """Whether the copy has the same size and is not older."""
    if not copy.is_file():
        return False
    here, there = file.stat(), copy.stat()
    return here.st_size == there.st_size and there.st_mtime_ns >= here.st_mtime_ns


def say_if_not_saved(logs: str | Path, run: str, drive: str | Path = DRIVE) -> None:
    """On Colab without a Drive, say once a run that it will be lost; name Drives that are mounted elsewhere.

    Outside Colab this does nothing.
    """
    place, key = Path(drive).parent, (Path(logs).absolute(), run)
    if "google.colab" not in sys.modules or key in _told or place.is_dir():
        return
    _told.add(key)
    others = ", ".join(map(str, _drives_elsewhere(place)))
    found = f"the one at {others} is not used" if others else "none is mounted"
    print(
        f"run {run!r} will be lost when this Colab session ends: there is no Drive at {place} ({found}); "
        f"drive.mount({str(place.parent)!r}) of google.colab saves it from then on",
        flush=True,
    )


def _drives_elsewhere(place: Path) -> list[Path]:
    """Return Drives mounted beside the mount point of ``place``, or in the folder above it."""
    folders = list(place.parents)[1:3]
    found = {path for folder in folders for name in ("MyDrive", "My Drive") for path in folder.glob(f"*/{name}")}
    return sorted(path for path in found if path.is_dir())


def copy_run(logs: str | Path, run: str, drive: str | Path = DRIVE) -> list[Path]:
    """Copy a run's log, study and networks to Drive, see :func:`copy_to_drive`; return the copies.

    A full or missing Drive does not end the run: it gives a warning and no copies. On Colab without a Drive, one line
    a run says that it will be lost.
    """
    say_if_not_saved(logs, run, drive)
    try:
        return copy_to_drive(_files_of(Path(logs), run), drive)
    except OSError as error:
        warnings.warn(f"run {run!r} could not be copied to Drive: {error}", stacklevel=2)
        return []


def fetch_run(logs: str | Path, run: str, drive: str | Path = DRIVE) -> list[Path]:
    """Copy a run's files that ``logs`` lacks back from Drive, so that it can continue; return the copies."""
    folder, copies = Path(logs), []
    for saved in _files_of(Path(drive), run):
        if not (folder / saved.name).exists():
            with replacing(folder / saved.name) as partial:
                shutil.copy2(saved, partial)
            copies.append(folder / saved.name)
    return copies


def _files_of(folder: Path, run: str) -> list[Path]:
    """Return the run's log, journal, checkpoint and networks, and its workers' logs."""
    passing = (".lock", ".partial", ".part")
    own = re.compile(rf"{re.escape(run)}(-dense|-trial\d+)?\.[^.]+")
    found = [p for p in folder.glob("*") if own.fullmatch(p.name) and p.suffix not in passing]
    return sorted([*found, *(p for p in folder.glob(f"{glob.escape(run)}-*.log") if _is_workers(p, run))])


def _is_workers(log: Path, study: str) -> bool:
    """Whether a log is that of a worker on this study, by its first record; other runs' names may begin alike."""
    with log.open(errors="replace") as file:
        first = next((line for line in file if line.startswith("TRIAL ")), "")
    return f'"study": {json.dumps(study, ensure_ascii=False)}' in first


class RunKeeper:
    """Copies a run to Drive from time to time while it goes on, see :func:`copy_run`."""

    def __init__(self, logs: str | Path, drive: str | Path = DRIVE) -> None:
        self._logs, self._drive, self._next = logs, drive, 0.0

    def keep(self, run: str, now: bool = False) -> None:
        """Copy what has changed if the last copy is long enough ago, or with ``now`` in any case."""
        start = time.monotonic()
        if now or start >= self._next:
            copy_run(self._logs, run, self._drive)
            end = time.monotonic()
            self._next = end + max(PAUSE_S, PAUSE_COPIES * (end - start))

    def forget(self, file: Path) -> None:
        """Remove a file of the run here and on Drive, once it is no longer needed."""
        file.unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            (Path(self._drive) / file.name).unlink(missing_ok=True)


def main() -> None:
    """Install missing packages, and name them."""
    missing = missing_requirements(REQUIREMENTS.read_text().splitlines())
    if missing:
        with tempfile.NamedTemporaryFile("w", suffix=".txt") as constraints:
            constraints.write("\n".join(installed_versions(NEVER_INSTALLED)))
            constraints.flush()
            command = [sys.executable, "-m", "pip", "install", "-q", "-c", constraints.name, *missing]
            subprocess.run(command, check=True)
    print(f"installed {', '.join(missing)}" if missing else "nothing to install")


if __name__ == "__main__":
    main()
