from __future__ import annotations

from pathlib import Path

import pytest

from tests.scripts.running import FAKE_TORCH


@pytest.fixture
def workplace(tmp_path: Path) -> Path:
    """A working folder in which importing torch fails and leaves a mark."""
    for name in ("torch", "torchvision"):
        (tmp_path / "fake" / name).mkdir(parents=True)
        (tmp_path / "fake" / name / "__init__.py").write_text(FAKE_TORCH)
    return tmp_path
