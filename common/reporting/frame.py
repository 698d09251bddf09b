"""All trials as one data frame with a row for each trial. Tables and figures are made from it.

A million whole records do not fit in memory; a million rows of numbers do. A table or a figure needs only a few whole
records, e.g. for the plan of the best trial. These are read again from their logs.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import pandas as pd

from common.reporting.facts import method_order
from common.reporting.frame_columns import Columns
from common.reporting.reference import Reference
from common.reporting.runs import Log
from common.reporting.workers import Versions
from common.trials import Entry, TrialRecord, study_of
from common.trials.best import choose_best


class Trials:
    """The trials of any number of runs.

    Attributes:
        frame: one row for each trial, in the order of reading. Its columns are `frame_columns.TEXTS`, `COUNTS` and
            `NUMBERS`; ``params_kept``, ``macs_kept``, ``size_kept`` and ``metric_kept``, as shares of the dense
            network's; and the blocks ``label`` and ``group``, see `blocks`.
        reference: networks of another work, which pictures set beside the trials; None for none.
    """

    reference: Reference | None = None

    def __init__(self, entries: Iterable[tuple[int | None, Entry, Path]], by_name: bool = False) -> None:
        columns, files = Columns(), dict[Path, int]()
        homes: dict[str, Path] = {}
        folders: dict[str, dict[str, Path]] = {}  # study -> seed and dense metric -> folder of the first such log
        for row, entry, path in entries:
            if row is None:
                continue
            study = study_of(entry.record, by_name)
            origin = f"{entry.record.seed} {entry.record.baseline.metrics.get('validation')}"
            known = folders.setdefault(study, {})
            folder = known.setdefault(origin, path.parent)
            if folder != next(iter(known.values())):  # another study with the same name, in another folder
                study = f"{study} ({folder})"
            if homes.setdefault(entry.record.run, path) != path:  # another file has a run with this name
                named = entry.record.replace(run=f"{entry.record.run} ({path.parent})")
                entry = entry._replace(record=named)
            columns.put(row, entry, files.setdefault(path, len(files)), study)
        self._paths, self._held = list(files), columns.held
        self.frame = _with_blocks(columns.frame())

    @classmethod
    def of(cls, trials: Trials | Sequence[TrialRecord]) -> Trials:
        """Return ``trials`` itself, or make one from a list of records, each of which is a separate trial."""
        if isinstance(trials, Trials):
            return trials
        return cls((row, Entry(record, 0, 0, 0), Path()) for row, record in enumerate(trials))

    @classmethod
    def read(cls, logs: Sequence[Log], by_name: bool = False) -> Trials:
        """Read the trials of these logs and merge the workers of each study (see `Versions` for ``by_name``)."""
        versions = Versions(by_name)
        return cls(
            ((versions.place(entry.record, log.path), entry, log.path) for log in logs for entry in log.entries()),
            by_name,
        )

    def only(self, **wanted: Sequence[str] | None) -> Trials:
        """The trials whose columns hold one of the wanted texts. None selects all."""
        rows = self.frame
        for name, values in wanted.items():
            if values is not None:
                rows = rows[rows[name].isin(values)]
        return self._with(rows)

    def since(self, time: int) -> Trials:
        """The trials whose latest version was logged at ``time`` (YYYYMMDDhhmmss) or later."""
        return self._with(self.frame[self.frame["time"] >= time]) if time else self

    def _with(self, rows: pd.DataFrame) -> Trials:
        chosen = object.__new__(Trials)
        chosen._paths, chosen._held, chosen.frame = self._paths, self._held, rows
        chosen.reference = self.reference
        return chosen

    def beside(self, reference: Reference) -> Trials:
        """These trials, with networks of another work that pictures set beside them.

        Raises:
            ValueError: the reference has no network of any of these models, data sets and metrics.
        """
        chosen = self._with(self.frame)
        chosen.reference = reference
        if not any(chosen.reference_for(rows) for _, rows in self.blocks()):
            kinds = dict.fromkeys(
                f"{each.model} ({each.dataset or 'any'}, {each.metric})" for each in reference.networks
            )
            raise ValueError(
                f"reference={reference.name!r} has networks of {', '.join(kinds)}; none of them is among the trials: "
                f"{', '.join(label for label, _ in self.blocks())}"
            )
        return chosen

    def reference_for(self, rows: pd.DataFrame) -> Reference | None:
        """The reference's networks of the model and data set of a block; None if there are none.

        A dense one is among them, if the file or the log has one.
        """
        if self.reference is None:
            return None
        row = rows.iloc[0]
        found = self.reference.of(str(row["model"]), str(row["dataset"]), str(row["metric"]))
        if not found.compressed:
            return None
        params, dense = float(row["dense_params"]), float(row["dense"])
        return found.with_dense(int(params), dense) if params > 0 and 0 <= dense <= 1 else found

    def path(self, row: int) -> Path:
        """The file from which a row was read; the working folder if there is none."""
        return self._paths[int(self.frame["file"][row])]

    def record(self, row: int) -> TrialRecord:
        """The whole record of a row of the frame, by the row's label.

        Raises:
            ValueError: the log has changed since it was read.
        """
        if row in self._held:
            return self._held[row]
        path = self.path(row)
        with path.open("rb") as file:
            file.seek(int(self.frame["offset"][row]))
            try:
                record = TrialRecord.from_line(file.read(int(self.frame["size"][row])))
            except ValueError:
                raise ValueError(f"The log {path} has changed since it was read; run this again.") from None
        run, study = str(self.frame["run"][row]), str(self.frame["study"][row])
        details = record.details if study == study_of(record) else record.details.replace(study=study)
        return record.replace(run=run, details=details)

    @property
    def titles(self) -> dict[str, str]:
        """Method -> title for every method of these trials, in the order of `method_order`."""
        pairs = self.frame[["method", "title"]].drop_duplicates()
        pairs = pairs.assign(untitled=pairs["title"].astype(str) == pairs["method"].astype(str))
        pairs = pairs.sort_values(["method", "untitled"]).drop_duplicates("method")
        return dict(zip(pairs["method"], pairs["title"], strict=True))

    def blocks(self, by: str = "label") -> Iterator[tuple[str, pd.DataFrame]]:
        """The rows of each block; the blocks are in the order in which they first appear.

        ``label`` is ``model (dataset)``. Runs of one model are compared with each other only if they started from the
        same dense network. Otherwise each study is a separate block, and the label names the study. ``group`` is the
        same, except that dense networks of one size and metric that differ only by their seed stay together, for means
        over seeds.
        """
        for label, rows in self.frame.groupby(by, observed=True, sort=False):
            yield str(label), rows

    def best(self, rows: pd.DataFrame, keep: float) -> dict[str, TrialRecord]:
        """What `common.trials.best.choose_best` chooses among these rows."""
        accepted = rows[is_accepted(rows, keep)].assign(tested=rows["test"].notna())
        nearest: set[int] = set()
        for name, ascending in (("params_kept", True), ("macs_kept", True), ("speedup", False)):
            ordered = accepted.dropna(subset=name).sort_values([name, "final"], ascending=[ascending, False])
            # choose_best can choose no other trial of this search by this criterion
            nearest |= set(ordered.groupby(["study", "tested"], observed=True).head(1).index)
        return choose_best([self.record(row) for row in sorted(nearest)], keep)


def is_accepted(rows: pd.DataFrame, keep: float) -> pd.Series[bool]:
    """Which trials `common.trials.best.is_accepted` accepts."""
    enough = rows["final"] >= keep * rows["dense"] if keep else rows["final"].notna()
    return (rows["status"] == "ok") & enough


def counts_for_best(accepted: pd.DataFrame) -> pd.Series[bool]:
    """Which accepted trials can be the best: once a search has tested some of them, only those."""
    tested = accepted["test"].notna()
    return tested | ~tested.groupby(accepted["study"], observed=True).transform("any")


def is_measured(rows: pd.DataFrame) -> pd.Series[bool]:
    """Which trials have a value of the deciding metric on validation, even if they were pruned later."""
    return (rows["status"] != "failed") & rows["final"].notna()


def _with_blocks(frame: pd.DataFrame) -> pd.DataFrame:
    for name, part, whole in (
        ("params_kept", "params", "dense_params"),
        ("macs_kept", "macs", "dense_macs"),
        ("size_kept", "size_bytes", "dense_size"),
        ("metric_kept", "final", "dense"),
    ):
        frame[name] = frame[part] / frame[whole].where(frame[whole] > 0)
    frame["method"] = frame["method"].cat.reorder_categories(method_order(frame["method"].cat.categories))
    kinds = ["model", "dataset", "study", "network", "seed", "dense_params", "dense_macs", "metric"]
    codes = frame.groupby(kinds, observed=True, sort=False, dropna=False).ngroup()
    firsts = frame.loc[~codes.duplicated(), kinds]
    base = firsts["model"].astype(str) + " (" + firsts["dataset"].astype(str) + ")"
    alone = base + ", run " + firsts["study"].astype(str)
    networks = firsts.groupby(base)["network"].transform("nunique")
    within_seed = firsts.groupby([base, "seed"], dropna=False)["network"].transform("nunique").groupby(base)
    by_seed = within_seed.transform("max") <= 1
    for kind in ("dense_params", "dense_macs", "metric"):
        by_seed &= firsts.groupby(base)[kind].transform("nunique") <= 1
    for name, apart in (("label", networks > 1), ("group", ~by_seed)):
        labels = alone.where(apart, base)
        names = list(dict.fromkeys(labels))
        taken = labels.map({label: place for place, label in enumerate(names)}).to_numpy(dtype=int)
        frame[name] = pd.Categorical.from_codes(taken[codes.to_numpy()], pd.Index(names))
    return frame
