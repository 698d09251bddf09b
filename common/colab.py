"""Google Colab: ``python -m common.colab`` installs what is missing there, and results are kept on a mounted Drive.

Colab brings torch, torchvision and numpy that fit its GPU and each other; those are never installed, and neither is
any package that is there already in another version. This module imports nothing but the standard library.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

REQUIREMENTS = Path(__file__).resolve().parent.parent / "requirements.txt"
DRIVE = Path("/content/drive/MyDrive/low-rank-cnn")
NEVER_INSTALLED = {"torch", "torchvision", "numpy", "jupyter"}


def missing_requirements(lines: Iterable[str]) -> list[str]:
    """The requirements (``name==version``) whose package is not installed in any version."""
    wanted = [line.split("#")[0].strip() for line in lines]
    return [
        requirement
        for requirement in filter(None, wanted)
        if (name := re.split(r"[^\w.-]", requirement)[0].lower()) not in NEVER_INSTALLED and not _is_installed(name)
    ]


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
        files: those that are there are copied, over what the Drive holds of the same name.
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
        if file.is_file():
            part = folder / f".{file.name}.part"
            shutil.copy2(file, part)
            copies.append(part.replace(folder / file.name))
    return copies


def main() -> None:
    """Install what is missing, and say what that was."""
    missing = missing_requirements(REQUIREMENTS.read_text().splitlines())
    if missing:
        subprocess.run([sys.executable, "-m", "pip", "install", "-q", *missing], check=True)
    print(f"installed {', '.join(missing)}" if missing else "nothing to install")


if __name__ == "__main__":
    main()
