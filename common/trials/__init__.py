"""Trial records, their logs, and which trial is the best. Never imports torch."""

from common.trials.best import CRITERIA, choose_best, final_metric, is_accepted, reductions
from common.trials.log import (
    TRIAL_MARK,
    Entry,
    Skipped,
    TrialWriter,
    iter_entries,
    iter_trials,
    log_path,
    parse_record,
    read_log,
    summary_line,
    time_number,
)
from common.trials.record import SCHEMA_VERSION, STAGES, Status, TrialRecord, study_of

__all__ = [
    "CRITERIA",
    "SCHEMA_VERSION",
    "STAGES",
    "TRIAL_MARK",
    "Entry",
    "Skipped",
    "Status",
    "TrialRecord",
    "TrialWriter",
    "choose_best",
    "final_metric",
    "is_accepted",
    "iter_entries",
    "iter_trials",
    "log_path",
    "parse_record",
    "read_log",
    "reductions",
    "study_of",
    "summary_line",
    "time_number",
]
