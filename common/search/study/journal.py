"""A study's journal: a file with one JSON entry on each line. A file that is no journal is never written to."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock, JournalStorage

from common.files import check_regular

OPENING = b'{"op_code":'
"""Every entry begins with this."""
MOST_BYTES = 2**26
"""Maximum length of an entry. The longest, a study's specification, takes some megabytes."""
SQLITE = b"SQLite format 3\0"
KINDS = {
    b"\x89PNG": "a PNG image",
    b"\xff\xd8\xff": "a JPEG image",
    b"GIF8": "a GIF image",
    b"%PDF": "a PDF file",
    b"PK\3\4": "a ZIP archive",
    b"\x1f\x8b": "a file packed by gzip",
}
"""How other kinds of files begin -> what they are, for messages."""


class DamagedJournal(ValueError):
    """A line of a journal holds no entry, or an entry that cannot follow those before it."""

    def __init__(self, path: Path, line: int, why: str) -> None:
        super().__init__(
            f"the journal {path} is damaged in line {line}: {why}; the logs still hold the trials, so remove or "
            "rename the journal and start again under another run name"
        )


def open_journal(path: Path, lock_grace_s: int) -> JournalStorage:
    """Open the study's journal at ``path``, or make it if it is missing. An unterminated last line is dropped.

    Args:
        path: the journal's path.
        lock_grace_s: seconds after which a lock on it counts as left behind.

    Raises:
        ValueError: ``path`` is no journal, or the journal is damaged or cannot be read and written.
    """
    try:
        check_journal(path)
        check_regular(path, "the journal")
        path.parent.mkdir(parents=True, exist_ok=True)
        journal = _WholeLines(path, JournalFileOpenLock(str(path), grace_period=lock_grace_s))
        storage = _replayed(journal)
        journal.drop_torn_line()
    except OSError as error:
        reason = error.strerror or error
        raise ValueError(f"storage={path}: a journal cannot be read and written there: {reason}") from error
    return storage


def check_journal(path: Path) -> None:
    """Raise unless ``path`` is missing, empty, or begins as a journal does.

    Raises:
        ValueError: it is another file or a folder. The message says what it is and what to name instead.
    """
    if path.is_dir():
        raise ValueError(f"storage={path} is a folder, not a journal; name a file in it, e.g. {path / 'my.journal'}")
    if not path.exists():
        return
    if not path.is_file():
        raise ValueError(f"storage={path} is no regular file; name a journal or a new file")
    with path.open("rb") as file:
        first = file.readline(1_000_000)
    if not first or (_is_entry(first) if first.endswith(b"\n") else _may_be_torn(first)):
        return
    if first.startswith(SQLITE):
        raise ValueError(f"storage={path} is an SQLite database, not a journal; name it storage=sqlite:///{path}")
    raise ValueError(
        f"storage={path} is {_kind(first)}, not a study's journal, and was left as it is; name a journal, a new file "
        "or the URL of a database, e.g. sqlite:///studies.db"
    )


def _is_entry(line: bytes) -> bool:
    try:
        _entry(line)
    except ValueError:
        return False
    return True


def _may_be_torn(line: bytes) -> bool:
    """Whether an unterminated line can be part of an entry whose writer was killed."""
    return line.startswith(OPENING) or OPENING.startswith(line)


def _kind(first: bytes) -> str:
    for opening, name in KINDS.items():
        if first.startswith(opening):
            return name
    if b"\0" in first:
        return "a binary file"
    try:
        text = first.decode()
    except UnicodeDecodeError:
        return "a binary file"
    return "a file of JSON" if text.lstrip()[:1] in ("{", "[") else "a text file"


class _OtherJson(ValueError):
    """A line is complete JSON but no entry."""


def _entry(line: bytes) -> dict[str, Any]:
    """The entry that a line holds.

    Raises:
        ValueError: it holds none. The message says why; it is an `_OtherJson` if the line is complete JSON.
    """
    if b"\0" in line:
        raise ValueError("it holds NUL bytes")
    try:
        entry = json.loads(line)
    except UnicodeDecodeError:
        raise ValueError("it is not UTF-8") from None
    except (json.JSONDecodeError, RecursionError):
        raise ValueError("it is not whole") from None
    if not isinstance(entry, dict) or type(entry.get("op_code")) is not int or type(entry.get("worker_id")) is not str:
        raise _OtherJson("it is JSON but no entry of a journal")
    return entry


def _replayed(journal: _WholeLines) -> JournalStorage:
    """Make the storage by replaying the journal's entries.

    Raises:
        DamagedJournal: an entry cannot follow those before it.
    """
    try:
        return JournalStorage(journal)
    except (OSError, DamagedJournal):
        raise
    except Exception as error:  # Optuna does not check what it reads, so it may raise anything
        why = f"its entry cannot follow those before it ({type(error).__name__}: {error})"
        raise DamagedJournal(journal.path, journal.line, why) from error


class _WholeLines(JournalFileBackend):
    """A journal that is read line by line. It never appends to a torn line.

    Attributes:
        path: the journal's path.
        line: number of the last line read, from 1.
    """

    def __init__(self, path: Path, lock: JournalFileOpenLock) -> None:
        super().__init__(str(path), lock)
        self.path, self.line = path, 0
        self._lock_of_file, self._known = lock, (0, 0)

    def read_logs(self, log_number_from: int) -> Iterator[dict[str, Any]]:  # type: ignore[override]
        """Read the entries from a number on, which counts from 0.

        Raises:
            DamagedJournal: a line holds no entry, and another line follows it.
        """
        number, offset = self._known if self._known[0] <= log_number_from else (0, 0)
        bad = ""
        with self.path.open("rb") as file:
            file.seek(offset)
            while line := file.readline(MOST_BYTES):
                if bad:
                    raise DamagedJournal(self.path, number + 1, bad)
                if not line.endswith(b"\n"):  # being written, or torn
                    if len(line) == MOST_BYTES:
                        raise DamagedJournal(self.path, number + 1, f"it is longer than {MOST_BYTES:,} bytes")
                    return
                try:
                    entry = _entry(line)
                except ValueError as error:
                    bad = str(error)  # on a shared disk, a last line may appear before it is complete
                    continue
                number, offset = number + 1, offset + len(line)
                self._known = number, offset
                if number > log_number_from:
                    self.line = number
                    yield entry

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        """Write each entry on a line."""
        self.drop_torn_line()
        super().append_logs(logs)

    def drop_torn_line(self) -> None:
        """Drop an unterminated last line, whose write was never acknowledged.

        Raises:
            DamagedJournal: the last line is terminated or complete JSON, but holds no entry.
        """
        self._lock_of_file.acquire()
        try:
            self._drop_torn_line()
        finally:
            self._lock_of_file.release()

    def _drop_torn_line(self) -> None:
        number, offset = self._known
        with self.path.open("r+b") as file:
            file.seek(offset)
            while line := file.readline(MOST_BYTES):
                number += 1
                terminated = line.endswith(b"\n")
                try:
                    _entry(line)
                except ValueError as error:
                    if terminated or isinstance(error, _OtherJson):
                        raise DamagedJournal(self.path, number, str(error)) from None
                if not terminated:
                    if len(line) == MOST_BYTES:
                        raise DamagedJournal(self.path, number, f"it is longer than {MOST_BYTES:,} bytes")
                    file.truncate(offset)
                    return
                offset += len(line)
