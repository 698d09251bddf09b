from __future__ import annotations

import os
import shutil
import subprocess
import sys
import types
from importlib import metadata
from pathlib import Path

import jupytext
import pytest

from common.notebook import colab
from common.notebook.colab import RunKeeper, copy_run, copy_to_drive, fetch_run, missing_requirements
from common.notebook.config import ClassifierConfig

ROOT = Path(__file__).parents[2]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.py"))
OWN = "own"
"""The notebook that runs in its user's folder. Its set-up cell fetches the suite as the others do, and stays there."""


def first_cell(path: Path) -> str:
    return str(next(c.source for c in jupytext.read(path).cells if c.cell_type == "code"))


def test_only_what_is_missing_is_installed_and_never_torch() -> None:
    lines = [
        "# comment",
        "",
        "torch==0.1",
        "torchvision==0.1",
        "numpy==0.1",
        "pytest==0.1",
        "no-such-package==1.0  # why",
    ]
    assert missing_requirements(lines) == ["no-such-package==1.0"]


@pytest.fixture(scope="module")
def set_up_cell() -> str:
    """The first cell of code, which every notebook but one has letter by letter."""
    firsts = [first_cell(path) for path in NOTEBOOKS if path.stem != OWN]
    assert len(firsts) == 5
    assert set(firsts) == {firsts[0]}
    return firsts[0]


def test_ones_own_notebook_fetches_the_suite_as_the_others_do(set_up_cell: str) -> None:
    cell = first_cell(ROOT / "notebooks" / f"{OWN}.py")

    def fetching(text: str) -> str:
        return text[text.index("if ") : text.index("assert ")]

    assert fetching(cell) == fetching(set_up_cell)


def test_ones_own_notebook_finds_the_suite_and_stays_where_it_is(tmp_path: Path) -> None:
    cell = first_cell(ROOT / "notebooks" / f"{OWN}.py")
    at = "\nprint('AT', Path.cwd(), sys.path[:2])"
    here = ROOT / "notebooks"
    found = subprocess.run([sys.executable, "-c", cell + at], cwd=here, capture_output=True, text=True, check=True)
    assert found.stdout == f"AT {here} {[str(here), str(ROOT)]}\n"
    lost = subprocess.run(
        [sys.executable, "-S", "-E", "-c", cell + at], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert f"{tmp_path} is not inside the suite, and no wheel of it is installed" in lost.stderr


def run_cell(cell: str, folder: Path, **environment: str) -> str:
    """Run the cell as a fresh kernel in ``folder`` would; return its final folder and what it can import."""
    after = (
        "\nimport common.notebook.config\nprint('AT', os.getcwd(), Path(common.notebook.config.__file__).resolve())"
    )
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", environment.pop("before", "") + cell + after],
        cwd=folder,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=True,
    ).stdout


@pytest.mark.parametrize("start", [".", "notebooks"])
def test_elsewhere_the_cell_only_steps_to_the_suite(set_up_cell: str, start: str) -> None:
    assert run_cell(set_up_cell, ROOT / start) == f"AT {ROOT} {ROOT / 'common' / 'notebook' / 'config.py'}\n"


def test_outside_the_suite_the_cell_finds_the_installed_one(set_up_cell: str, tmp_path: Path) -> None:
    (tmp_path / "common").mkdir()  # of somebody else
    assert run_cell(set_up_cell, tmp_path) == f"AT {ROOT} {ROOT / 'common' / 'notebook' / 'config.py'}\n"


