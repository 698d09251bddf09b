"""Google Colab: install what is missing there, and keep results on a mounted Drive.

``python -m common.notebook.colab`` installs.

Colab brings torch, torchvision and numpy that fit its GPU and each other; those are never installed, and neither is
any package that is there already in another version. Nothing but the standard library is imported here.
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
"""Between two copies of a run that goes on: so many seconds, and so many times as long as the last copy took."""
NEVER_INSTALLED = {"torch", "torchvision", "numpy", "jupyter"}
_told: set[tuple[Path, str]] = set()
"""The runs, by the folder of their logs and their name, of which it was said that nothing of them is kept."""


def missing_requirements(lines: Iterable[str]) -> list[str]:
    """The requirements (``name==version``) whose package is not installed in any version."""
    wanted = [line.split("#")[0].strip() for line in lines]
    return [
        requirement
        for requirement in filter(None, wanted)
        if (name := re.split(r"[^\w.-]", requirement)[0].lower()) not in NEVER_INSTALLED and not _is_installed(name)
    ]


def installed_versions(names: Iterable[str]) -> list[str]:
    """``name==version`` of those that are installed: what pip must leave as it is."""
    return [f"{name}=={version(name)}" for name in sorted(names) if _is_installed(name)]


def _is_installed(name: str) -> bool:
    try:
        version(name)
    except PackageNotFoundError:
        return False
    return True


def keep_on_drive(files: Iterable[str | Path], drive: str | Path = DRIVE) -> list[Path]:
    """Copy files to Google Drive, each under its own name and whole or not at all; nothing where no Drive is mounted.

    Runs write to the local disk, which is fast and knows ``fsync``; it is gone with the session, the Drive is not.

    Args:
        files: those that are there are copied, over what the Drive holds of the same name, unless that is as new.
        drive: a folder of the mounted Drive; it is made.

    Returns:
        The copies.
    """
    folder = Path(drive)
    if not folder.parent.is_dir():
        return []
    folder.mkdir(exist_ok=True)
    copies = []
    for file in map(Path, files):
        copy = folder / file.name
        if file.is_file() and not _is_kept(file, copy):
            with replacing(copy) as partial:
                shutil.copy2(file, partial)
            copies.append(copy)
    return copies


def _is_kept(file: Path, copy: Path) -> bool:
    """Whether the copy is as large, and not older."""
    if not copy.is_file():
        return False
    here, there = file.stat(), copy.stat()
    return here.st_size == there.st_size and there.st_mtime_ns >= here.st_mtime_ns


def say_if_not_kept(logs: str | Path, run: str, drive: str | Path = DRIVE) -> None:
    """On Colab without a Drive, print one line, once for each run: nothing of it is kept when the session ends.

    Drives that are mounted elsewhere are named. Anywhere but on Colab this does nothing.
    """
    place, key = Path(drive).parent, (Path(logs).absolute(), run)
    if "google.colab" not in sys.modules or key in _told or place.is_dir():
        return
    _told.add(key)
    others = ", ".join(map(str, _drives_elsewhere(place)))
    found = f"the one at {others} is not used" if others else "none is mounted"
    print(
        f"run {run!r} is not kept when this Colab session ends: there is no Drive at {place} ({found}); "
        f"drive.mount({str(place.parent)!r}) of google.colab makes it kept from then on",
        flush=True,
    )


def _drives_elsewhere(place: Path) -> list[Path]:
    """Drives that are mounted, but not at ``place``: in the folder of its mount point and in the one above it."""
    folders = list(place.parents)[1:3]
    found = {path for folder in folders for name in ("MyDrive", "My Drive") for path in folder.glob(f"*/{name}")}
    return sorted(path for path in found if path.is_dir())


def keep_run(logs: str | Path, run: str, drive: str | Path = DRIVE) -> list[Path]:
    """Keep the log of a run on Drive, its study and its networks; see :func:`keep_on_drive`.

    A Drive that is full or gone does not end the run: there is a warning, and nothing is returned. On Colab without a
    Drive one line says, once for each run, that nothing is kept.
    """
    say_if_not_kept(logs, run, drive)
    try:
        return keep_on_drive(_files_of(Path(logs), run), drive)
    except OSError as error:
        warnings.warn(f"run {run!r} could not be kept on Drive: {error}", stacklevel=2)
        return []


def fetch_run(logs: str | Path, run: str, drive: str | Path = DRIVE) -> list[Path]:
    """Copy back what Drive holds of a run and ``logs`` does not, so that it can go on; returns the copies."""
    folder, copies = Path(logs), []
    for kept in _files_of(Path(drive), run):
        if not (folder / kept.name).exists():
            with replacing(folder / kept.name) as partial:
                shutil.copy2(kept, partial)
            copies.append(folder / kept.name)
    return copies


def _files_of(folder: Path, run: str) -> list[Path]:
    """The run's log, journal and checkpoint, its dense network, those of its trials, and its workers' logs."""
    passing = (".lock", ".partial", ".part")
    own = re.compile(rf"{re.escape(run)}(-dense|-trial\d+)?\.[^.]+")
    found = [p for p in folder.glob("*") if own.fullmatch(p.name) and p.suffix not in passing]
    return sorted([*found, *(p for p in folder.glob(f"{glob.escape(run)}-*.log") if _is_workers(p, run))])


def _is_workers(log: Path, study: str) -> bool:
    """Whether a log is that of a worker on a study, not of a run whose name begins alike; its first record tells."""
    with log.open(errors="replace") as file:
        first = next((line for line in file if line.startswith("TRIAL ")), "")
    return f'"study": {json.dumps(study, ensure_ascii=False)}' in first


class RunKeeper:
    """Keeps a run on Drive while it goes on, once in a while; on Colab without one it says, once, that it cannot."""

    def __init__(self, logs: str | Path, drive: str | Path = DRIVE) -> None:
        self._logs, self._drive, self._next = logs, drive, 0.0

    def keep(self, run: str, now: bool = False) -> None:
        """Copy what has changed, when the last copy is long enough ago, or in any case with ``now``."""
        start = time.monotonic()
        if now or start >= self._next:
            keep_run(self._logs, run, self._drive)
            end = time.monotonic()
            self._next = end + max(PAUSE_S, PAUSE_COPIES * (end - start))

    def forget(self, file: Path) -> None:
        """Remove a file of the run that is no longer needed, here and on Drive."""
        file.unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            (Path(self._drive) / file.name).unlink(missing_ok=True)


def main() -> None:
    """Install what is missing, and say what that was."""
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
