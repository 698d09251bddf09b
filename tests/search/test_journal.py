"""Files that are not journals stay unchanged. Errors on damaged journals name the file and the line."""

from __future__ import annotations

import io
import json
import os
import sqlite3
from collections.abc import Callable
from pathlib import Path

import optuna
import pytest
from matplotlib.figure import Figure

from common.notebook.config import ClassifierConfig, SegmentationConfig
from common.search import search_ranks
from common.search.settings import SearchSettings
from common.search.study.storage import check_run, journal_path, open_storage, open_study
from common.search.study.worker import main
from tests.networks import tiny_cnn, tiny_digits

SETTINGS = SearchSettings(method="svd", trials=1, finetune_top=0, sensitivity_images=8)


def journal_of(path: Path, trials: int = 2) -> list[bytes]:
    """Make a journal and return its lines."""
    study = open_study("s", open_storage(path), ["maximize"])
    study.optimize(lambda trial: trial.suggest_float("x", 0, 1), n_trials=trials)
    return path.read_bytes().splitlines(keepends=True)


def image(kind: str) -> bytes:
    buffer = io.BytesIO()
    Figure((1, 1)).savefig(buffer, format=kind)
    return buffer.getvalue()


def database(tmp_path: Path) -> bytes:
    path = tmp_path / "made.sqlite"
    connection = sqlite3.connect(path)
    connection.execute("create table notes (text)")
    connection.commit()
    connection.close()
    return path.read_bytes()


def json_lines(*lines: object) -> bytes:
    return b"".join(json.dumps(line).encode() + b"\n" for line in lines)


FOREIGN: dict[str, tuple[Callable[[Path], bytes], str]] = {
    "sqlite": (database, "is an SQLite database, not a journal; name it storage=sqlite:///"),
    "text": (lambda _: b"first line\nlast line without an end", "is a text file, not a study's journal, and was left"),
    "one line": (lambda _: b"no line at all", "is a text file"),
    "whole lines": (lambda _: b"first line\nlast line\n", "is a text file"),
    "table": (lambda _: b"run,accuracy\na,0.9\nb,0.8", "is a text file"),
    "other script": (lambda _: "日誌\n".encode(), "is a text file"),
    "latin": (lambda _: "caf\xe9".encode("latin-1"), "is a binary file"),
    "png": (lambda _: image("png"), "is a PNG image"),
    "pdf": (lambda _: image("pdf"), "is a PDF file"),
    "zeros": (lambda _: bytes(100), "is a binary file"),
    "json": (lambda _: b'{"epoch": 1}', "is a file of JSON"),
    "json lines": (lambda _: json_lines({"epoch": 1}, {"epoch": 2}), "is a file of JSON"),
    "json of several lines": (lambda _: b'{\n  "op_code": 0\n}\n', "is a file of JSON"),
    "its own op_code": (lambda _: json_lines({"op_code": "push", "worker_id": "w"}), "is a file of JSON"),
    "an own log": (lambda _: b"2026-11-20 10:00:00  dense net\nTRIAL {}\n", "is a text file"),
}


@pytest.fixture(params=FOREIGN)
def foreign(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Path, str]:
    """A file that is not a journal, and the error message for it."""
    content, said = FOREIGN[request.param]
    path = tmp_path / "precious"
    path.write_bytes(content(tmp_path))
    return path, said


def test_a_file_that_is_not_a_journal_stays_unchanged(foreign: tuple[Path, str], tmp_path: Path) -> None:
    path, said = foreign
    before, modified = path.read_bytes(), path.stat().st_mtime_ns
    link = tmp_path / "link.journal"
    link.symlink_to(path)
    logs = tmp_path / "logs"
    ways: list[Callable[[], object]] = [
        lambda: open_storage(path),
        lambda: open_storage(str(link)),
        lambda: main(["--study", "s", "--storage", str(path), "--logs", str(logs)]),
        lambda: ClassifierConfig.from_notebook({"storage": str(path), "logs": str(logs)}),
        lambda: SegmentationConfig.from_notebook({"storage": str(link), "logs": str(logs)}),
        lambda: search_ranks(tiny_cnn(), tiny_digits(), SETTINGS, logs=logs, run="s", storage=path),
    ]
    for way in ways:
        with pytest.raises(ValueError, match=said) as error:
            way()
        assert str(error.value).startswith("storage=")
        assert (path.read_bytes(), path.stat().st_mtime_ns) == (before, modified)
    assert not list(logs.iterdir())
    assert {p.name for p in tmp_path.iterdir()} - {"made.sqlite"} == {"precious", "link.journal", "logs"}


