"""The trial record, its writer and its reader: one run, one file ``logs/<run>.log``.

A log holds lines that a person reads as they come (``tail -f``), and one line a trial with the whole record as
JSON behind the word ``TRIAL``. A record that is written again under the same trial number (a finalist that was
fine-tuned later) replaces the earlier one. This module never imports torch.
"""

from __future__ import annotations

import codecs
import datetime
import errno
import json
import math
import os
import re
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, NamedTuple, get_args

SCHEMA_VERSION = 1
TRIAL_MARK = "TRIAL "

Status = Literal["ok", "pruned", "failed"]
STAGES = ("raw", "recalibrated", "finetuned")
"""The stages at which a trial is measured on the validation split, in the order in which they happen."""


@dataclass(frozen=True)
class TrialRecord:
    """One compressed network and everything measured on it.

    Attributes:
        run: name of the run, which is also the name of its log file without ``.log``.
        trial: number within the run, from 0.
        status: ``ok``, ``pruned`` (given up early) or ``failed`` (see ``error``).
        metric: name of the metric that decides, e.g. ``accuracy`` (a fraction in [0, 1]).
        plan: layer name -> ``{"method": ..., "ranks": [...]}`` or ``{"dense": why}``.
        metrics: stage -> metric -> value. ``raw``, ``recalibrated`` and ``finetuned`` are on the validation
            split; ``test`` is there for the networks that were chosen at the end, and only for them.
        params: every parameter of the network.
        macs: multiply-accumulates of one input.
        size_bytes: bytes of the saved file.
        latency: ``median_s``, ``iqr_s``, ``speedup`` over the dense network timed in turn with it, and the
            conditions (``runtime``, ``threads``, ``batch_size``, ``memory_format``); None when not measured.
        seconds: what the trial took.
        baseline: the same figures of the dense network: ``params``, ``macs``, ``size_bytes``, ``latency``,
            ``metrics`` (``validation``, and ``test`` once it was read).
    """

    run: str
    trial: int
    status: Status
    model: str
    dataset: str
    method: str
    rule: str
    metric: str
    plan: dict[str, dict[str, Any]]
    metrics: dict[str, dict[str, float]]
    params: int
    macs: int
    size_bytes: int
    latency: dict[str, Any] | None
    seconds: float
    seed: int
    baseline: dict[str, Any]
    environment: dict[str, Any]
    git_commit: str | None = None
    error: str = ""
    details: dict[str, Any] = field(default_factory=dict)
    schema: int = SCHEMA_VERSION

    def to_json(self) -> str:
        """The record as one line of JSON. Numbers that are not finite become null, which JSON can hold."""
        return json.dumps(_finite(asdict(self)), ensure_ascii=False, allow_nan=False)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> TrialRecord:
        """The record held by ``values``.

        Raises:
            ValueError: another schema version, a field that is missing, or one of the wrong type.
        """
        if not isinstance(values, dict):
            raise ValueError(f"a trial must be a JSON object, got {type(values).__name__}")
        schema = values.get("schema")
        if schema != SCHEMA_VERSION:
            raise ValueError(f"schema version {schema!r} is unknown; this reader knows version {SCHEMA_VERSION}")
        if missing := _REQUIRED - values.keys():
            raise ValueError(f"the field {min(missing)!r} is missing")
        for name, kind in _KINDS.items():
            if name in values and (not isinstance(values[name], kind) or isinstance(values[name], bool)):
                raise ValueError(f"the field {name!r} holds {values[name]!r}, which is not of the right type")
        for name in _COUNTS:
            if not 0 <= values[name] < 2**63:
                raise ValueError(f"the field {name!r} holds {values[name]}, which is no count of 63 bits")
        _check_metrics("metrics", values["metrics"])
        _check_metrics("baseline.metrics", values["baseline"].get("metrics", {}))
        figures = {f"baseline.{name}": values["baseline"].get(name) for name in ("params", "macs", "size_bytes")}
        figures |= {"seed": values["seed"], "seconds": values["seconds"]}
        figures |= {f"latency.{name}": value for name, value in (values["latency"] or {}).items() if name in _SECONDS}
        for name, value in figures.items():
            if not _is_number(value):
                raise ValueError(f"the field {name!r} holds {value!r}, which is no finite number")
        if values["status"] not in _STATUSES:
            raise ValueError(f"the status {values['status']!r} is unknown; it is one of {_STATUSES}")
        seconds = math.nan if values["seconds"] is None else values["seconds"]
        return cls(**{name: value for name, value in values.items() if name in _KNOWN} | {"seconds": seconds})


