"""The commands of the pages that fetch packages, without fetching large ones; skipped where no package index answers.

uv takes the place of pip: in a dry run it reads what the index says of each package, where pip would download the
package itself, some of them gigabytes.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
UV = Path(sys.executable).parent / "uv"
LOCKS = {"3.11": ROOT / "requirements-py311.lock", "3.14": ROOT / "requirements-py314.lock"}
NO_ANSWER = re.compile("Failed to (fetch|download)|error sending request|timed out")
SMALL = ("six", "tabulate")
"""Packages of the lock that are small and need no others."""
Run = Callable[..., str]


@pytest.fixture(scope="module")
def uv(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Runs ``uv`` in the repository, with a cache of its own that begins empty; returns what it printed."""
    if not UV.exists():
        pytest.skip("uv is not installed")
    cache = tmp_path_factory.mktemp("uv")
    environment = {**os.environ, "UV_CACHE_DIR": str(cache), "UV_NO_PROGRESS": "1", "NO_COLOR": "1"}

    def run(*words: str, program: Path = UV, **variables: str) -> str:
        done = started(program, *words, **variables)
        if done.returncode != 0 and NO_ANSWER.search(done.stderr):
            pytest.skip("the package index does not answer")
        assert done.returncode == 0, done.stderr
        return done.stdout + done.stderr

    def started(program: Path, *words: str, **variables: str) -> subprocess.CompletedProcess[str]:
        command = [str(program), *words]
        values = environment | variables
        return subprocess.run(command, cwd=ROOT, env=values, capture_output=True, text=True, check=False)

    words = ["pip", "install", "--dry-run", "--no-deps", "--target", str(cache / "packages"), SMALL[0]]
    if started(UV, *words, UV_HTTP_TIMEOUT="10", UV_HTTP_RETRIES="0").returncode != 0:
        pytest.skip("no package index can be reached")
    return run


def commands(beginning: str, page: str) -> list[str]:
    """The commands of a page with this beginning, in its shell blocks or in its prose."""
    text = (ROOT / page).read_text()
    return re.findall(rf"^{beginning}.*$", text, re.MULTILINE) + re.findall(rf"`({beginning}[^`\n]*)`", text)


def would_install(printed: str) -> set[str]:
    """``name==version`` of what a dry run would install into an empty folder."""
    assert not re.search(r"^ [-~] ", printed, re.MULTILINE)
    return set(re.findall(r"^ \+ (\S+)$", printed, re.MULTILINE))


def pinned(file: Path, python: str) -> set[str]:
    """``name==version`` of the entries that a file of requirements or a lock has for a version of Python."""
    entries = [Requirement(line.split("#")[0]) for line in entries_of(file)]
    values = {"python_full_version": f"{python}.0", "python_version": python}
    return {
        f"{canonicalize_name(entry.name)}{entry.specifier}"
        for entry in entries
        if entry.marker is None or entry.marker.evaluate(values)
    }


def entries_of(file: Path) -> list[str]:
    """The lines of a file of requirements, of a lock without the hashes."""
    return [line.removesuffix("\\") for line in file.read_text().splitlines() if re.match(r"\w", line)]


@pytest.mark.parametrize("page", ["docs/deploy.md", "docs/trackers.md"])
def test_packages_that_fit_the_pinned_requirements_can_be_installed(page: str, uv: Run, tmp_path: Path) -> None:
    named = commands("pip install ", page)
    assert named
    for command in named:
        options = ["--dry-run", "--target", str(tmp_path / "packages"), "--constraints", "requirements.txt"]
        found = would_install(uv(*shlex.split(command), *options))
        assert shlex.split(command)[2] in {entry.partition("==")[0] for entry in found}


@pytest.mark.parametrize("page", ["docs/zoo.md", "benchmarks/README.md"])
def test_the_packages_of_the_zoo_can_be_installed(page: str, uv: Run, tmp_path: Path) -> None:
    (command,) = commands("pip install --no-deps", page)
    file = Path(shlex.split(command)[-1])
    printed = uv(*shlex.split(command), "--dry-run", "--target", str(tmp_path / "packages"))
    assert would_install(printed) == pinned(ROOT / file, f"{sys.version_info.major}.{sys.version_info.minor}")


@pytest.mark.parametrize("python", LOCKS)
def test_a_lock_is_complete_and_its_hashes_are_those_of_the_index(python: str, uv: Run, tmp_path: Path) -> None:
    """With hashes required, everything that a package needs has to be in the lock too."""
    (command,) = commands("pip install --require-hashes", "docs/reliability.md")
    lock = LOCKS[python]
    words = [lock.name if word == LOCKS["3.11"].name else word for word in shlex.split(command)]
    assert lock.name in words
    printed = uv(*words, "--dry-run", "--target", str(tmp_path / "packages"), "--python-version", python)
    assert would_install(printed) == pinned(lock, python)

    names = tmp_path / "names.txt"
    names.write_text("".join(f"{line}\n" for line in entries_of(lock)))
    options = ["--no-deps", "--universal", "--python-version", python, "--generate-hashes", "--no-annotate", "--quiet"]
    hashes = hashes_of(uv("pip", "compile", str(names), *options))
    for name, locked in hashes_of(lock.read_text()).items():
        assert locked <= hashes[name], name  # the index may hold files that came later


def hashes_of(lock: str) -> dict[str, set[str]]:
    """``name==version`` -> the hashes of its files."""
    found: dict[str, set[str]] = {}
    for entry in re.split(r"\n(?=\w)", lock):
        if named := re.match(r"[\w.-]+==[^ ]+", entry):
            found.setdefault(named[0], set()).update(re.findall(r"--hash=(\S+)", entry))
    return found


@pytest.mark.usefixtures("uv")
@pytest.mark.parametrize("altered", [False, True])
def test_pip_checks_the_hashes_of_the_lock(altered: bool, tmp_path: Path) -> None:
    """The command itself, for two packages. With other hashes it installs nothing."""
    (command,) = commands("pip install --require-hashes", "docs/reliability.md")
    *words, lock = shlex.split(command)
    entries = [entry for entry in re.split(r"\n(?=\w)", (ROOT / lock).read_text()) if entry.startswith(SMALL)]
    assert len(entries) == len(SMALL)
    text = "\n".join(entries)
    (tmp_path / lock).write_text(re.sub(r"sha256:\w{4}", "sha256:0000", text) if altered else text)
    command_line = [sys.executable, "-m", *words, lock, "--target", "packages", "--disable-pip-version-check"]
    done = subprocess.run(command_line, cwd=tmp_path, capture_output=True, text=True, check=False)
    if done.returncode != 0 and "connection broken" in done.stderr:
        pytest.skip("the package index does not answer")
    assert (done.returncode == 0) == (not altered), done.stderr
    assert ("DO NOT MATCH THE HASHES" in done.stderr) == altered
    assert sorted(path.stem for path in tmp_path.glob("packages/*.py")) == ([] if altered else ["six"])


def test_the_audit_takes_the_lock(uv: Run, tmp_path: Path) -> None:
    """All but the last step of pip-audit: asking its service for each package."""
    (command,) = commands("uvx pip-audit", "docs/reliability.md")
    python = f"{sys.version_info.major}.{sys.version_info.minor}"
    words = ["--python", sys.executable, *shlex.split(command)[1:], "--dry-run"]
    printed = uv(*words, program=UV.with_name("uvx"), HOME=str(tmp_path))
    assert f"would have audited {len(pinned(LOCKS['3.11'], python))} packages" in printed
