"""Gains of a trial over the dense network, and the choice of the best trial. Never imports torch."""

from __future__ import annotations

import math

from common.trials.record import STAGES, TrialRecord, study_of

CRITERIA = ("params", "macs", "speedup")
"""The criteria for the best trial: parameters removed, MACs removed, measured speedup."""
CRITERION_NAMES = {"params": "params", "macs": "MACs", "speedup": "speedup"}
"""Criterion -> what a reader sees."""


def final_metric(record: TrialRecord, name: str | None = None) -> float | None:
    """Return a metric on validation after the last stage of the trial; None if it was not measured.

    Args:
        record: the trial.
        name: name of the metric; None for the metric that decides.
    """
    for stage in reversed(STAGES):
        if stage in record.metrics:
            value = record.metrics[stage].get(name or record.metric)
            return value if value is not None and math.isfinite(value) else None
    return None


def reductions(record: TrialRecord) -> dict[str, float]:
    """Return the trial's gains over its baseline, by criterion. A criterion that was not measured is left out.

    ``params`` and ``macs`` are the removed fractions (0.85 is 85% fewer). ``speedup`` is the dense latency over the
    compressed one, timed in turn.
    """
    dense = record.baseline
    pairs = {"params": (record.params, dense.params), "macs": (record.macs, dense.macs)}
    found = {name: 1 - value / whole for name, (value, whole) in pairs.items() if whole > 0}
    speedup = record.latency.speedup if record.latency else None
    return {**found, "speedup": speedup} if speedup is not None and math.isfinite(speedup) else found


def is_accepted(record: TrialRecord, keep: float) -> bool:
    """Whether the trial kept at least the fraction ``keep`` of its baseline's deciding metric on validation.

    If ``keep`` is 0, every measured trial is accepted, even if the metric of its baseline is unknown.
    """
    value = final_metric(record)
    dense = record.baseline.metric(record.metric)
    enough = value is not None and (keep == 0 or value >= keep * dense)
    return record.status == "ok" and enough


def choose_best(records: list[TrialRecord], keep: float = 0.99) -> dict[str, TrialRecord]:
    """Return the accepted trial with the greatest gain for each criterion (``params``, ``macs``, ``speedup``).

    Ties go to the better deciding metric, then to the earlier trial. Once a search has chosen trials, which then have
    a test metric, only these count: they were timed again, whereas the fastest of many single timings is luck. The
    values on test are not used.
    """
    accepted = [record for record in records if is_accepted(record, keep)]
    finished = {study_of(record) for record in accepted if "test" in record.metrics}
    eligible = [record for record in accepted if "test" in record.metrics or study_of(record) not in finished]
    best: dict[str, TrialRecord] = {}
    for criterion in CRITERIA:
        candidates = [r for r in eligible if criterion in reductions(r)]
        if candidates:
            best[criterion] = max(candidates, key=lambda r: (reductions(r)[criterion], final_metric(r) or 0.0))
    return best
