"""Find the logs of finished and running searches, and read them one record at a time."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from common.files import read_bounded
from common.trials import Entry, Skipped, TrialRecord, iter_entries, time_number

MOST_BYTES = 2**30
"""Maximum size of a JSON file. Logs have none, because they are read line by line."""
NAMED_LINES, NAMED_REASONS = 5, 50
"""Maximum number of lines to name for each reason, and of reasons for each log. Others are only counted."""


class SkippedLines(list[Skipped]):
    """The lines that were skipped: the first few for each reason, and the number for each.

    Not all are stored, since a log may hold a million lines of a schema that this reader does not know.
    """

    def __init__(self) -> None:
        super().__init__()
        self.counts: dict[str, int] = {}

    def append(self, entry: Skipped) -> None:
        """Count ``entry``, and store it if it is among the first for its reason."""
        reason = entry.reason if len(self.counts) < NAMED_REASONS or entry.reason in self.counts else "other reasons"
        self.counts[reason] = self.counts.get(reason, 0) + 1
        if self.counts[reason] <= NAMED_LINES:
            super().append(Skipped(entry.path, entry.line, reason))

    @property
    def total(self) -> int:
        """The number of lines that were skipped."""
        return sum(self.counts.values())

    def by_reason(self) -> list[dict[str, Any]]:
        """For each reason the ``log``, the numbers of the first ``lines``, the ``count`` of all and the ``reason``."""
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
    """Describe a reason of `SkippedLines.by_reason`, e.g. ``r.log, lines 3, 7: torn: the record is not complete``."""
    lines = list(skipped["lines"])
    more = skipped["count"] - len(lines)
    listed = ", ".join(map(str, lines)) + (f" and {more:,} more" if more else "")
    return f"{skipped['log']}, line{'s' if len(lines) > 1 else ''} {listed}: {skipped['reason']}"


def check_keep(keep: float) -> float:
    """Return ``keep``, the fraction of the dense metric that an accepted trial must keep.

    Raises:
        ValueError: ``keep`` is not in [0, 1].
    """
    if not 0 <= keep <= 1:
        raise ValueError(f"keep={keep!r} is not allowed; it must be a fraction in [0, 1], e.g. 0.99")
    return keep


def find_logs(paths: Iterable[str | Path], suffixes: Sequence[str] = (".log",)) -> list[Path]:
    """Return the files with one of ``suffixes``, in the order of ``paths``; the files of a folder by name.

    Args:
        paths: files and folders. Subfolders are not searched.
        suffixes: allowed suffixes of a log. An earlier suffix wins: with ``(".log", ".json")``, if a folder or the
            paths hold both ``a.log`` and ``a.json``, the result holds ``a.log`` only, because the JSON was made from
            it. The same holds for a ``s.json`` that names the logs of workers from which it was made.

    Warns:
        UserWarning: a JSON file is left out although the log lies in another folder, since it may belong to another
            run.

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
        elif not path.is_file():
            raise ValueError(f"{path} is no file (a pipe or a device); name a log or a folder of logs.")
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
            warnings.warn(f"{path} is left out in favour of {first[sources[0]]}, a log of the same name", stacklevel=2)
    return list(kept.values())


def _logs_named_in(path: Path) -> list[str]:
    """The logs from which ``jsonify_logs.py`` made a file, as its first line states; empty for any other file."""
    with path.open("rb") as file:
        opening = file.readline(1_000_000).strip()
    try:
        names = json.loads(opening + b"]}")["logs"]
        return [name for name in map(str, names) if name and name == Path(name).name and "\0" not in name]
    except (ValueError, KeyError, TypeError, RecursionError):
        return []


@dataclass
class Log:
    """A file of trials. `entries` reads it once, and fills ``skipped`` and ``notes``.

    Attributes:
        path: of the file.
        elsewhere: runs that a JSON file holds although their own logs are read as well; their trials come from these.
        skipped: the lines that are no trials.
        notes: sentences on what else was left out.
    """

    path: Path
    elsewhere: frozenset[str] = frozenset()
    skipped: SkippedLines = field(default_factory=SkippedLines)
    notes: list[str] = field(default_factory=list)

    def entries(self) -> Iterator[Entry]:
        """Every valid record in the order of the file. In a JSON file, records have no offset and the size 0."""
        if self.path.suffix != ".json":
            return iter_entries(self.path, self.skipped)
        return self._json_entries()

    def _json_entries(self) -> Iterator[Entry]:
        try:
            content = read_bounded(self.path, MOST_BYTES)
        except ValueError as error:
            self.notes.append(str(error))
            return
        try:
            document = json.loads(content, parse_constant=lambda name: None)
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
                if record.run not in self.elsewhere:
                    yield Entry(record, time_number(str(values.get("time")).encode()), 0, 0)

    def sentences(self) -> list[str]:
        """What was skipped during reading, in one sentence for each reason."""
        return [*self.notes, *map(skipped_sentence, self.skipped.by_reason())]


def opened_logs(paths: Sequence[Path]) -> list[Log]:
    """The logs at ``paths``. No trial comes from both a log and a JSON file beside it that was made from it.

    Warns:
        UserWarning: a JSON file was made from a log of a name that is read from another folder. Either may be newer.
    """
    present = {path.resolve() for path in paths}
    named = {path.name: path for path in paths if path.suffix != ".json"}

    def read_as_well(path: Path) -> Iterator[str]:
        for name in _logs_named_in(path) if path.suffix == ".json" else ():
            if path.with_name(name).resolve() in present:
                yield Path(name).stem
            elif name in named:
                message = (
                    f"{path} was made from a log of the name of {named[name]}, and both are read; if it is the same "
                    "run, its trials count twice: name only one of them"
                )
                warnings.warn(message, stacklevel=3)

    return [Log(path, frozenset(read_as_well(path))) for path in paths]