_OPTIONAL = {"git_commit", "error", "details"}
_KNOWN = {f.name for f in fields(TrialRecord)}
_REQUIRED = _KNOWN - _OPTIONAL
_STATUSES = get_args(Status)
_COUNTS = ("trial", "params", "macs", "size_bytes")
_KINDS: dict[str, type | tuple[type, ...]] = {
    **dict.fromkeys(("run", "status", "model", "dataset", "method", "rule", "metric", "error"), str),
    **dict.fromkeys(("trial", "params", "macs", "size_bytes", "seed"), int),
    **dict.fromkeys(("plan", "metrics", "baseline", "environment", "details"), dict),
    "latency": (dict, type(None)),
    "seconds": (int, float, type(None)),
}
_SECONDS = {"median_s", "iqr_s", "speedup", "baseline_median_s"}


def _is_number(value: Any) -> bool:
    """Whether ``value`` is a finite number, or None, which stands for one that was not finite or not measured."""
    return value is None or (isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < 1e300)


def _check_metrics(name: str, stages: Any) -> None:
    if not isinstance(stages, dict) or not all(isinstance(metrics, dict) for metrics in stages.values()):
        raise ValueError(f"the field {name!r} holds {stages!r}; it must map stages to metrics")
    for stage, metrics in stages.items():
        for metric, value in metrics.items():
            if not _is_number(value):
                raise ValueError(f"the field {name!r} holds {value!r} for {stage}/{metric}, which is no finite number")


