"""Finds the logs of finished runs, reads them and sorts their trials into the blocks that a report shows."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from common.trials import TrialRecord, read_log


@dataclass(frozen=True)
class Run:
    """The trials of one log, each in its latest version, by number; ``skipped`` says what could not be read."""

    path: Path
    trials: list[TrialRecord]
    skipped: list[str] = field(default_factory=list)


def check_keep(keep: float) -> float:
    """``keep`` itself, the fraction of the dense metric that an accepted trial kept.

    Raises:
        ValueError: ``keep`` is not in (0, 1].
    """
    if not 0 < keep <= 1:
        raise ValueError(f"keep={keep!r} is not allowed; it must be a fraction in (0, 1], e.g. 0.99")
    return keep


def find_logs(paths: Iterable[str | Path], suffixes: Sequence[str] = (".log",)) -> list[Path]:
    """The files with one of ``suffixes``, in the order of ``paths``, a folder's own files by name.

    Args:
        paths: files and folders; a folder is not searched any deeper.
        suffixes: what a log may end with. An earlier suffix wins: of ``a.log`` and ``a.json`` in one folder or
            among the paths, ``(".log", ".json")`` keeps ``a.log``, because the JSON was made from it.

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
    best: dict[str, int] = {}
    for path in found:
        best[path.stem] = min(best.get(path.stem, len(suffixes)), suffixes.index(path.suffix))
    kept = (path for path in found if suffixes.index(path.suffix) == best[path.stem])
    return list({path.resolve(): path for path in kept}.values())


def load_runs(paths: Iterable[str | Path]) -> list[Run]:
    """Every run under ``paths``: ``*.log``, and ``*.json`` (made by ``jsonify_logs.py``) where the log is not there.

    Raises:
        FileNotFoundError: a path does not exist, or a folder holds no log.
        ValueError: a file is neither a log nor a JSON file.
    """
    return [
        _read_json(path) if path.suffix == ".json" else _read(path) for path in find_logs(paths, (".log", ".json"))
    ]


def _read(path: Path) -> Run:
    trials, skipped = read_log(path)
    return Run(path, trials, [str(entry) for entry in skipped])


def _read_json(path: Path) -> Run:
    """A run out of a JSON file; what in it is no trial is passed over and named, as it is in a log."""
    try:
        document = json.loads(path.read_bytes())
        entries, passed = list(document["trials"]), list(document.get("skipped", []))
    except (ValueError, KeyError, TypeError, AttributeError):
        return Run(path, [], [f"{path.name}: not a file of trials made by jsonify_logs.py"])
    skipped = [f"{path.stem}.log, line {entry.get('line')}: {entry.get('reason')}" for entry in passed]
    latest: dict[int, TrialRecord] = {}
    for position, values in enumerate(entries):
        try:
            record = TrialRecord.from_dict(values)
        except ValueError as error:
            skipped.append(f"{path.name}, trials[{position}]: {error}")
        else:
            latest[record.trial] = record
    return Run(path, [latest[number] for number in sorted(latest)], skipped)


def group_records(records: Iterable[TrialRecord]) -> dict[str, list[TrialRecord]]:
    """The records by what may be compared: label -> records, in the order in which the labels first appear.

    A label is ``model (dataset)``. The runs of one model are compared with each other when they started from the
    same dense network; when they did not, each is a block of its own and the label names the run.
    """
    blocks: dict[tuple[str, str], list[TrialRecord]] = {}
    for record in records:
        blocks.setdefault((record.model, record.dataset), []).append(record)
    groups: dict[str, list[TrialRecord]] = {}
    for (model, dataset), block in blocks.items():
        apart = len({_dense_network(record) for record in block}) > 1
        for record in block:
            label = f"{model} ({dataset})" + (f", run {record.run}" if apart else "")
            groups.setdefault(label, []).append(record)
    return groups


def _dense_network(record: TrialRecord) -> tuple[str, ...]:
    """What tells one dense network from another. Its latency does not: it differs from one timing to the next."""
    dense = record.baseline
    metric = dense.get("metrics", {}).get("validation", {}).get(record.metric)
    return tuple(repr(value) for value in (dense.get("params"), dense.get("macs"), metric))


def baseline_record(records: Sequence[TrialRecord]) -> TrialRecord:
    """The record whose baseline says most: the first one that holds the dense network's test metric, or the first."""
    tested = (r for r in records if r.baseline.get("metrics", {}).get("test", {}).get(r.metric) is not None)
    return next(tested, records[0])
