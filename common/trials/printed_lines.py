"""One line a trial under labelled columns, as a search prints them."""

from __future__ import annotations

import math
from collections.abc import Mapping

from common.progress import say
from common.trials.log import change
from common.trials.record import STAGES, TrialRecord

HEADINGS = {"raw": "raw", "recalibrated": "recal.", "refitted": "refit", "finetuned": "tuned", "test": "test"}
"""Stage or split -> the heading of its column."""
SETTINGS = {name: name for name in ("ranks", "threshold", "tau", "params", "macs", "latency")} | {"exponent": "exp"}
"""Settings of a rank rule that tell its plans apart -> how the line names them."""
PLAN_WIDTH = 22


class TrialLines:
    """Prints each record that it is called with. The first call prints the headings."""

    def __init__(self) -> None:
        self._begun = False

    def __call__(self, record: TrialRecord) -> None:
        """Print the line of a trial, past the progress bar."""
        if not self._begun:
            self._begun = True
            say(f"{record.metric}: on validation in the stages {', '.join(STAGES)}; test is its own split")
            say(_line("trial", "state", "method, rule", ["params", "MACs"], HEADINGS, "speedup", "s"))
        say(trial_line(record))


def trial_line(record: TrialRecord) -> str:
    """The line of one trial; why it failed, if it did."""
    settings = record.details.rule_settings
    named = {name: settings.get(name) for name in SETTINGS if (name, settings.get(name)) != ("exponent", 1)}
    given = [f"{SETTINGS[name]}={value:.3g}" for name, value in named.items() if isinstance(value, int | float)]
    plan = f"{record.title}, {' '.join(given) or record.rule.removesuffix(' policy')}"
    if record.status == "failed":
        return f"{record.trial:>5}  failed  {plan}: {record.error}"
    costs = [change(record.params, record.baseline.params), change(record.macs, record.baseline.macs)]
    values = {stage: record.metrics.get(stage, {}).get(record.metric, math.nan) for stage in HEADINGS}
    reached = {stage: "-" if math.isnan(value) else f"{value:.2%}" for stage, value in values.items()}
    speedup = record.latency.speedup if record.latency else None
    seconds = f"{record.seconds:.1f}"
    return _line(
        str(record.trial), record.status, plan, costs, reached, f"{speedup:.2f}x" if speedup else "-", seconds
    )


def _line(
    trial: str, state: str, plan: str, costs: list[str], reached: Mapping[str, str], speedup: str, seconds: str
) -> str:
    metrics = " ".join(f"{reached[stage]:>7}" for stage in HEADINGS)
    shown = plan if len(plan) <= PLAN_WIDTH else f"{plan[: PLAN_WIDTH - 3]}..."
    return (
        f"{trial:>5}  {state:<6}  {shown:<{PLAN_WIDTH}} {costs[0]:>7} {costs[1]:>7}  {metrics}  {speedup:>7} "
        f"{seconds:>6}"
    )
