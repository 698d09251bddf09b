from __future__ import annotations

import pytest

from common.trials import TrialRecord
from common.trials.best import choose_best, final_metric, is_accepted, reductions
from tests.records import DENSE_MACS, DENSE_PARAMS, make_baseline, make_record


def test_final_metric_is_of_the_last_stage_and_never_of_the_test_split() -> None:
    stages = {"test": {"accuracy": 0.1}, "raw": {"accuracy": 0.2}, "recalibrated": {"accuracy": 0.3}}
    assert final_metric(make_record(metrics=stages)) == 0.3
    assert final_metric(make_record(metrics={"test": {"accuracy": 0.1}})) is None
    assert final_metric(make_record(metrics={"raw": {"loss": 0.1}})) is None


def test_reductions() -> None:
    found = reductions(make_record(params=DENSE_PARAMS // 2, macs=DENSE_MACS * 2))
    assert found == pytest.approx({"params": 0.5, "macs": -1.0, "speedup": 1.93})
    assert reductions(make_record(latency=None, baseline={})) == {}


def test_acceptance_is_at_least_the_share_that_is_kept() -> None:
    baseline = make_baseline(metrics={"validation": {"accuracy": 0.8}})
    at_edge = make_record(baseline=baseline, metrics={"raw": {"accuracy": 0.4}})
    assert is_accepted(at_edge, 0.5)
    assert not is_accepted(at_edge, 0.51)
    assert not is_accepted(make_record(status="pruned"), 0.5)
    assert not is_accepted(make_record(baseline={}), 0.5)
    assert is_accepted(make_record(baseline={}), 0)
    assert not is_accepted(make_record(metrics={}), 0)


def test_choose_best_by_hand() -> None:
    def trial(number: int, params: int, macs: int, speedup: float, accuracy: float) -> TrialRecord:
        stages = {"raw": {"accuracy": accuracy}, "test": {"accuracy": 1.0}}
        return make_record(trial=number, params=params, macs=macs, latency={"speedup": speedup}, metrics=stages)

    records = [
        trial(0, 5_000_000, 90_000_000, 1.5, 0.95),
        trial(1, 2_000_000, 200_000_000, 1.5, 0.945),
        trial(2, 1_000_000, 10_000_000, 9.9, 0.50),  # the smallest, but it has lost its accuracy
        trial(3, 2_000_000, 300_000_000, 1.2, 0.949),  # as small as trial 1, and better
    ]
    assert {name: record.trial for name, record in choose_best(records).items()} == {
        "params": 3,
        "macs": 0,
        "speedup": 0,
    }
    assert {record.trial for record in choose_best(records, keep=0.5).values()} == {2}
    assert choose_best([]) == {}


def test_once_a_search_has_chosen_only_its_chosen_trials_count() -> None:
    lucky = make_record(trial=0, latency={"speedup": 9.0})
    tested = make_record(
        trial=1, latency={"speedup": 2.0}, metrics={"raw": {"accuracy": 0.95}, "test": {"accuracy": 0.1}}
    )
    unfinished = make_record(trial=0, run="another", latency={"speedup": 3.0})
    assert choose_best([lucky])["speedup"] is lucky
    assert choose_best([lucky, tested])["speedup"] is tested
    assert choose_best([lucky, tested, unfinished])["speedup"] is unfinished
    study = {
        "study": tested.run
    }  # the trial without a test metric is by a worker of the search that has made its choice
    worker = unfinished.replace(trial=2, details=study)
    assert choose_best([lucky, tested.replace(details=study), worker])["speedup"].trial == 1
