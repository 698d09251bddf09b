from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[1]
LOCKED_PYTHONS = ("3.11", "3.14")
"""As in the Makefile."""


def direct_requirements() -> list[str]:
    lines = (ROOT / "requirements.txt").read_text().splitlines()
    return [line for line in lines if line and not line.startswith("#")]


def test_each_line_of_the_requirements_says_what_it_is_for() -> None:
    assert [line for line in direct_requirements() if not re.fullmatch(r"[\w.-]+==[\w.]+  # .{4,}", line)] == []


@pytest.mark.parametrize("python", LOCKED_PYTHONS)
def test_the_lock_pins_every_requirement_with_hashes(python: str) -> None:
    text = (ROOT / f"requirements-py{python.replace('.', '')}.lock").read_text()
    assert "://" not in text  # names no index
    assert not re.search(r"^\s*-(?!-hash=sha256:[0-9a-f]{64}\b)", text, re.MULTILINE)
    entries = re.split(r"\n(?=\S)", re.sub(r"^#.*\n", "", text, flags=re.MULTILINE).strip())
    assert len(entries) > 100
    versions: dict[str, set[str]] = {}
    for entry in entries:
        pinned = Requirement(entry.split("\\")[0])
        assert "--hash=sha256:" in entry, pinned
        if pinned.marker is None or pinned.marker.evaluate({"python_full_version": f"{python}.0"}):
            versions.setdefault(pinned.name, set()).add(str(pinned.specifier).removeprefix("=="))
    for line in direct_requirements():
        wanted = Requirement(line.split("#")[0])
        assert versions[wanted.name] == {str(wanted.specifier).removeprefix("==")}
    assert [name for name, found in versions.items() if len(found) > 1] == []


def test_the_newest_python_is_skipped_where_it_is_missing() -> None:
    command = ["make", "--no-print-directory", "test-newest", "NEWEST=python3.99"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "python3.99 is not on this machine, so nothing was tested with it\n")


def test_the_newest_python_checks_a_clone(tmp_path: Path) -> None:
    """CI really runs ``make check`` there, if it has that Python. Here an ``echo`` takes the place of that make."""
    (tmp_path / "Makefile").write_text((ROOT / "Makefile").read_text())
    git = ["git", "-c", "user.name=t", "-c", "user.email=t@localhost"]
    for words in (["init", "--quiet"], ["add", "Makefile"], ["commit", "--quiet", "-m", "Add the Makefile"]):
        subprocess.run([*git, *words], cwd=tmp_path, check=True)
    command = ["make", "--no-print-directory", "test-newest", f"NEWEST={sys.executable}", "MAKE=echo make"]
    for _ in range(2):  # the second time there is a clone already
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
        assert (done.returncode, done.stdout) == (0, f"make -C results/newest check PYTHON={sys.executable}\n")
        assert (tmp_path / "results" / "newest" / "Makefile").exists()


def test_the_locks_are_written_for_both_versions_of_python(tmp_path: Path) -> None:
    """A program that writes down its options takes the place of uv, which would ask the index."""
    uv = tmp_path / "uv"
    uv.write_text('#!/bin/sh\necho "$@" >> "$0.calls"\n')
    uv.chmod(0o755)
    command = ["make", "--no-print-directory", "--old-file=.venv/.development", "lock", f"BIN={tmp_path}"]
    subprocess.run(command, cwd=ROOT, capture_output=True, check=True)
    calls = (tmp_path / "uv.calls").read_text().splitlines()
    assert len(calls) == len(LOCKED_PYTHONS)
    for python, call in zip(LOCKED_PYTHONS, calls, strict=True):
        assert call.startswith(
            f"pip compile requirements.txt --universal --python-version {python} --generate-hashes "
        )
        assert call.endswith(f"--output-file requirements-py{python.replace('.', '')}.lock")


def test_the_makefile_names_these_versions_of_python() -> None:
    makefile = (ROOT / "Makefile").read_text()
    assert f"LOCKED_PYTHONS := {' '.join(LOCKED_PYTHONS)}\nNEWEST := python$(lastword $(LOCKED_PYTHONS))\n" in makefile
