"""The log of a run, ``logs/<run>.log``: its writer and its reader.

A log holds lines for people, who can follow them (``tail -f``), and a line for each trial with the whole record as
JSON after the word ``TRIAL``. A later record with the same trial number, e.g. of a finalist that was fine-tuned,
replaces the earlier one.
"""

from __future__ import annotations

import codecs
import datetime
import math
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, NamedTuple

from common.files import check_name, check_regular
from common.trials.record import STAGES, TrialRecord

TRIAL_MARK = "TRIAL "
MOST_BYTES = 2**24
"""Maximum length of a line. A record takes some kilobytes; a file of another program may be one endless line."""


def log_path(folder: str | Path, run: str, *, new: bool = True) -> Path:
    """Return the path of a run's log.

    Args:
        folder: folder of the logs.
        run: name of the run.
        new: whether the run must not have a log yet.

    Raises:
        ValueError: ``run`` cannot name a file, or with ``new`` has a log already.
    """
    check_name("run", run)
    path = Path(folder) / f"{run}.log"
    if new and path.exists():
        raise ValueError(f"run={run!r} has a log in {folder} already; give the run another name")
    return path


class TrialWriter:
    """Appends to ``logs/<run>.log``. When `write` returns, the record is on disk, whatever happens next.

    Args:
        folder: folder of the logs. A missing folder is created.
        run: name of the run and of the file, so it must not hold a path separator.

    Raises:
        ValueError: ``run`` is empty or holds a path separator, or the log is a link or no regular file.
    """

    def __init__(self, folder: str | Path, run: str) -> None:
        self.run = run
        self.path = log_path(folder, run, new=False)
        check_regular(self.path, "the log")
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._file = self.path.open("ab")
        if self._file.tell() and not _ends_with_newline(self.path):
            self._append("\n")  # the last writer was killed while writing a line

    def note(self, text: str) -> None:
        """Append ``text`` as a line for people, after the time."""
        self._append(f"{datetime.datetime.now():%Y-%m-%d %H:%M:%S}  {' '.join(text.split())}\n")

    def write(self, record: TrialRecord) -> None:
        """Append the line for people and the record, and wait until both are on the disk.

        Raises:
            ValueError: the record belongs to another run.
        """
        if record.run != self.run:
            raise ValueError(f"a record of run {record.run!r} does not belong in {self.path.name}")
        self.note(summary_line(record))
        self._append(f"{TRIAL_MARK}{record.to_line()}\n")
        os.fsync(self._file.fileno())

    def _append(self, text: str) -> None:
        # A lone surrogate (from an undecodable file name) has no UTF-8 form; its escape is valid JSON.
        self._file.write(text.encode(errors="backslashreplace"))
        self._file.flush()

    def close(self) -> None:
        """Close the file. The writer cannot be used afterwards."""
        self._file.close()

    def __enter__(self) -> TrialWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _ends_with_newline(path: Path) -> bool:
    with path.open("rb") as file:
        file.seek(-1, os.SEEK_END)
        return file.read(1) == b"\n"


def summary_line(record: TrialRecord) -> str:
    """One line for people, e.g. ``trial 12 ok  params -85.1%  MACs -80.2%  accuracy 97.9% -> 98.9%  1.9x  4.2 s``."""
    if record.status == "failed":
        return f"trial {record.trial} failed: {record.error}"
    stages = [record.metrics[stage].get(record.metric) for stage in STAGES if stage in record.metrics]
    shown = " -> ".join("nan" if value is None or math.isnan(value) else f"{value:.2%}" for value in stages)
    speedup = record.latency.speedup if record.latency else None
    parts = [
        f"trial {record.trial} {record.status}",
        f"params {change(record.params, record.baseline.params)}",
        f"MACs {change(record.macs, record.baseline.macs)}",
        f"{record.metric} {shown or 'not measured'}",
        *([f"{speedup:.2f}x"] if speedup else []),
        f"{record.seconds:.1f} s",
    ]
    return "  ".join(parts)


def change(value: int, reference: float) -> str:
    """Format a count as its change from a reference, e.g. ``-85.1%``; as it is if there is no reference."""
    return f"{value / reference - 1:+.1%}" if reference > 0 else f"{value:,}"


@dataclass(frozen=True)
class Skipped:
    """A line without a usable record: its place and the reason why it was skipped."""

    path: Path
    line: int
    reason: str

    def __str__(self) -> str:
        return f"{self.path.name}, line {self.line}: {self.reason}"


class Entry(NamedTuple):
    """A record and its place in its log.

    Attributes:
        record: the trial.
        time: local time at which it was logged, as the number YYYYMMDDhhmmss; 0 if no line for people states it.
        offset: offset of the record's JSON in the file, in bytes.
        size: size of the record's JSON, in bytes.
    """

    record: TrialRecord
    time: int
    offset: int
    size: int


def iter_entries(path: str | Path, skipped: list[Skipped]) -> Iterator[Entry]:
    """Yield every valid record of one log in the order of its lines, including later versions of a trial.

    Args:
        path: the log. It may grow while it is read, and is never held in memory.
        skipped: receives one entry for each line that is torn or holds no valid record.
    """
    path, mark = Path(path), TRIAL_MARK.encode()
    offset = time = 0
    with path.open("rb") as file:
        if file.read(2) in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE):
            skipped.append(Skipped(path, 1, "the file is UTF-16, and nothing of it was read; save it as UTF-8"))
            return
        file.seek(0)
        for number, raw in enumerate(_lines(file), start=1):
            if number == 1 and raw.startswith(codecs.BOM_UTF8):
                offset, raw = len(codecs.BOM_UTF8), raw.removeprefix(codecs.BOM_UTF8)
            start, offset = offset, offset + len(raw)
            if len(raw) == MOST_BYTES and not raw.endswith(b"\n"):
                offset = file.tell()
                skipped.append(Skipped(path, number, f"the line is longer than {MOST_BYTES:,} bytes"))
                continue
            if not raw.startswith(mark):
                time = time_number(raw)
                continue
            held = raw[len(mark) :]
            text, lead = held.strip(), len(held) - len(held.lstrip())
            try:
                yield Entry(TrialRecord.from_line(text), time, start + len(mark) + lead, len(text))
            except ValueError as error:
                skipped.append(Skipped(path, number, str(error)))
            time = 0


def _lines(file: BinaryIO) -> Iterator[bytes]:
    """Yield the lines of a file; of a line that is too long its first `MOST_BYTES` bytes, after which it is passed."""
    while raw := file.readline(MOST_BYTES):
        rest = raw
        while len(rest) == MOST_BYTES and not rest.endswith(b"\n"):
            rest = file.readline(MOST_BYTES)
        yield raw


def time_number(line: bytes) -> int:
    """Return the number YYYYMMDDhhmmss of a text that begins with a date and a time, like lines for people; else 0."""
    digits = line[:19].translate(None, b"-: T")
    return int(digits) if len(digits) == 14 and digits.isdigit() else 0


def iter_trials(path: str | Path, skipped: list[Skipped]) -> Iterator[TrialRecord]:
    """Yield the records of `iter_entries`."""
    return (entry.record for entry in iter_entries(path, skipped))


def read_log(path: str | Path) -> tuple[list[TrialRecord], list[Skipped]]:
    """Return the latest version of each trial of a log, by number, and the lines that were skipped."""
    skipped: list[Skipped] = []
    latest = {record.trial: record for record in iter_trials(path, skipped)}
    return [latest[number] for number in sorted(latest)], skipped
