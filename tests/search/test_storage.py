from __future__ import annotations

from pathlib import Path

import optuna
import pytest
from optuna.trial import TrialState

from common.search.study import storage as storage_module
from common.search.study.storage import journal_path, open_storage, open_study, opened_storage


def test_a_journal_survives_a_torn_line(tmp_path: Path) -> None:
    path = journal_path(tmp_path / "logs", "run")
    study = open_study("s", open_storage(path), ["maximize"])
    study.optimize(lambda trial: trial.suggest_float("x", 0, 1), n_trials=3)
    whole = path.read_bytes()
    with path.open("ab") as file:
        file.write(b'{"op_code":4,"worker_id":"half a li')
    again = open_study("s", open_storage(path), None)
    assert path.read_bytes() == whole
    again.optimize(lambda trial: trial.suggest_float("x", 0, 1), n_trials=1)
    assert [trial.state for trial in open_study("s", open_storage(path), None).trials] == [TrialState.COMPLETE] * 4


def test_a_line_that_another_process_tore_does_not_spoil_the_next(tmp_path: Path) -> None:
    path = tmp_path / "j.journal"
    study = open_study("s", open_storage(path), ["maximize"])
    for _ in range(2):
        with path.open("ab") as file:
            file.write(
                b'{"op_code":4,"worker_id":"half a li'
            )  # the lock of a process that was killed, while this one lives
        study.optimize(lambda trial: trial.suggest_float("x", 0, 1), n_trials=1)
    assert [trial.state for trial in open_study("s", open_storage(path), None).trials] == [TrialState.COMPLETE] * 2


@pytest.mark.parametrize("rest", [b"", b"{", b'{"op_co', b'{"op_code":0,"worker_id":"ha'])
def test_an_empty_journal_can_be_opened(rest: bytes, tmp_path: Path) -> None:
    path = tmp_path / "j.journal"
    path.write_bytes(rest)
    assert open_study("s", open_storage(path), ["maximize"]).trials == []


def test_the_lock_of_a_killed_process_is_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage_module, "LOCK_GRACE_S", 3)
    path = tmp_path / "j.journal"
    open_study("s", open_storage(path), ["maximize"])
    (tmp_path / "j.journal.lock").touch()
    assert optuna.get_all_study_names(open_storage(path)) == ["s"]
    assert not (tmp_path / "j.journal.lock").exists()


def test_a_storage_that_cannot_be_opened_gives_an_error_of_one_sentence(tmp_path: Path) -> None:
    for name in ("some", "other"):
        open_study(name, open_storage(tmp_path / "j.journal"), ["maximize"])
    with pytest.raises(ValueError, match=r"^study='nothing' is not in this storage; it holds: other, some$"):
        open_study("nothing", open_storage(tmp_path / "j.journal"), None)
    with pytest.raises(ValueError, match=r"^storage=postgresql\+psycopg://127.0.0.1:1/none cannot be opened: "):
        open_storage("postgresql+psycopg://127.0.0.1:1/none")
    with pytest.raises(
        ValueError, match=r"^storage=postgresql\+psycopg://me:\*\*\*@127.0.0.1:1/none cannot be opened: "
    ):
        open_storage("postgresql+psycopg://me:secret@127.0.0.1:1/none")
    with pytest.raises(ValueError, match=r"^storage=:// is no URL of a database and no journal file$"):
        open_storage("://")
    with pytest.raises(
        ValueError, match=r"^storage=sqlite:/studies\.db is a URL with too few slashes; give it as text"
    ):
        open_storage(Path("sqlite:///studies.db"))
    (tmp_path / "notes.txt").write_text("notes")
    for inside in ("studies.db", "folder/studies.db"):
        with pytest.raises(
            ValueError, match=r"^storage=sqlite:///.* cannot be opened: .*(Not a directory|File exists)"
        ):
            open_storage(f"sqlite:///{tmp_path}/notes.txt/{inside}")
    with pytest.raises(ValueError, match=r"^storage=sqlite:///.* cannot be opened: .*file is not a database"):
        open_storage(f"sqlite:///{tmp_path}/notes.txt")
    assert (tmp_path / "notes.txt").read_text() == "notes"
    with pytest.raises(ValueError, match=r"^storage=mysql://nowhere/none: its driver is not installed"):
        open_storage("mysql://nowhere/none")


def test_workers_send_heartbeats_to_a_database(tmp_path: Path) -> None:
    with opened_storage(f"sqlite:///{tmp_path / 'studies.db'}") as storage:
        assert isinstance(storage, optuna.storages.RDBStorage)
        assert storage.get_heartbeat_interval() == storage_module.HEARTBEAT_S
