"""Trial records, their logs, and which trial is the best. Never imports torch."""

from common.trials.best import CRITERIA, choose_best, final_metric, is_accepted, reductions
from common.trials.lines import TrialLines, trial_line
from common.trials.log import (
    LONGEST,
    TRIAL_MARK,
    Entry,
    Skipped,
    TrialWriter,
    change,
    iter_entries,
    iter_trials,
    log_path,
    read_log,
    summary_line,
    time_number,
)
from common.trials.migration import SCHEMA_VERSION
from common.trials.record import (
    STAGES,
    Baseline,
    Details,
    LayerFigures,
    LayerTimes,
    PlannedLayer,
    Status,
    Timing,
    TrialRecord,
    study_of,
)

__all__ = [
    "CRITERIA",
    "LONGEST",
    "SCHEMA_VERSION",
    "STAGES",
    "TRIAL_MARK",
    "Baseline",
    "Details",
    "Entry",
    "LayerFigures",
    "LayerTimes",
    "PlannedLayer",
    "Skipped",
    "Status",
    "Timing",
    "TrialLines",
    "TrialRecord",
    "TrialWriter",
    "change",
    "choose_best",
    "final_metric",
    "is_accepted",
    "iter_entries",
    "iter_trials",
    "log_path",
    "read_log",
    "reductions",
    "study_of",
    "summary_line",
    "time_number",
    "trial_line",
]
