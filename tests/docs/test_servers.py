"""The servers that the pages name start, and answer with what is in their folders."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PROGRAMS = Path(sys.executable).parent
PATIENCE_S = 300
"""Within which a server has to answer, on the busiest machine."""


def first_answer(command: list[str], url: str, folder: Path) -> str:
    """Start a server on a free port, ask it once it listens, and stop it; ``PORT`` stands for the port."""
    if not (PROGRAMS / command[0]).exists():
        pytest.skip(f"{command[0]} is not installed")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    words = [str(PROGRAMS / command[0]), *(word.replace("PORT", port) for word in command[1:])]
    environment = {**os.environ, "HOME": str(folder), "JUPYTER_CONFIG_DIR": str(folder / "jupyter")}
    with (folder / "output.txt").open("w") as output:
        server = subprocess.Popen(words, cwd=folder, env=environment, stdout=output, stderr=output)
    try:
        return _asked(server, f"http://127.0.0.1:{port}{url}", folder / "output.txt")
    finally:
        server.kill()
        server.wait()


def _asked(server: subprocess.Popen[bytes], url: str, output: Path) -> str:
    end = time.monotonic() + PATIENCE_S
    while time.monotonic() < end:
        try:
            with urllib.request.urlopen(url, timeout=PATIENCE_S) as answer:
                return str(answer.read().decode())
        except urllib.error.HTTPError as error:
            error.close()  # it listens, and is not ready
        except OSError:
            assert server.poll() is None, output.read_text()
        time.sleep(0.2)
    raise AssertionError(f"no answer in {PATIENCE_S} s: {output.read_text()}")


def test_jupyter_lab_lists_the_notebooks(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "notebooks", tmp_path / "notebooks", ignore=shutil.ignore_patterns("__pycache__"))
    options = [
        "--no-browser",
        "--allow-root",
        "--ServerApp.port=PORT",
        "--IdentityProvider.token=",
        "--ServerApp.ip=127.0.0.1",
    ]
    listed = first_answer(["jupyter", "lab", *options], "/api/contents/notebooks?type=directory", tmp_path)
    assert all(f'"{path.name}"' in listed for path in (ROOT / "notebooks").glob("*.ipynb"))


def test_tensorboard_lists_the_runs(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(str(tmp_path / "results" / "tensorboard" / "my-run")) as writer:
        writer.add_scalar("raw/accuracy", 0.5, 0)
    options = ["--logdir", "results/tensorboard", "--port", "PORT", "--load_fast=false"]
    assert "my-run" in first_answer(["tensorboard", *options], "/data/runs", tmp_path)


def test_the_dashboard_lists_the_studies_of_a_journal(tmp_path: Path) -> None:
    journal = Path(shutil.copy(ROOT / "tests" / "search" / "begun" / "begun.journal", tmp_path))
    answer = first_answer(["optuna-dashboard", journal.name, "--port", "PORT"], "/api/studies", tmp_path)
    assert '"study_name": "begun"' in answer
