"""Merges what the workers of one study wrote: each writes a log of its own, and a trial may stand in several."""

from __future__ import annotations

from pathlib import Path

from common.trials import STAGES, TrialRecord, study_of

STAGE_ORDER = (*STAGES, "test")


class Versions:
    """Which records are versions of one trial.

    Within a run a later record replaces an earlier one of the same number; runs of one name in two files are two runs.
    Runs of one study, of one seed and one dense network, are its workers: their records of one number are versions of
    one trial when they hold the same plan, and the one that reached the later stage stands; with another plan they are
    trials of their own.
    """

    def __init__(self, by_name: bool = False) -> None:
        self._by_name = by_name
        self._rows: dict[tuple[Path, str], dict[int, int]] = {}
        self._shared: dict[tuple[str, int, int, int], int] = {}
        self._files: dict[tuple[str, str], list[Path]] = {}  # the study, with its seed and network, and the run
        self._reached: dict[int, tuple[tuple[Path, str], int]] = {}
        self._number = 0

    def place(self, record: TrialRecord, path: Path) -> int | None:
        """The row in which a record of the file ``path`` belongs, from 0; None when a later version stands there."""
        source = path, record.run
        rows = self._rows.setdefault(source, {})
        row = rows.get(record.trial)
        if self._by_name or record.details.study:
            if row is None:
                dense = record.baseline.metrics.get("validation")
                study = f"{study_of(record, self._by_name)} {record.seed} {dense}"
                files = self._files.setdefault((study, record.run), [])
                if path not in files:
                    files.append(path)
                same = hash(repr((record.method, record.plan)))
                row = self._shared.setdefault((study, files.index(path), record.trial, same), self._number)
            rows[record.trial] = row
            reached = max((STAGE_ORDER.index(stage) for stage in record.metrics if stage in STAGE_ORDER), default=-1)
            last, best = self._reached.get(row, (source, reached))
            if last != source and reached < best:
                return None
            self._reached[row] = source, reached
        row = rows.setdefault(record.trial, self._number)
        self._number = max(self._number, row + 1)
        return row