def test_folders_and_devices_are_no_journals(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ValueError, match=r"^storage=.*/folder is a folder, not a journal; name a file in it, e\.g\. "):
        open_storage(tmp_path / "folder")
    with pytest.raises(ValueError, match=r"^storage=.*/pipe is no regular file"):
        open_storage(tmp_path / "pipe")
    (tmp_path / "file").touch()
    for below in ("file/s.journal", "file/folder/s.journal"):
        with pytest.raises(ValueError, match=r"^storage=.* a journal cannot be read and written there: "):
            open_storage(tmp_path / below)
    with pytest.raises(
        ValueError, match=r"^storage=/proc/none/s\.journal: a journal cannot be read and written there"
    ):
        open_storage("/proc/none/s.journal")


def test_a_journal_with_lines_of_another_program_stays_unchanged(tmp_path: Path) -> None:
    path = tmp_path / "s.journal"
    own = journal_of(path)
    for rest, line in (
        (json_lines({"event": "start"}, {"event": "end"}), 2),
        (json_lines({"event": "start"})[:-1], 2),  # its last line is unterminated
        (own[1] + json_lines([1, 2]), 3),
        (own[1] + json_lines({"op_code": 99, "worker_id": "w"}), 3),
        (own[1] + json_lines({"op_code": 4, "worker_id": "w"}), 3),
        (own[1] + json_lines({"op_code": True, "worker_id": "w"}), 3),
    ):
        path.write_bytes(own[0] + rest)
        with pytest.raises(ValueError, match=rf"^the journal .*/s\.journal is damaged in line {line}: "):
            open_storage(path)
        assert path.read_bytes() == own[0] + rest


