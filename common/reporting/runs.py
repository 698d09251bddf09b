"""Finds the logs of finished and of growing runs, and reads them one record at a time."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from common.trials import Entry, Skipped, TrialRecord, iter_entries, time_number

NAMED_LINES, NAMED_REASONS = 5, 50
"""The most lines that are named for a reason, and the most reasons for a log; others are only counted."""


class SkippedLines(list[Skipped]):
    """The lines that were passed over: the first few of each reason, and how many there were of each.

    A log may hold a million lines of a schema that this reader does not know, so they are not all kept.
    """

    def __init__(self) -> None:
        super().__init__()
        self.counts: dict[str, int] = {}

    def append(self, entry: Skipped) -> None:
        """Count ``entry``, and keep it while it is among the first of its reason."""
        reason = entry.reason if len(self.counts) < NAMED_REASONS or entry.reason in self.counts else "other reasons"
        self.counts[reason] = self.counts.get(reason, 0) + 1
        if self.counts[reason] <= NAMED_LINES:
            super().append(Skipped(entry.path, entry.line, reason))

    @property
    def total(self) -> int:
        """How many lines were passed over."""
        return sum(self.counts.values())

    def by_reason(self) -> list[dict[str, Any]]:
        """For each reason the log, the first lines, their whole ``count`` and the ``reason``."""
        return [
            {
                "log": self[0].path.name,
                "lines": [entry.line for entry in self if entry.reason == reason],
                "count": count,
                "reason": reason,
            }
            for reason, count in self.counts.items()
        ]


def skipped_sentence(skipped: Mapping[str, Any]) -> str:
    """One reason of `SkippedLines.by_reason` in words, e.g. ``r.log, lines 3, 7: torn: the record is not whole``."""
    lines = list(skipped["lines"])
    more = skipped["count"] - len(lines)
    listed = ", ".join(map(str, lines)) + (f" and {more:,} more" if more else "")
    return f"{skipped['log']}, line{'s' if len(lines) > 1 else ''} {listed}: {skipped['reason']}"


def check_keep(keep: float) -> float:
    """``keep`` itself, the fraction of the dense metric that an accepted trial kept.

    Raises:
        ValueError: ``keep`` is not in [0, 1].
    """
    if not 0 <= keep <= 1:
        raise ValueError(f"keep={keep!r} is not allowed; it must be a fraction in [0, 1], e.g. 0.99")
    return keep


def find_logs(paths: Iterable[str | Path], suffixes: Sequence[str] = (".log",)) -> list[Path]:
    """The files with one of ``suffixes``, in the order of ``paths``, a folder's own files by name.

    Args:
        paths: files and folders; a folder is not searched any deeper.
        suffixes: what a log may end with. An earlier suffix wins: of ``a.log`` and ``a.json`` in one folder or
            among the paths, ``(".log", ".json")`` keeps ``a.log``, because the JSON was made from it; so was
            ``s.json`` from the logs of the workers that it names. A JSON file that is left out although it lies in
            another folder than the log may be another run's, so a warning names it.

    Raises:
        FileNotFoundError: a path does not exist, or a folder holds no such file.
        ValueError: a file has another suffix.
    """
    wanted = " or ".join(f"*{suffix}" for suffix in suffixes)
    found: list[Path] = []
    for path in map(Path, paths):
        if path.is_dir():
            inside = sorted(p for p in path.iterdir() if p.suffix in suffixes and p.is_file())
            if not inside:
                raise FileNotFoundError(f"The folder {path} holds no {wanted} file; run a notebook first.")
            found += inside
        elif not path.exists():
            raise FileNotFoundError(f"There is no file or folder {path}; name a log or a folder of logs.")
        elif path.suffix not in suffixes:
            raise ValueError(f"The file {path} is not a log; its name must match {wanted}.")
        else:
            earlier = (path.with_suffix(suffix) for suffix in suffixes)
            found.append(next(p for p in earlier if p.exists()))
    first = {path.name: path for path in reversed(found) if path.suffix == suffixes[0]}
    resolved = {path.resolve() for path in found}
    kept: dict[Path, Path] = {}
    for path in found:
        sources = [] if path.suffix == suffixes[0] else _logs_named_in(path) or [f"{path.stem}{suffixes[0]}"]
        if not sources or not all(name in first for name in sources):
            kept[path.resolve()] = path
        elif not all(path.with_name(name).resolve() in resolved for name in sources):
            warnings.warn(f"{path} is passed over for {first[sources[0]]}, a log of the same name", stacklevel=2)
    return list(kept.values())


def _logs_named_in(path: Path) -> list[str]:
    """The logs that a file of ``jsonify_logs.py`` was made from, as its first line says; empty for any other file."""
    with path.open("rb") as file:
        opening = file.readline(1_000_000).strip()
    try:
        names = json.loads(opening + b"]}")["logs"]
        return [str(name) for name in names]
    except (ValueError, KeyError, TypeError, RecursionError):
        return []


@dataclass
class Log:
    """A file of trials: `entries` goes through it once, and fills ``skipped``."""

    path: Path
    skipped: SkippedLines = field(default_factory=SkippedLines)
    notes: list[str] = field(default_factory=list)

    def entries(self) -> Iterator[Entry]:
        """Every valid record in the order of the file; the size is 0 in a JSON file, where no offset leads back."""
        if self.path.suffix != ".json":
            return iter_entries(self.path, self.skipped)
        return self._json_entries()

    def _json_entries(self) -> Iterator[Entry]:
        try:
            document = json.loads(self.path.read_bytes(), parse_constant=lambda name: None)
            trials, passed = list(document["trials"]), list(document.get("skipped", []))
            self.notes += [skipped_sentence(entry) for entry in passed]
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            self.notes.append(f"{self.path.name}: not a file of trials made by jsonify_logs.py")
            return
        for position, values in enumerate(trials):
            try:
                record = TrialRecord.from_dict(values)
            except ValueError as error:
                self.notes.append(f"{self.path.name}, trials[{position}]: {error}")
            else:
                yield Entry(record, time_number(str(values.get("time")).encode()), 0, 0)

    def sentences(self) -> list[str]:
        """What was passed over while it was read, one line for each reason."""
        return [*self.notes, *map(skipped_sentence, self.skipped.by_reason())]
