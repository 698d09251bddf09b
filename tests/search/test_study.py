from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from common.calibration import recalibrate_bn
from common.checkpoints import load_compressed
from common.metrics import evaluate
from common.planning import plan_ranks
from common.profiling import profile
from common.search import SearchResult, SearchSettings, search_ranks
from common.training import TrainingSettings, train
from common.trials import TrialRecord, choose_best, read_log
from tests.networks import TinyCNN, same_weights, tiny_cnn, tiny_digits

ROOT = Path(__file__).parents[2]
SETTINGS = SearchSettings(
    trials=8,
    batch=4,
    keep=0.3,
    finetune_top=2,
    finetune=TrainingSettings(epochs=1.0, learning_rate=0.02, amp="off"),
)


@pytest.fixture(scope="module")
def dense() -> TinyCNN:
    model = tiny_cnn()
    train(model, tiny_digits(limit=600), TrainingSettings(epochs=5.0, amp="off"))
    return model.eval()


def search(model: nn.Module, folder: Path, run: str = "run", **changes: Any) -> tuple[SearchResult, list[TrialRecord]]:
    seen: list[TrialRecord] = []
    result = search_ranks(model, tiny_digits(), SETTINGS, logs=folder, run=run, on_trial=seen.append, **changes)
    return result, seen


def test_a_search_from_end_to_end(dense: TinyCNN, tmp_path: Path) -> None:
    before = {name: tensor.clone() for name, tensor in dense.state_dict().items()}
    x = torch.randn(1, 3, 8, 8)
    plans = [plan_ranks(dense, x, "svd", "fixed", ranks=4), plan_ranks(dense, x, "arsvd", tau=0.5)]
    result, seen = search(dense, tmp_path, plans=plans)
    assert all(torch.equal(before[name], tensor) for name, tensor in dense.state_dict().items())

    records, skipped = read_log(result.log)
    assert not skipped
    assert [record.trial for record in records] == list(range(10))
    assert records == [TrialRecord.from_dict(json.loads(record.to_json())) for record in result.records]
    assert [record.rule for record in records] == ["fixed", "entropy"] + ["adaptive policy"] * 8
    assert [record.method for record in records] == ["svd", "svd"] + ["htd"] * 8
    assert {record.status for record in records} == {"ok"}
    tuned = [record.trial for record in records if "finetuned" in record.metrics]
    scores = {record.trial: record.details["score"] for record in records}
    assert set(tuned) <= set(sorted(scores, key=lambda trial: scores[trial], reverse=True)[:2])
    assert len(tuned) + result.log.read_text().count("made it worse") == 2
    for record in records:
        if "finetuned" in record.metrics:
            assert record.metrics["finetuned"]["accuracy"] >= record.metrics["recalibrated"]["accuracy"]

    dense_cost = profile(dense, x)
    for record in records:
        assert {"raw", "recalibrated"} <= record.metrics.keys()
        assert record.params < dense_cost.params == record.baseline["params"]
        assert record.macs <= dense_cost.macs == record.baseline["macs"]
        assert record.latency is not None
        assert record.latency["median_s"] > 0
        assert record.latency["note"] or record.latency["speedup"] > 0
        assert record.seconds > 0

    assert {name: record.trial for name, record in result.best.items()} == {
        name: record.trial for name, record in choose_best(records, SETTINGS.keep).items()
    }
    chosen = set(result.networks)
    assert {record.trial for record in result.best.values()} <= chosen
    assert any(trial >= len(plans) for trial in chosen)
    assert chosen == {record.trial for record in records if "test" in record.metrics}
    for number, network in result.networks.items():
        record = records[number]
        assert evaluate(network, tiny_digits().test)["accuracy"] == pytest.approx(record.metrics["test"]["accuracy"])
        last = record.metrics.get("finetuned", record.metrics["recalibrated"])
        assert evaluate(network, tiny_digits().validation)["accuracy"] == pytest.approx(last["accuracy"])
        assert profile(network, x).params == record.params
        assert record.baseline["metrics"]["test"] == pytest.approx(evaluate(dense, tiny_digits().test))
        assert same_weights(load_compressed(tmp_path / record.details["weights"], tiny_cnn()), network)
    assert len(seen) == 10 + len(tuned) + len(chosen)


