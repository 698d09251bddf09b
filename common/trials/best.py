"""What a trial gained over the dense network, and which trial of a run is the best. Never imports torch."""

from __future__ import annotations

import math

from common.trials.record import STAGES, TrialRecord, study_of

CRITERIA = ("params", "macs", "speedup")
"""What a trial can be the best by: parameters removed, MACs removed, measured speedup."""


def final_metric(record: TrialRecord, name: str | None = None) -> float | None:
    """A metric on validation after the last stage the trial reached; None when it was not measured.

    Args:
        record: of the trial.
        name: of the metric; the deciding one when left out.
    """
    for stage in reversed(STAGES):
        if stage in record.metrics:
            value = record.metrics[stage].get(name or record.metric)
            return value if value is not None and math.isfinite(value) else None
    return None


def reductions(record: TrialRecord) -> dict[str, float]:
    """What the trial gained over its baseline, by criterion; a criterion that was not measured is left out.

    ``params`` and ``macs`` are the fractions removed (0.85 is 85% fewer), ``speedup`` the dense latency over
    the compressed one, timed in turn.
    """
    dense = record.baseline
    pairs = {"params": (record.params, dense.params), "macs": (record.macs, dense.macs)}
    found = {name: 1 - value / whole for name, (value, whole) in pairs.items() if whole > 0}
    speedup = record.latency.speedup if record.latency else None
    return {**found, "speedup": speedup} if speedup is not None and math.isfinite(speedup) else found


def is_accepted(record: TrialRecord, keep: float) -> bool:
    """Whether the trial kept at least the fraction ``keep`` of its baseline's deciding metric on validation.

    With ``keep`` 0 every trial that was measured did, also where the baseline has no such metric.
    """
    value = final_metric(record)
    dense = record.baseline.metric(record.metric)
    enough = value is not None and (keep == 0 or value >= keep * dense)
    return record.status == "ok" and enough


def choose_best(records: list[TrialRecord], keep: float = 0.99) -> dict[str, TrialRecord]:
    """The accepted trial with the greatest reduction for each criterion (``params``, ``macs``, ``speedup``).

    Ties go to the better deciding metric, then to the earlier trial. Once a search has chosen, only its chosen trials
    count, the ones that carry a test metric: those were timed anew, and the fastest of many single timings is luck.
    No value on test is looked at.
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
