"""Set-up on Google Colab: ``python -m common.colab`` installs the requirements that are missing there.

Colab brings torch, torchvision and numpy that fit its GPU and each other; those are never installed, and neither is
any package that is there already in another version. This module imports nothing but the standard library.
"""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

REQUIREMENTS = Path(__file__).resolve().parent.parent / "requirements.txt"
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


def main() -> None:
    """Install what is missing, and say what that was."""
    missing = missing_requirements(REQUIREMENTS.read_text().splitlines())
    if missing:
        subprocess.run([sys.executable, "-m", "pip", "install", "-q", *missing], check=True)
    print(f"installed {', '.join(missing)}" if missing else "nothing to install")


if __name__ == "__main__":
    main()