def test_the_test_split_is_read_for_the_chosen_only(
    dense: TinyCNN, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A search whose trials are all refused reads it once, for the dense network."""
    data = tiny_digits()
    reads = []
    original = type(data.test).__iter__

    def spy(loader: Any) -> Any:
        if loader is data.test:
            reads.append(1)
        return original(loader)

    monkeypatch.setattr(type(data.test), "__iter__", spy)
    settings = SearchSettings(trials=3, keep=1.0, size_weight=5.0, finetune_top=0)
    result = search_ranks(dense, data, settings, logs=tmp_path, run="strict", on_trial=lambda _: None)
    assert len(reads) == 1 + len(result.networks)


def test_the_same_seed_gives_the_same_trials(dense: TinyCNN, tmp_path: Path) -> None:
    (one, _), (other, _) = search(dense, tmp_path, "one"), search(dense, tmp_path, "other")
    assert [record.plan for record in one.records] == [record.plan for record in other.records]
    for mine, theirs in zip(one.records, other.records, strict=True):
        for stage in mine.metrics.keys() - {"test"}:  # sums over several threads may differ in their last bits
            assert mine.metrics[stage] == pytest.approx(theirs.metrics[stage], rel=1e-3)
    assert one.last_policy == other.last_policy != one.first_policy


def test_the_static_policy_never_moves(dense: TinyCNN, tmp_path: Path) -> None:
    settings = SearchSettings(policy="static", trials=5, batch=2, finetune_top=0)
    result = search_ranks(dense, tiny_digits(), settings, logs=tmp_path, run="static", on_trial=lambda _: None)
    assert result.last_policy == result.first_policy
    assert {record.rule for record in result.records} == {"static policy"}


def test_a_trial_that_fails_is_logged_and_the_search_goes_on(
    dense: TinyCNN, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = iter(range(100))

    def fail_once(*arguments: Any, **keywords: Any) -> int:
        if next(calls) == 1:
            raise RuntimeError("out of luck")
        return recalibrate_bn(*arguments, **keywords)

    monkeypatch.setattr("common.search.objective.recalibrate_bn", fail_once)
    result, _ = search(dense, tmp_path)
    assert [record.status for record in result.records] == ["ok", "failed"] + ["ok"] * 6
    assert result.records[1].error == "RuntimeError: out of luck"
    assert result.records[1].plan


def test_a_finetuning_that_diverges_does_not_end_the_search(
    dense: TinyCNN, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def diverge(*_: Any, **__: Any) -> None:
        raise FloatingPointError("the loss is nan")

    monkeypatch.setattr("common.search.study.train", diverge)
    result, _ = search(dense, tmp_path)
    assert not any("finetuned" in record.metrics for record in result.records)
    assert result.best
    assert result.log.read_text().count("failed: the loss is nan") == 2


def test_a_run_is_never_written_over(dense: TinyCNN, tmp_path: Path) -> None:
    search(dense, tmp_path)
    with pytest.raises(ValueError, match=r"run='run' has a log in .* already"):
        search(dense, tmp_path)


def test_more_than_three_epochs_of_finetuning_are_refused() -> None:
    with pytest.raises(ValueError, match="at most 3 epochs"):
        SearchSettings(finetune=TrainingSettings(epochs=3.5))


KILLED = """
import sys
sys.path.insert(0, {root!r})
from common.search import SearchSettings, search_ranks
from tests.networks import tiny_cnn, tiny_digits
search_ranks(tiny_cnn(), tiny_digits(), SearchSettings(trials=10_000), logs={logs!r}, run="killed")
"""


def test_sigkill_in_the_middle_loses_no_earlier_trial(tmp_path: Path) -> None:
    logs = tmp_path / "logs"
    command = [sys.executable, "-c", KILLED.format(root=str(ROOT), logs=str(logs))]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as child:
        assert child.stdout is not None
        finished = [int(child.stdout.readline().split()[1]) for _ in range(5)]
        time.sleep(0.05)  # into the next trial
        child.send_signal(signal.SIGKILL)
    assert finished == [0, 1, 2, 3, 4]
    with (logs / "killed.log").open("ab") as log:
        log.write(b'TRIAL {"schema": 1, "run": "kil')  # what a kill inside the write itself would leave
    shown = subprocess.run(
        [sys.executable, str(ROOT / "jsonify_logs.py"), str(logs)], capture_output=True, text=True, check=True
    ).stdout
    document = json.loads((logs / "killed.json").read_text())
    assert [trial["trial"] for trial in document["trials"]][:5] == finished
    assert all(trial["status"] == "ok" for trial in document["trials"])
    assert "1 lines skipped" in shown
    assert "torn: the record is not whole" in shown
