"""Run the scripts without torch."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from common.trials import TrialWriter
from tests.records import make_record

ROOT = Path(__file__).parents[2]


FAKE_TORCH = """
import os, pathlib
pathlib.Path(os.environ["TORCH_WAS_IMPORTED"]).touch()
raise ImportError("no torch here")
"""


def run(workplace: Path, script: str, *arguments: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
    mark = workplace / "torch-was-imported"
    result = subprocess.run(
        [sys.executable, "-W", "error", script if script == "-c" else str(ROOT / script), *map(str, arguments)],
        cwd=workplace,
        env={
            **os.environ,
            "PYTHONPATH": os.pathsep.join([str(workplace / "fake"), str(ROOT)]),
            "TORCH_WAS_IMPORTED": str(mark),
            "PYTHONIOENCODING": "utf-8",
            **environment,
        },
        capture_output=True,
        encoding="utf-8",
        check=False,
    )
    assert not mark.exists(), "torch was imported"
    assert "Traceback" not in result.stderr
    return result


def write(folder: Path, name: str, *changes: dict[str, Any]) -> Path:
    with TrialWriter(folder, name) as writer:
        for number, change in enumerate(changes):
            writer.write(make_record(run=name, **{"trial": number, **change}))
    return writer.path


def strict(path: Path) -> Any:
    return json.loads(path.read_bytes(), parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))


def workers(folder: Path, **first: Any) -> None:
    """Write trials 0 and 1 by two workers, and trial 0 again after the second worker fine-tuned it."""
    raw = {"raw": {"accuracy": 0.9}}
    write(folder, "s", {"metrics": raw, **first})
    write(folder, "s-w2", {"trial": 1, "metrics": raw, **first}, {"trial": 0, **first})