def _finite(value: Any) -> Any:
    """``value`` with every float that is not finite replaced by None, however deep it lies."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return value


def log_path(folder: str | Path, run: str, *, new: bool = True) -> Path:
    """The log of a run.

    Args:
        folder: where the logs lie.
        run: name of the run.
        new: whether it must not have a log yet.

    Raises:
        ValueError: ``run`` cannot name a file, or has a log although it is to be new.
    """
    if not run or run != Path(run).name or run in {".", ".."}:
        raise ValueError(f"run={run!r} cannot name a log file; use letters, digits, '-' and '_'")
    path = Path(folder) / f"{run}.log"
    if new and path.exists():
        raise ValueError(f"run={run!r} has a log in {folder} already; give the run another name")
    return path


def check_writable(folder: str | Path, name: str = "logs") -> Path:
    """The folder, made when it is not there, once a file was written there and removed.

    Args:
        folder: where something is to be written later.
        name: of the parameter, for the sentence.

    Raises:
        ValueError: it is a file, cannot be made, or cannot be written in.
    """
    path = Path(folder)
    try:
        path.mkdir(parents=True, exist_ok=True)
        if not os.access(path, os.W_OK | os.X_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        with tempfile.TemporaryFile(dir=path):
            pass
    except FileExistsError:
        raise ValueError(f"{name}={str(folder)!r} must be a folder, and there is a file of that name") from None
    except OSError as error:
        reason = error.strerror or str(error)
        raise ValueError(f"{name}={str(folder)!r}: nothing can be written in this folder: {reason}") from None
    return path


class TrialWriter:
    """Appends to ``logs/<run>.log``; what it has returned from is on the disk, whatever happens next.

    Args:
        folder: where the logs lie; made when it is not there.
        run: name of the run; becomes the file's name, so it holds no path separator.

    Raises:
        ValueError: ``run`` is empty or holds a path separator.
    """

    def __init__(self, folder: str | Path, run: str) -> None:
        self.run = run
        self.path = log_path(folder, run, new=False)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._file = self.path.open("ab")
        if self._file.tell() and not _ends_with_newline(self.path):
            self._append("\n")  # the last writer was killed inside a line: ours must not continue it

    def note(self, text: str) -> None:
        """Append ``text`` as a line for people, with the time in front."""
        self._append(f"{datetime.datetime.now():%Y-%m-%d %H:%M:%S}  {' '.join(text.split())}\n")

    def write(self, record: TrialRecord) -> None:
        """Append the line for people and the record, and wait until both are on the disk.

        Raises:
            ValueError: the record belongs to another run.
        """
        if record.run != self.run:
            raise ValueError(f"a record of run {record.run!r} does not belong into {self.path.name}")
        self.note(summary_line(record))
        self._append(f"{TRIAL_MARK}{record.to_json()}\n")
        os.fsync(self._file.fileno())

    def _append(self, text: str) -> None:
        # A lone surrogate (from an undecodable file name) has no UTF-8 form; its escape is valid JSON.
        self._file.write(text.encode(errors="backslashreplace"))
        self._file.flush()

    def close(self) -> None:
        """Close the file; the writer cannot be used afterwards."""
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
    speedup = (record.latency or {}).get("speedup")
    parts = [
        f"trial {record.trial} {record.status}",
        f"params {_change(record.params, record.baseline.get('params'))}",
        f"MACs {_change(record.macs, record.baseline.get('macs'))}",
        f"{record.metric} {shown or 'not measured'}",
        *([f"{speedup:.2f}x"] if speedup else []),
        f"{record.seconds:.1f} s",
    ]
    return "  ".join(parts)


def _change(value: int, reference: int | None) -> str:
    return f"{value / reference - 1:+.1%}" if reference else f"{value:,}"


@dataclass(frozen=True)
class Skipped:
    """A line that held no usable record: where it stands and why it was passed over."""

    path: Path
    line: int
    reason: str

    def __str__(self) -> str:
        return f"{self.path.name}, line {self.line}: {self.reason}"


class Entry(NamedTuple):
    """A whole record and where it stands in its log.

    Attributes:
        record: the trial.
        time: when it was logged, local time as the number YYYYMMDDhhmmss; 0 when no line for people says so.
        offset: of the record's JSON in the file, in bytes.
        size: of the record's JSON, in bytes.
    """

    record: TrialRecord
    time: int
    offset: int
    size: int


_DECODER = json.JSONDecoder(parse_constant=lambda name: None)  # NaN and infinities of foreign writers


def parse_record(text: bytes) -> TrialRecord:
    """The record whose JSON is ``text``; NaN and infinities become None.

    Raises:
        ValueError: the text is no valid record.
    """
    try:
        values = _DECODER.decode(text.decode())
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError):
        raise ValueError("torn: the record is not whole") from None
    return TrialRecord.from_dict(values)


def iter_entries(path: str | Path, skipped: list[Skipped]) -> Iterator[Entry]:
    """Every whole record of one log in the order of its lines, later versions of a trial included.

    Args:
        path: the log; it may be growing while it is read, and is never held in memory.
        skipped: receives one entry for each line that is torn or holds no valid record.
    """
    path, mark = Path(path), TRIAL_MARK.encode()
    offset = time = 0
    with path.open("rb") as file:
        if file.read(2) in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE):
            skipped.append(Skipped(path, 1, "the file is UTF-16, and nothing of it was read; save it as UTF-8"))
            return
        file.seek(0)
        for number, raw in enumerate(file, start=1):
            if number == 1 and raw.startswith(codecs.BOM_UTF8):
                offset, raw = len(codecs.BOM_UTF8), raw.removeprefix(codecs.BOM_UTF8)
            start, offset = offset, offset + len(raw)
            if not raw.startswith(mark):
                time = time_number(raw)
                continue
            text = raw[len(mark) :].strip()
            try:
                yield Entry(parse_record(text), time, start + raw.index(text), len(text))
            except ValueError as error:
                skipped.append(Skipped(path, number, str(error)))
            time = 0


def time_number(line: bytes) -> int:
    """YYYYMMDDhhmmss of a text that begins with a date and a time, as a line for people does; else 0."""
    digits = line[:19].translate(None, b"-: T")
    return int(digits) if len(digits) == 14 and digits.isdigit() else 0


def iter_trials(path: str | Path, skipped: list[Skipped]) -> Iterator[TrialRecord]:
    """The records of `iter_entries`."""
    return (entry.record for entry in iter_entries(path, skipped))


def read_log(path: str | Path) -> tuple[list[TrialRecord], list[Skipped]]:
    """The trials of one log, each in its latest version, by number; and what was passed over."""
    skipped: list[Skipped] = []
    latest = {record.trial: record for record in iter_trials(path, skipped)}
    return [latest[number] for number in sorted(latest)], skipped


def study_of(record: TrialRecord, by_name: bool = False) -> str:
    """The study that a record belongs to: the one it names, else its run.

    Args:
        record: a trial.
        by_name: whether the run ``<name>-w2`` of a record that names no study is a worker of ``<name>``.
    """
    named = record.details.get("study")
    return str(named) if named else re.sub(r"-w\d+$", "", record.run) if by_name else record.run
