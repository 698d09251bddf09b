"""Merge the logs of the workers of one study. Each worker writes its own log, and a trial may be in several."""

from __future__ import annotations

from pathlib import Path

from common.trials import STAGES, TrialRecord, study_of

STAGE_ORDER = (*STAGES, "test")


class Versions:
    """Decide which records are versions of the same trial.

    Within a run, a later record replaces an earlier one with the same number. Runs with the same name in two files are
    different runs. Runs of the same study, seed and dense network are its workers. Their records with the same number
    are versions of one trial if they hold the same plan, and the version that reached the latest stage is used. If
    their plans differ, they are different trials.

    Args:
        by_name: whether to take ``<run>-w2`` for a worker of ``<run>`` although its records name no study.
    """

    def __init__(self, by_name: bool = False) -> None:
        self._by_name = by_name
        self._rows: dict[tuple[Path, str], dict[int, int]] = {}
        self._shared: dict[tuple[str, int, int, int], int] = {}
        self._files: dict[tuple[str, str], list[Path]] = {}  # (study with its seed and network, run) -> files
        self._reached: dict[int, tuple[tuple[Path, str], int]] = {}
        self._number = 0

    def place(self, record: TrialRecord, path: Path) -> int | None:
        """The row, from 0, for a record of the file ``path``; None if the row already holds a later version."""
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
