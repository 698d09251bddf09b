"""The wheel names its dependencies and works outside the repository."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import nbformat
import papermill
import pytest

from tests.make_logs import NETWORKS, write_logs
from tests.scripts.stranger import PIXELS, make_folder

ROOT = Path(__file__).parents[2]


def test_its_dependencies_are_the_requirements() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    declared = {*project["dependencies"], *project["optional-dependencies"]["notebooks"]}
    assert declared == set(re.findall(r"^([\w.-]+)==", (ROOT / "requirements.txt").read_text(), re.MULTILINE))


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with nothing but the wheel, as pip installs it; its dependencies are those of this process."""
    folder = tmp_path_factory.mktemp("wheel")
    source, target = folder / "source", folder / "installed"
    source.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    shutil.copytree(ROOT / "common", source / "common", ignore=shutil.ignore_patterns("__pycache__"))
    pip = [sys.executable, "-m", "pip"]
    build = [*pip, "wheel", "--quiet", "--no-deps", "--no-build-isolation", "-w", str(folder), str(source)]
    subprocess.run(build, check=True, capture_output=True)
    (wheel,) = folder.glob("*.whl")
    install = [*pip, "install", "--quiet", "--no-deps", "--no-index", "--no-compile", "--target", str(target)]
    subprocess.run([*install, str(wheel)], check=True, capture_output=True)
    return target


def run(folder: Path, installed: Path, *arguments: str) -> str:
    """Run Python in ``folder`` with the wheel alone."""
    environment = {"PYTHONPATH": str(installed), "PATH": "/usr/bin:/bin", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, *arguments]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_it_works_outside_the_repository(installed: Path, tmp_path: Path) -> None:
    shutil.copy(ROOT / "analyze_results.py", tmp_path)
    write_logs(tmp_path / "logs", trials=20, networks=NETWORKS[:1])
    assert run(tmp_path, installed, "-c", "import common; print(*common.__path__)") == f"{installed / 'common'}\n"
    run(tmp_path, installed, "analyze_results.py", "logs", "--out", "results")
    assert (tmp_path / "results" / "report.html").stat().st_size > 10_000


def test_a_stranger_gets_small_files_by_one_command(installed: Path, tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "stranger")
    network = ["--network", "my_network:build", "--weights", "weights.safetensors"]
    data = ["--dataset", "imagefolder", "--data-root", "photos", "--image-size", str(PIXELS), "--normalize", "unit"]
    shown = run(folder, installed, "-W", "error", "-m", "common.shrink", *network, *data, "--params", "0.5")
    check_files(folder / "small", shown)


def check_files(small: Path, shown: str) -> None:
    """Check the files and the report of a stranger's network: smaller ones, of a known accuracy."""
    sizes = {name: (small / f"{name}.onnx").stat().st_size for name in ("dense", "small", "small-int8")}
    assert sizes["small"] < 0.7 * sizes["dense"]
    assert sizes["small-int8"] < 0.65 * sizes["small"]  # names and scales weigh in a network of 13,000 weights
    assert (small / "small.safetensors").stat().st_size < 0.7 * sizes["dense"]
    for precision in ("float32", "int8"):
        (accuracy,) = re.findall(rf"small, {precision} +([\d.]+)%", shown)
        assert float(accuracy) > 90
    assert "on the 24 images of the test split, with its 95% interval" in shown
    assert "<script" not in (small / "report.html").read_text()
    assert (small / "report.png").stat().st_size > 10_000


def test_a_stranger_gets_them_by_the_notebook(
    installed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = make_folder(tmp_path / "stranger")
    monkeypatch.setenv("PYTHONPATH", str(installed))
    own = nbformat.read(ROOT / "notebooks" / "own.ipynb", as_version=4)
    own.cells.append(nbformat.v4.new_code_cell("import common\n\nprint(*common.__path__)"))
    nbformat.write(own, folder / "own.ipynb")
    parameters = {
        "network": "my_network:build",
        "weights": "weights.safetensors",
        "dataset": "imagefolder",
        "data_root": "photos",
        "image_size": PIXELS,
        "normalize": "unit",
        "methods": "svd,mixed",
        "finetune": False,
        "out": "small",
    }
    notebook = papermill.execute_notebook(
        folder / "own.ipynb", folder / "out.ipynb", parameters, cwd=folder, progress_bar=False
    )
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    assert sum("image/png" in output.get("data", {}) for output in outputs) == 5
    shown = "".join(output["text"] for output in outputs if output.get("name") == "stdout")
    assert shown.endswith(f"{installed / 'common'}\n")
    check_files(folder / "small", shown)
    assert all(re.search(rf"\d +{method} +0\.\d+", str(outputs)) for method in ("SVD", "Mixed"))
