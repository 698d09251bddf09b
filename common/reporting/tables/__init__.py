"""Every table of a report."""

from __future__ import annotations

from pathlib import Path

from common.reporting.frame import Trials
from common.reporting.tables.comparisons import budgets_table, searches_table, sweeps_table
from common.reporting.tables.comparisons import methods_table as methods_table
from common.reporting.tables.files import files_table
from common.reporting.tables.networks import latencies_table, layers_table, runs_table
from common.reporting.tables.summary import format_summary as format_summary
from common.reporting.tables.summary import summary
from common.reporting.tables.summary import summary_table as summary_table
from common.reporting.tables.table import Table


def all_tables(trials: Trials, keep: float = 0.99, folder: Path = Path()) -> list[Table]:
    """Make the tables, the most important first. Tables without a row are left out.

    Args:
        trials: of any number of runs and models.
        keep: a trial is accepted if it kept this fraction of the dense metric on validation, in [0, 1].
        folder: folder of the tables. The links to the logs are relative to it.

    Raises:
        ValueError: ``keep`` is not in [0, 1].
    """
    made = [
        summary(trials, keep),
        budgets_table(trials),
        methods_table(trials, keep),
        searches_table(trials, keep),
        sweeps_table(trials, keep),
        latencies_table(trials, keep),
        files_table(trials, keep),
        layers_table(trials, keep),
        runs_table(trials, folder),
    ]
    return [table for table in made if not table.raw.empty]
