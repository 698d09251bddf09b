"""The wheel names its dependencies and works outside the repository."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

from tests.make_logs import NETWORKS, write_logs

ROOT = Path(__file__).parents[2]
PROGRAM = """
import torch, common
from common.compression import compress
from common.models import build_model
from common.network import profile
from common.planning import Budget, plan_ranks

model, x = build_model("resnet20", 10), torch.randn(1, 3, 32, 32)
small = compress(model, plan_ranks(model, x, "htd", Budget(params=0.5)))
print(common.__path__[0], profile(small, x).params <= 0.5 * profile(model, x).params)
"""


def test_its_dependencies_are_the_requirements() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    declared = {*project["dependencies"], *project["optional-dependencies"]["notebooks"]}
    assert declared == set(re.findall(r"^([\w.-]+)==", (ROOT / "requirements.txt").read_text(), re.MULTILINE))


def test_it_works_outside_the_repository(tmp_path: Path) -> None:
    source, installed = tmp_path / "source", tmp_path / "installed"
    source.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    shutil.copytree(ROOT / "common", source / "common")
    build = ["-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "-w", str(tmp_path), str(source)]
    subprocess.run([sys.executable, *build], check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    zipfile.ZipFile(wheel).extractall(installed)
    shutil.copy(ROOT / "analyze_results.py", tmp_path)
    write_logs(tmp_path / "logs", trials=20, networks=NETWORKS[:1])

    def run(*arguments: str) -> str:
        command = [sys.executable, *arguments]
        environment = {"PYTHONPATH": str(installed), "PATH": "/usr/bin:/bin", "OMP_NUM_THREADS": "1"}
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True)
        return done.stdout

    assert run("-c", PROGRAM) == f"{installed / 'common'} True\n"
    run("analyze_results.py", "logs", "--out", "results")
    assert (tmp_path / "results" / "report.html").stat().st_size > 10_000