DAMAGE: dict[str, tuple[Callable[[list[bytes]], list[bytes]], str]] = {
    "zeros": (lambda lines: [*lines[:3], b"\0" * 60 + b"\n", *lines[3:]], "it holds NUL bytes"),
    "zeros within": (lambda lines: [*lines[:3], lines[3][:9] + bytes(9) + lines[3][9:], *lines[4:]], "NUL bytes"),
    "half a line": (lambda lines: [*lines[:3], lines[3][:15] + lines[4], *lines[5:]], "it is not whole"),
    "two writers": (
        lambda lines: [*lines[:3], lines[3][:20] + lines[4][:-1] + lines[3][20:], *lines[5:]],
        "not whole",
    ),
    "two on one line": (lambda lines: [*lines[:3], lines[3][:-1] + lines[4], *lines[5:]], "it is not whole"),
    "other bytes": (lambda lines: [*lines[:3], lines[3].replace(b"worker", b"w\xff\xferker")], "it is not UTF-8"),
    "an empty line": (lambda lines: [*lines[:3], b"\n", *lines[3:]], "it is not whole"),
    "no entry": (lambda lines: [*lines[:3], b'{"a": 1}\n', *lines[3:]], "it is JSON but no entry of a journal"),
    "a number": (lambda lines: [*lines[:3], b"7\n", *lines[3:]], "it is JSON but no entry of a journal"),
    "deep": (lambda lines: [*lines[:3], b"[" * 100_000 + b"\n", *lines[3:]], "it is not whole"),
    "a field less": (
        lambda lines: [*lines[:3], b'{"op_code":4,"worker_id":"w"}\n', *lines[3:]],
        "its entry cannot follow those before it (KeyError: 'study_id')",
    ),
    "a last line that ends": (lambda lines: [*lines[:3], lines[3][:15] + b"\n"], "it is not whole"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_line_is_named_with_its_journal_and_a_remedy(damage: str, tmp_path: Path) -> None:
    run, logs = "s", tmp_path
    make, why = DAMAGE[damage]
    damaged = b"".join(make(journal_of(journal_path(logs, run))))
    journal_path(logs, run).write_bytes(damaged)
    (logs / f"{run}.log").touch()
    ways: list[Callable[[], object]] = [
        lambda: check_run(logs, run, None),
        lambda: ClassifierConfig.from_notebook({"run": run, "logs": str(logs)}),
        lambda: search_ranks(tiny_cnn(), tiny_digits(), SETTINGS, logs=logs, run=run),
        lambda: main(["--study", run, "--storage", str(journal_path(logs, run)), "--logs", str(logs)]),
    ]
    start = f"the journal {journal_path(logs, run)} is damaged in line 4: "
    end = "; the logs still hold the trials, so remove or rename the journal and start again under another run name"
    for way in ways:
        said = _said(way)
        assert said.startswith(start), said
        assert why in said
        assert said.endswith(end)
        assert "\n" not in said
        assert journal_path(logs, run).read_bytes() == damaged


def _said(way: Callable[[], object]) -> str:
    with pytest.raises(ValueError, match=r".") as error:
        way()
    return str(error.value)


def test_a_journal_without_its_log_is_found_before_any_work(tmp_path: Path) -> None:
    journal_path(tmp_path, "s").write_text("my notes")
    with pytest.raises(ValueError, match=r"s\.journal is a text file"):
        ClassifierConfig.from_notebook({"run": "s", "logs": str(tmp_path)})
    lines = journal_of(journal_path(tmp_path, "t"))
    journal_path(tmp_path, "t").write_bytes(lines[0] + b"\0\n" + lines[1])
    with pytest.raises(ValueError, match=r"t\.journal is damaged in line 2"):
        ClassifierConfig.from_notebook({"run": "t", "logs": str(tmp_path)})


@pytest.mark.parametrize(
    "tail", [b"\0" * 40, b'{"op_code":1,"wor\0\0\0', b"\xff\xfe", b'{"op_code":4,"worker_id":"w"']
)
def test_any_torn_last_line_is_dropped(tail: bytes, tmp_path: Path) -> None:
    path = tmp_path / "s.journal"
    whole = b"".join(journal_of(path))
    path.write_bytes(whole + tail)
    study = open_study("s", open_storage(path), None)
    assert path.read_bytes() == whole
    study.optimize(lambda trial: trial.suggest_float("x", 0, 1), n_trials=1)
    assert len(open_study("s", open_storage(path), None).trials) == 3


def test_a_journal_cut_anywhere_in_its_first_or_last_line_continues(tmp_path: Path) -> None:
    path = tmp_path / "s.journal"
    lines = journal_of(path)
    whole = b"".join(lines)
    for place in [*range(len(lines[0])), *range(len(whole) - len(lines[-1]), len(whole))]:
        path.write_bytes(whole[:place])
        names = optuna.get_all_study_names(open_storage(path))
        assert names == (["s"] if place >= len(lines[0]) else [])
        assert path.read_bytes() == whole[: whole.rfind(b"\n", 0, place) + 1]


def test_damage_that_happens_while_a_study_is_open_is_named_too(tmp_path: Path) -> None:
    path = tmp_path / "s.journal"
    lines = journal_of(path)
    study = open_study("s", open_storage(path), None)
    with path.open("ab") as file:
        file.write(b"\0\0\0\n")
    with pytest.raises(ValueError, match=rf"is damaged in line {len(lines) + 1}: it holds NUL bytes"):
        study.ask()
    assert path.read_bytes() == b"".join(lines) + b"\0\0\0\n", "nothing is written behind it"


def test_a_journal_is_read_while_another_process_writes(tmp_path: Path) -> None:
    path = tmp_path / "s.journal"
    mine, other = (open_study("s", open_storage(path), ["maximize"]) for _ in range(2))
    for study in (mine, other, mine, mine, other):
        study.optimize(lambda trial: trial.suggest_float("x", 0, 1), n_trials=1)
    assert [trial.number for trial in mine.trials] == [trial.number for trial in other.trials] == [0, 1, 2, 3, 4]
