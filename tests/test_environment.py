from __future__ import annotations

import re
import subprocess
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import pytest

from common.environment import (
    describe_environment,
    git_commit,
    has_int8_products,
    hide_passwords,
    instruction_set,
    machine_line,
)
from common.latency import RUNTIMES


@pytest.mark.parametrize(
    ("flags", "shown", "products"),
    [
        (["avx2", "avx512_f", "avx512_vnni", "avx512_bf16"], "AVX-512, VNNI, bfloat16", True),
        (["avx2", "avx_vnni"], "AVX2, VNNI", True),
        (["avx2", "avx512_f"], "AVX-512", False),
        (["neon", "dot"], "NEON, dot product", True),
        ([], "no vector instructions known", False),
    ],
)
def test_the_instruction_set_says_whether_bytes_are_multiplied(
    flags: list[str], shown: str, products: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cpu.get_capabilities", lambda: {"avx2": False, **dict.fromkeys(flags, True)})
    assert instruction_set() == shown
    assert has_int8_products() is products


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (
            "--storage postgresql+psycopg://me:s3cret@host:5432/db -x",
            "--storage postgresql+psycopg://me:***@host:5432/db -x",
        ),
        ("'mysql://me:p@ss:word@host/db'", "'mysql://me:***@host/db'"),
        ("postgresql://host/db?user=me&password=s3cret&x=1", "postgresql://host/db?user=me&password=***&x=1"),
        ("postgresql://me:a/b+c@host/db", "postgresql://me:***@host/db"),
        ("sqlite:///a.db https://example.org:8080/a me@host", "sqlite:///a.db https://example.org:8080/a me@host"),
    ],
)
def test_passwords_are_hidden(text: str, shown: str) -> None:
    assert hide_passwords(text) == shown


def test_the_commit_is_that_of_a_repository_that_tracks_the_folder(tmp_path: Path) -> None:
    assert git_commit(tmp_path) is None
    installed = tmp_path / ".venv" / "package"
    installed.mkdir(parents=True)
    (installed / "module.py").touch()
    (tmp_path / "own.py").touch()
    who = ["-c", "user.name=A", "-c", "user.email=a@example.org"]
    for command in (["init", "-q"], ["add", "own.py"], [*who, "commit", "-qm", "Begin"]):
        subprocess.run(["git", "-C", str(tmp_path), *command], check=True)
    commit = git_commit(tmp_path)
    assert commit is not None
    assert re.fullmatch("[0-9a-f]{12}", commit)
    assert git_commit(installed) is None
    (tmp_path / "own.py").write_text("changed")
    assert git_commit(tmp_path) == f"{commit}+"


def test_the_machine_is_the_one_that_was_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    found = {"processor": "P", "instructions": "AVX2", "accelerator": "G", "threads": 2, "torch": "1"}
    monkeypatch.setattr(
        "common.environment.describe_environment", lambda: {**found, "onnxruntime": None, "openvino": None}
    )
    assert machine_line() == "P (AVX2), 2 threads, torch 1"
    assert machine_line("cuda") == "G, 2 threads, torch 1"


def test_the_package_for_gpus_is_onnxruntime_as_well(monkeypatch: pytest.MonkeyPatch) -> None:
    def version(package: str) -> str:
        if package == "onnxruntime":
            raise PackageNotFoundError(package)
        return "9.9"

    monkeypatch.setattr("common.environment.version", version)
    assert describe_environment()["onnxruntime"] == "9.9"
    assert RUNTIMES["onnxruntime"].version == "9.9"
