"""Where a study is stored: a journal file beside the logs, or any storage that Optuna has a URL for."""

from __future__ import annotations

import re
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import optuna
from optuna.exceptions import ExperimentalWarning, StorageInternalError
from optuna.storages import BaseStorage, RDBStorage
from sqlalchemy import event
from sqlalchemy.engine import Dialect, make_url
from sqlalchemy.exc import ArgumentError, SQLAlchemyError

from common.search.study.attempts import check_attributes
from common.search.study.journal import open_journal
from common.trials import log_path

FINISHED = "finished"
"""A study's attribute: its best trials were tested, so it must not continue."""
HEARTBEAT_S = 15
"""Seconds between two signals of a worker to a database that it is alive."""
GRACE_S = 60
"""In a database, a trial is given up after this many seconds without a signal of its worker."""
OUTAGE_S = 60.0
"""Seconds that a database may be away, as while it is restarted. A process waits for it and goes on."""
STORAGE_ERRORS = (StorageInternalError, SQLAlchemyError)
"""What a database raises when it breaks a connection or stays away."""
LOCK_GRACE_S = 5
"""A lock on the journal that is older was left behind by a killed process, because a lock lasts for one write."""


def journal_path(logs: str | Path, run: str) -> Path:
    """The default journal of a run."""
    return Path(logs) / f"{run}.journal"


def open_storage(storage: str | Path) -> BaseStorage:
    """Open a storage by its URL (``postgresql+psycopg://...``, ``sqlite:///...``) or, without ``://``, a journal file.

    Raises:
        ValueError: the database's driver is missing, or the database cannot be reached; or the file is damaged or is
            no journal (it is left as it is).
    """
    optuna.logging.set_verbosity(optuna.logging.ERROR)  # trials have their own lines
    if re.match(r"\w[\w+]+:/(?!/)", str(storage)):
        raise ValueError(f"storage={storage!s} is a URL with too few slashes; give it as text, not as a Path")
    if "://" not in str(storage):
        return open_journal(Path(storage), LOCK_GRACE_S)
    try:
        url = make_url(str(storage))
    except ArgumentError:
        raise ValueError(f"storage={storage!s} is no URL of a database and no journal file") from None
    shown = url.render_as_string(hide_password=True)
    try:
        if url.get_backend_name() == "sqlite" and url.database:
            Path(url.database).parent.mkdir(parents=True, exist_ok=True)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ExperimentalWarning)
            found = RDBStorage(
                str(storage),
                engine_kwargs={"pool_pre_ping": True},
                heartbeat_interval=HEARTBEAT_S,
                grace_period=GRACE_S,
            )
        if url.get_backend_name() != "sqlite":
            event.listen(found.engine, "do_connect", _connect_patiently)
        return found
    except ImportError as error:
        driver = 'pip install "psycopg[binary]" serves postgresql+psycopg://'
        raise ValueError(f"storage={shown}: its driver is not installed ({error}); {driver}") from error
    except Exception as error:  # whatever the driver raises; its first line says what is wrong
        reason = str(error.__cause__ or error).splitlines()[0]
        raise ValueError(f"storage={shown} cannot be opened: {reason}") from error


def _connect_patiently(dialect: Dialect, _: Any, arguments: Any, named: Any) -> Any:
    """Connect to a database, and wait for it up to `OUTAGE_S` seconds; SQLAlchemy calls this."""
    until = time.monotonic() + OUTAGE_S
    while True:
        try:
            return dialect.connect(*arguments, **named)
        except dialect.loaded_dbapi.OperationalError:
            if time.monotonic() > until:
                raise
            time.sleep(1.0)


def is_storage_error(error: BaseException | None) -> bool:
    """Whether a database broke a connection. Optuna may raise another error while it handles that one."""
    while error is not None:
        if isinstance(error, STORAGE_ERRORS):
            return True
        error = error.__context__
    return False


@contextmanager
def opened_storage(storage: str | Path) -> Iterator[BaseStorage]:
    """Open a storage for a ``with`` block, which closes a database's connections at its end.

    A study that was opened inside can still be read afterwards; it connects again.
    """
    found = open_storage(storage)
    try:
        yield found
    finally:
        if isinstance(found, RDBStorage):
            found.scoped_session.remove()
            found.engine.dispose()


def open_study(name: str, storage: BaseStorage, directions: list[str] | None) -> optuna.Study:
    """Open the study ``name``, or make it if it does not exist.

    Args:
        name: name of the study.
        storage: that holds it.
        directions: ``maximize`` or ``minimize`` for each objective; None if the study must exist.

    Raises:
        ValueError: the study must exist but does not, or another program wrote it.
    """
    try:
        if directions is None:
            study = optuna.load_study(study_name=name, storage=storage)
        else:
            study = optuna.create_study(
                storage=storage,
                study_name=name,
                directions=directions,  # type: ignore[arg-type]  # Optuna wants the two literals
                load_if_exists=True,
            )
        check_attributes(study)
        return study
    except KeyError:
        known = ", ".join(sorted(map(str, optuna.get_all_study_names(storage)))) or "none"
        raise ValueError(f"study={name!r} is not in this storage; it holds: {known}") from None


def check_log_alone(logs: str | Path, run: str, storage: str | Path | None) -> None:
    """Raise if ``run`` has a log but no journal beside it. It opens nothing.

    Raises:
        ValueError: there is a log but no study to continue.
    """
    if storage is None and not journal_path(logs, run).exists():
        log_path(logs, run)


def check_log(logs: str | Path, run: str, opened: BaseStorage) -> None:
    """Raise unless the log of ``run`` is new or belongs to a study in this storage.

    Raises:
        ValueError: there is a log but no study to continue.
    """
    if run not in optuna.get_all_study_names(opened):
        log_path(logs, run)


def check_run(logs: str | Path, run: str, storage: str | Path | None) -> None:
    """Raise unless the log of ``run`` is new or belongs to a study in the storage, which this opens.

    Raises:
        ValueError: there is a log but no study to continue.
    """
    if log_path(logs, run, new=False).exists():
        check_log_alone(logs, run, storage)
        with opened_storage(storage or journal_path(logs, run)) as opened:
            check_log(logs, run, opened)