def test_without_the_suite_the_cell_says_where_to_start(set_up_cell: str, tmp_path: Path) -> None:
    lost = subprocess.run(
        [sys.executable, "-S", "-E", "-c", set_up_cell], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert f"AssertionError: {tmp_path} is not inside the suite" in lost.stderr


def test_a_suite_installed_as_a_wheel_leaves_the_folder_as_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setattr(colab, "SUITE", tmp_path / "site-packages")
    colab.enter_suite()
    assert (Path.cwd(), sys.path[0]) == (tmp_path, str(tmp_path))


@pytest.mark.skipif(shutil.which("git") is None, reason="git is not on this machine")
def test_on_colab_the_cell_clones_and_installs_what_is_missing(set_up_cell: str, tmp_path: Path) -> None:
    source = tmp_path / "source"
    shutil.copytree(ROOT / "common", source / "common", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "requirements.txt", source)
    shutil.copytree(ROOT / "notebooks", source / "notebooks")
    identity = ["-c", "user.name=t", "-c", "user.email=t@example.org"]
    for command in (["init", "-q"], ["add", "."], [*identity, "commit", "-qm", "a copy"]):
        subprocess.run(["git", *command], cwd=source, check=True)
    content = tmp_path / "content"
    content.mkdir()
    stand_in = "import sys, types\nsys.modules['google.colab'] = types.ModuleType('google.colab')\n"
    clone = content / "low-rank-cnn"
    for _ in range(2):  # a kernel that starts again finds the clone and does not fetch it anew
        shown = run_cell(set_up_cell, content, before=stand_in, SUITE_SOURCE=source.as_uri())
        assert shown == f"nothing to install\nAT {clone} {clone / 'common' / 'notebook' / 'config.py'}\n"
        shutil.rmtree(source, ignore_errors=True)


def test_results_are_kept_on_a_mounted_drive(tmp_path: Path) -> None:
    log, drive = tmp_path / "run.log", tmp_path / "drive" / "MyDrive" / "low-rank-cnn"
    log.write_text("first")
    assert copy_to_drive([log], drive) == []
    drive.parent.mkdir(parents=True)
    for text in ("first", "second"):
        log.write_text(text)
        assert copy_to_drive([log, tmp_path / "not there.log"], drive) == [drive / "run.log"]
        assert (drive / "run.log").read_text() == text
    assert [path.name for path in drive.iterdir()] == ["run.log"]


def test_an_up_to_date_copy_stays(tmp_path: Path) -> None:
    file, drive = tmp_path / "a.safetensors", tmp_path / "drive"
    file.write_bytes(b"weights")
    assert copy_to_drive([file], drive) == [drive / "a.safetensors"]
    assert copy_to_drive([file], drive) == []
    os.utime(file, ns=(0, file.stat().st_mtime_ns + 10**9))
    assert copy_to_drive([file], drive) == [drive / "a.safetensors"]


def test_a_run_is_copied_while_it_runs_and_fetched_by_the_next_session(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    logs, drive = tmp_path / "logs", tmp_path / "drive"
    logs.mkdir()
    for name in (
        "run.log",
        "run.journal",
        "run.journal.lock",
        "run-dense.safetensors",
        "run-dense-finetuned.safetensors",
        "runner.log",
        "run-b.log",
    ):
        (logs / name).write_text(name)
    (logs / "run-node-7.log").write_text('TRIAL {"details": {"study": "run"}}\n')
    (logs / "run-c.log").write_text('TRIAL {"details": {"study": "run-c"}}\n')
    now = 0.0
    monkeypatch.setattr("common.notebook.colab.time.monotonic", lambda: now)
    keeper = RunKeeper(logs, drive)
    keeper.keep("run")
    kept = ["run-dense-finetuned.safetensors", "run-dense.safetensors", "run-node-7.log", "run.journal", "run.log"]
    assert sorted(path.name for path in drive.iterdir()) == kept
    (logs / "run.log").write_text("more and more")
    for now, text in ((59.0, "run.log"), (61.0, "more and more")):  # noqa: B007
        keeper.keep("run")
        assert (drive / "run.log").read_text() == text
    keeper.forget(logs / "run-dense.safetensors")
    assert not any((folder / "run-dense.safetensors").exists() for folder in (logs, drive))
    later = tmp_path / "later"
    later.mkdir()
    (later / "run.log").write_text("its own")
    assert [path.name for path in fetch_run(later, "run", drive)] == [
        "run-dense-finetuned.safetensors",
        "run-node-7.log",
        "run.journal",
    ]
    assert (later / "run.log").read_text() == "its own"


@pytest.fixture
def on_colab(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "google.colab", types.ModuleType("google.colab"))
    monkeypatch.setattr(colab, "_told", set())


@pytest.mark.usefixtures("on_colab")
def test_without_a_drive_each_run_is_once_reported_as_lost(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    drive = tmp_path / "content" / "drive" / "MyDrive" / "low-rank-cnn"
    for logs, run in ((tmp_path, "a"), (tmp_path, "b"), (tmp_path / "other", "a")):
        for _ in range(2):  # the training has a keeper, and so has the search
            keeper = RunKeeper(logs, drive)
            for now in (True, False, True):
                keeper.keep(run, now)
        assert copy_run(logs, run, drive) == []  # the last cell of a notebook
        told = capsys.readouterr()
        assert told.err == ""
        (line,) = told.out.splitlines()
        assert line.startswith(f"run {run!r} will be lost when this Colab session ends: there is no Drive at ")
        assert f"{drive.parent} (none is mounted); call drive.mount('{drive.parents[1]}')" in line


@pytest.mark.usefixtures("on_colab")
@pytest.mark.parametrize("place", ["content/gdrive/MyDrive", "content/drive/My Drive", "gdrive/MyDrive"])
def test_a_drive_that_is_mounted_elsewhere_is_named(
    place: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / place).mkdir(parents=True)
    (tmp_path / "content" / "sample_data").mkdir(parents=True)
    RunKeeper(tmp_path, tmp_path / "content" / "drive" / "MyDrive" / "low-rank-cnn").keep("run")
    assert f"(the one at {tmp_path / place} is not used)" in capsys.readouterr().out
    assert not list((tmp_path / place).iterdir())


@pytest.mark.usefixtures("on_colab")
def test_a_run_to_continue_is_reported_at_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ClassifierConfig.from_notebook({"run": "mine", "logs": str(tmp_path)})
    assert capsys.readouterr().out.count("run 'mine' will be lost") == 1
    RunKeeper(tmp_path).keep("mine")
    assert capsys.readouterr().out == ""


@pytest.mark.usefixtures("on_colab")
def test_with_a_drive_nothing_is_reported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    drive = tmp_path / "content" / "drive" / "MyDrive" / "low-rank-cnn"
    drive.parent.mkdir(parents=True)
    (tmp_path / "run.log").write_text("a trial\n")
    RunKeeper(tmp_path, drive).keep("run")
    assert (drive / "run.log").read_text() == "a trial\n"
    assert capsys.readouterr().out == ""


def test_outside_colab_nothing_is_said_of_a_drive(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    RunKeeper(tmp_path, tmp_path / "content" / "drive" / "MyDrive" / "low-rank-cnn").keep("run")
    told = capsys.readouterr()
    assert (told.out, told.err) == ("", "")


def test_a_copy_that_stops_halfway_has_no_journal_without_its_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A journal that says that the run is finished, beside a log without the results, would lose them."""
    logs, drive = tmp_path / "logs", tmp_path / "drive" / "suite"
    logs.mkdir()
    drive.parent.mkdir()
    for name in ("run.journal", "run.log", "run-w2.log", "run-trial3.safetensors"):
        (logs / name).write_text('TRIAL {"study": "run"}\n')
    copied: list[str] = []
    copy2 = shutil.copy2

    def counted(source: Path, to: Path) -> Path:
        copied.append(source.name)
        return Path(copy2(source, to))

    monkeypatch.setattr(shutil, "copy2", counted)
    assert len(copy_run(logs, "run", drive)) == len(copied) == 4
    assert copied[-1] == "run.journal"


def test_a_drive_that_fails_ends_no_run(tmp_path: Path) -> None:
    drive = tmp_path / "drive"
    drive.write_text("no folder")
    (tmp_path / "run.log").write_text("")
    with pytest.warns(UserWarning, match=r"^run 'run' could not be copied to Drive: .*File exists"):
        assert copy_run(tmp_path, "run", drive) == []


def test_pip_must_not_change_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def pip(command: list[str], check: bool) -> None:
        asked.extend(command)
        constraints = Path(command[command.index("-c") + 1]).read_text().split()
        assert f"torch=={metadata.version('torch')}" in constraints
        assert f"numpy=={metadata.version('numpy')}" in constraints

    monkeypatch.setattr("common.notebook.colab.missing_requirements", lambda _: ["no-such-package==1.0"])
    monkeypatch.setattr("common.notebook.colab.subprocess.run", pip)
    colab.install_missing()
    assert asked[-1] == "no-such-package==1.0"
