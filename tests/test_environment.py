from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from common.environment import git_commit, hide_passwords


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
