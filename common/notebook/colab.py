"""Where a notebook starts. On Google Colab: install what is missing, and copy results to a mounted Drive.

Colab brings versions of torch, torchvision and numpy that fit its GPU and each other. This module never installs them,
nor any package that is present in another version. It needs no package that Colab may lack.
"""

from __future__ import annotations

import contextlib
import glob
import json
import os
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

SUITE = Path(__file__).resolve().parents[2]
REQUIREMENTS = SUITE / "requirements.txt"
DRIVE = Path("/content/drive/MyDrive/low-rank-cnn")
PAUSE_S, PAUSE_COPIES = 60.0, 9.0
"""Minimum pause between two copies of a running search: in seconds, and as a multiple of the last copy's time."""
NEVER_INSTALLED = {"torch", "torchvision", "numpy", "jupyter"}
_told: set[tuple[Path, str]] = set()
"""Runs (log folder, name) for which the warning that they will be lost has been printed."""


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
    """Copy files to Google Drive, each atomically. Do nothing if no Drive is mounted.

    Runs write to the local disk, which is fast and supports ``fsync``. The local disk is lost with the session; the
    Drive stays.

    Args:
        files: paths. Missing files are left out. A file of the same name on the Drive is replaced if it is older.
        drive: a folder of the mounted Drive. It is created if it is missing.

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
    """On Colab without a Drive, print once for each run that it will be lost. Outside Colab, do nothing.

    The message names Drives that are mounted elsewhere.
    """
    place, key = Path(drive).parent, (Path(logs).absolute(), run)
    if "google.colab" not in sys.modules or key in _told or place.is_dir():
        return
    _told.add(key)
    others = ", ".join(map(str, _drives_elsewhere(place)))
    found = f"the one at {others} is not used" if others else "none is mounted"
    print(
        f"run {run!r} will be lost when this Colab session ends: there is no Drive at {place} ({found}); "
        f"call drive.mount({str(place.parent)!r}) of google.colab to save it",
        flush=True,
    )


def _drives_elsewhere(place: Path) -> list[Path]:
    """Return Drives mounted beside the mount point of ``place``, or in the folder above it."""
    folders = list(place.parents)[1:3]
    found = {path for folder in folders for name in ("MyDrive", "My Drive") for path in folder.glob(f"*/{name}")}
    return sorted(path for path in found if path.is_dir())


def copy_run(logs: str | Path, run: str, drive: str | Path = DRIVE) -> list[Path]:
    """Copy a run's log, study and networks to Drive, see :func:`copy_to_drive`; return the copies.

    On Colab without a Drive, one line for each run says that it will be lost.

    Warns:
        UserWarning: the files cannot be copied, e.g. because the Drive is full. The run goes on.
    """
    say_if_not_saved(logs, run, drive)
    try:
        return copy_to_drive(_files_of(Path(logs), run), drive)
    except OSError as error:
        warnings.warn(f"run {run!r} could not be copied to Drive: {error}", stacklevel=2)
        return []


def fetch_run(logs: str | Path, run: str, drive: str | Path = DRIVE) -> list[Path]:
    """Copy back from Drive the files of a run that ``logs`` lacks, so that the run can continue; return the copies."""
    folder, copies = Path(logs), []
    for saved in _files_of(Path(drive), run):
        if not (folder / saved.name).exists():
            with replacing(folder / saved.name) as partial:
                shutil.copy2(saved, partial)
            copies.append(folder / saved.name)
    return copies


def _files_of(folder: Path, run: str) -> list[Path]:
    """Return the run's log, checkpoint and networks, its workers' logs, and its journal.

    The journal comes last: a copy that stops halfway must not say more than the copied log and networks hold.
    """
    passing = (".lock", ".partial", ".part")
    own = re.compile(rf"{re.escape(run)}(-dense(-finetuned)?|-trial\d+(-refitted)?)?\.[^.]+")
    found = [p for p in folder.glob("*") if own.fullmatch(p.name) and p.suffix not in passing]
    found += (path for path in folder.glob(f"{glob.escape(run)}-*.log") if _is_workers(path, run))
    return sorted(found, key=lambda path: (path.suffix == ".journal", path))


def _is_workers(log: Path, study: str) -> bool:
    """Whether the first record of a log is by a worker on this study. Names of other runs may start alike."""
    with log.open(errors="replace") as file:
        first = next((line for line in file if line.startswith("TRIAL ")), "")
    return f'"study": {json.dumps(study, ensure_ascii=False)}' in first


class RunKeeper:
    """Copies a running search to Drive from time to time, see :func:`copy_run`."""

    def __init__(self, logs: str | Path, drive: str | Path = DRIVE) -> None:
        self._logs, self._drive, self._next = logs, drive, 0.0

    def keep(self, run: str, now: bool = False) -> None:
        """Copy what has changed if the last copy was long enough ago, or if ``now`` is true."""
        start = time.monotonic()
        if now or start >= self._next:
            copy_run(self._logs, run, self._drive)
            end = time.monotonic()
            self._next = end + max(PAUSE_S, PAUSE_COPIES * (end - start))

    def has_kept(self, run: str) -> bool:
        """Whether Drive has every file of the run as it is here; true without a Drive."""
        drive = Path(self._drive)
        return not drive.is_dir() or all(
            _is_copied(file, drive / file.name) for file in _files_of(Path(self._logs), run)
        )

    def forget(self, file: Path) -> None:
        """Remove a file of the run, here and on Drive."""
        file.unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            (Path(self._drive) / file.name).unlink(missing_ok=True)


def enter_suite(folder: str | Path | None = None) -> None:
    """Change to the folder where the notebook's paths start and imports look first. On Colab, install what is missing.

    Args:
        folder: None for the suite's own folder, or for the current one if the suite was installed as a wheel.
    """
    if "google.colab" in sys.modules:
        install_missing()
    os.chdir(folder or (SUITE if (SUITE / "notebooks").is_dir() else Path.cwd()))
    sys.path.insert(0, str(Path.cwd()))


def install_missing() -> None:
    """Install missing packages, and name them."""
    missing = missing_requirements(REQUIREMENTS.read_text().splitlines())
    if missing:
        with tempfile.NamedTemporaryFile("w", suffix=".txt") as constraints:
            constraints.write("\n".join(installed_versions(NEVER_INSTALLED)))
            constraints.flush()
            command = [sys.executable, "-m", "pip", "install", "-q", "-c", constraints.name, *missing]
            subprocess.run(command, check=True)
    print(f"installed {', '.join(missing)}" if missing else "nothing to install")
