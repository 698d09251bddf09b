from __future__ import annotations

import dataclasses
import json
import math
import re
import statistics
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import nn

from common.calibration import recalibrate_bn
from common.compression import load_compressed
from common.data import load_data
from common.network import profile
from common.planning import Budget, Entropy, Fixed, plan_ranks
from common.planning.decompositions import Decompositions
from common.search import SearchResult, SearchSettings, search_ranks
from common.search.objective import Objective
from common.search.preparation import decompose_for_search, measure_sensitivities
from common.search.space import Space
from common.search.study.records import plan_of_record
from common.training import evaluate
from common.trials import TrialRecord, read_log
from common.trials.best import choose_best
from tests.networks import TinyCNN, same_weights, tiny_cnn, tiny_digits
from tests.search.studies import SETTINGS, search


class Searched(NamedTuple):
    """A search with two given plans, and its log."""

    result: SearchResult
    shown: list[TrialRecord]
    records: list[TrialRecord]
    logs: Path


@pytest.fixture(scope="module")
def searched(dense: TinyCNN, tmp_path_factory: pytest.TempPathFactory) -> Searched:
    before = {name: tensor.clone() for name, tensor in dense.state_dict().items()}
    x, logs = torch.randn(1, 3, 8, 8), tmp_path_factory.mktemp("logs")
    kept = decompose_for_search(dense, tiny_digits(), seed=0)
    plans = [
        plan_ranks(dense, x, "svd", Fixed(4), decompositions=kept),
        plan_ranks(dense, x, "arsvd", Entropy(0.5), decompositions=kept),
    ]
    result, shown = search(dense, logs, plans=plans)
    assert all(torch.equal(before[name], tensor) for name, tensor in dense.state_dict().items())
    records, skipped = read_log(result.log)
    assert not skipped
    return Searched(result, shown, records, logs)


def test_every_trial_is_logged_once_more_after_each_stage(searched: Searched) -> None:
    records = searched.records
    assert [record.trial for record in records] == list(range(10))
    assert records == [TrialRecord.from_dict(json.loads(record.to_line())) for record in searched.result.records]
    assert [record.rule for record in records] == ["fixed", "entropy"] + ["adaptive policy"] * 8
    assert [record.method for record in records] == ["svd", "svd"] + ["htd"] * 8
    assert {record.status for record in records} == {"ok"}
    tuned = sum(stage in record.metrics for record in records for stage in ("refitted", "finetuned"))
    tested = sum("test" in record.metrics for record in records)
    assert len(searched.shown) == 10 + tuned + tested


def test_a_record_holds_what_was_measured(searched: Searched, dense: TinyCNN) -> None:
    cost = profile(dense, torch.randn(1, 3, 8, 8))
    for record in searched.records:
        assert "recalibrated" in record.metrics
        assert ("raw" in record.metrics) == (record.trial < 2 or "test" in record.metrics)
        assert record.details.study == "run"
        assert record.environment["command"].startswith("python ")
        assert record.params < cost.params == record.baseline.params
        assert record.macs <= cost.macs == record.baseline.macs
        assert record.latency is not None
        assert (record.latency.median_s or 0) > 0
        assert record.latency.note or (record.latency.speedup or 0) > 0
        assert record.seconds > 0
        assert bool(record.details.spectra) == (record.trial == 0)
        layers = record.details.layers
        assert layers.keys() == {name for name, made in record.plan.items() if made.dense is None}
        assert all(0 <= found.error < 1.5 and 0 < found.params < 1 for found in layers.values())
        assert all(0 < found.macs <= 1 for found in layers.values())
        for name, found in layers.items():
            ranks = record.plan[name].ranks
            assert all(rank <= full for rank, full in zip(ranks, found.full, strict=True))
            assert 0 < found.dense_params < record.baseline.params
            assert 0 < found.dense_macs < record.baseline.macs
        images = {"validation": tiny_digits().validation_images()}
        if "test" in record.metrics:
            images["test"] = sum(len(targets) for _, targets in tiny_digits().test)
        assert record.baseline.images == images
    spectra = searched.records[0].details.spectra
    assert spectra.keys() == searched.records[0].plan.keys()
    assert all(values == sorted(values, reverse=True) for values in spectra.values())


def test_the_best_by_score_are_finetuned(searched: Searched) -> None:
    tuned = [record.trial for record in searched.records if "finetuned" in record.metrics]
    scores = {record.trial: record.details.score for record in searched.records}
    assert set(tuned) <= set(sorted(scores, key=lambda trial: scores[trial] or 0.0, reverse=True)[:2])
    log = searched.result.log.read_text()
    assert len(tuned) + len(re.findall(r"fine-tuning trial \d+ made it worse", log)) == 2
    refitted = [record.trial for record in searched.records if "refitted" in record.metrics]
    assert len(refitted) + len(re.findall(r"refitting trial \d+ made it worse", log)) == 2
    for record in searched.records:
        if "finetuned" in record.metrics:
            assert record.metrics["finetuned"]["accuracy"] >= record.metrics["recalibrated"]["accuracy"]
        if "refitted" in record.metrics:
            assert record.metrics["refitted"]["accuracy"] >= record.metrics["recalibrated"]["accuracy"]


def test_the_chosen_are_the_best_and_are_tested_timed_and_saved(searched: Searched, dense: TinyCNN) -> None:
    result, records, x = searched.result, searched.records, torch.randn(1, 3, 8, 8)
    assert {name: record.trial for name, record in result.best.items()} == {
        name: record.trial for name, record in choose_best(records, SETTINGS.keep).items()
    }
    chosen = set(result.networks)
    assert {record.trial for record in result.best.values()} <= chosen
    assert any(trial >= 2 for trial in chosen)
    assert chosen == {record.trial for record in records if "test" in record.metrics}
    for number, network in result.networks.items():
        record = records[number]
        assert evaluate(network, tiny_digits().test)["accuracy"] == pytest.approx(record.metrics["test"]["accuracy"])
        last = record.metrics.get("finetuned", record.metrics["recalibrated"])
        assert evaluate(network, tiny_digits().validation)["accuracy"] == pytest.approx(last["accuracy"])
        assert profile(network, x).params == record.params
        (timing,) = record.details.latencies
        assert timing.runtime == "PyTorch eager"
        assert timing.macs_ratio == record.baseline.macs / record.macs
        times = record.details.layer_times
        assert times is not None
        assert times.before.keys() == {*record.plan, "rest"}
        assert times.after.keys() == times.before.keys()
        assert all(seconds > 0 for name, seconds in times.after.items() if name != "rest")
        assert record.baseline.metrics["test"] == pytest.approx(evaluate(dense, tiny_digits().test))
        assert same_weights(load_compressed(searched.logs / record.details.weights, tiny_cnn()), network)


def test_the_same_seed_gives_the_same_trials(dense: TinyCNN, tmp_path: Path) -> None:
    (one, _), (other, _) = search(dense, tmp_path, "one"), search(dense, tmp_path, "other")
    assert [record.plan for record in one.records] == [record.plan for record in other.records]
    for mine, theirs in zip(one.records, other.records, strict=True):
        for stage in {"recalibrated", "finetuned"} & mine.metrics.keys():  # last bits may differ between threads
            assert mine.metrics[stage] == pytest.approx(theirs.metrics[stage], rel=1e-3)
    assert one.last_policy == other.last_policy != one.first_policy


def test_a_trial_that_fails_is_logged_and_the_search_goes_on(
    dense: TinyCNN, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = iter(range(100))

    def fail_once(*arguments: Any, **keywords: Any) -> int:
        if next(calls) == 2:  # every trial makes two calls, for a part of validation and for all of it
            raise RuntimeError("out of luck")
        return recalibrate_bn(*arguments, **keywords)

    monkeypatch.setattr("common.search.objective.recalibrate_bn", fail_once)
    result, _ = search(dense, tmp_path)
    assert [record.status for record in result.records] == ["ok", "failed"] + ["ok"] * 6
    assert result.records[1].error == "RuntimeError: out of luck"
    assert result.records[1].plan
    assert {record.details.sampler for record in result.records} == {"adaptive"}


def test_under_a_budget_every_trial_fills_it_and_the_first_is_its_allocation(dense: TinyCNN, tmp_path: Path) -> None:
    budget = Budget(macs=0.4)
    settings = SearchSettings(method="svd", trials=8, batch=4, budget=budget, keep=0.3, finetune_top=0, table=False)
    result = search_ranks(dense, tiny_digits(), settings, logs=tmp_path, run="b", on_trial=lambda _: None)
    for record in result.records:
        assert 0.37 < record.macs / record.baseline.macs <= 0.4
    decompositions = decompose_for_search(dense, tiny_digits(), settings.seed)
    _, divergences = measure_sensitivities(dense, tiny_digits(), decompositions, settings)
    x = tiny_digits().example()
    plan = plan_ranks(dense, x, "svd", budget, divergences=divergences, decompositions=decompositions)
    assert plan_of_record(result.records[0]).layers == plan.layers
    assert len({repr(record.plan) for record in result.records}) > 2


def test_the_pruner_decides_which_trials_are_evaluated_on_all_of_validation(dense: TinyCNN, tmp_path: Path) -> None:
    """After the start-up, a trial needs all of validation only if it is in the upper half on the part."""
    settings = SearchSettings(
        policy="random", trials=14, startup=5, climb=0.5, part=0.3, finetune_top=0, keep=0.1, size_weight=0.0
    )
    data = load_data("digits", image_size=8, batch_size=8, limit=96)
    result = search_ranks(dense, data, settings, logs=tmp_path, run="ladder", on_trial=lambda _: None)
    dense_part = evaluate(dense, list(data.validation)[:4])["accuracy"]
    climbed: list[float] = []
    for record in result.records:
        score = record.details.part["accuracy"] / dense_part
        if record.status == "pruned":
            assert (record.details.rung, record.metrics, record.latency) == ("part", {}, None)
            assert record.details.score == pytest.approx(score)
            assert score < statistics.median(climbed)
        else:
            assert len(climbed) < 5 or score >= statistics.median(climbed)
            climbed.append(score)
    assert len(climbed) >= 5
    assert sum(record.status == "pruned" for record in result.records) >= 2


def test_under_a_budget_the_merit_is_the_loss(dense: TinyCNN, tmp_path: Path) -> None:
    data = load_data("digits", image_size=8, batch_size=8, limit=96)
    settings = SearchSettings(
        budget=Budget(params=0.5), trials=14, startup=5, climb=0.5, part=0.3, finetune_top=0, keep=0.1
    )
    result = search_ranks(dense, data, settings, logs=tmp_path, run="merit", on_trial=lambda _: None)
    outcomes = [trial.user_attrs["outcome"] for trial in result.study.get_trials()]
    for record, outcome in zip(result.records, outcomes, strict=True):
        if outcome["rung"]:
            metrics = record.metrics["recalibrated"] if outcome["rung"] == 2 else record.details.part
            assert outcome["merit"] == -metrics["loss"]
        else:
            assert outcome["merit"] == outcome["score"]
    rungs = {outcome["rung"] for outcome in outcomes}
    assert 2 in rungs
    assert len(rungs) > 1


def test_a_loss_of_nan_is_the_worst(dense: TinyCNN) -> None:
    data = tiny_digits()
    decompositions = Decompositions(dense)
    x = data.example()
    budget = Budget(params=0.5)
    space = Space(dense, x, decompositions, "svd", budget)
    with_budget = Objective(dense, data, decompositions, space, SearchSettings(method="svd", budget=budget))
    assert with_budget.merit({"accuracy": 0.5, "loss": math.nan}, 0.5) == -math.inf
    assert with_budget.merit({"accuracy": 0.5, "loss": 2.0}, 0.5) == -2.0
    space = Space(dense, x, decompositions, "svd")
    without = Objective(dense, data, decompositions, space, SearchSettings(method="svd"))
    assert without.merit({"accuracy": 0.5, "loss": math.nan}, 0.5) == 0.5


def test_a_pareto_study_keeps_the_front(dense: TinyCNN, tmp_path: Path) -> None:
    settings = SearchSettings(policy="nsga2", objective="pareto", trials=6, finetune_top=0, keep=0.1)
    result = search_ranks(dense, tiny_digits(), settings, logs=tmp_path, run="front", on_trial=lambda _: None)
    front = result.study.best_trials
    assert front
    for trial in result.study.trials:
        record = result.records[trial.number]
        assert trial.values[:3] == [record.metrics["recalibrated"]["accuracy"], record.params, record.macs]
        assert record.latency is not None
        assert trial.values[3] == pytest.approx(record.latency.median_s) or "test" in record.metrics


@pytest.mark.parametrize("policy", ["uniform", "energy", "vbmf", "budget"])
def test_a_rank_rule_has_one_plan_at_the_budget(policy: Any, dense: TinyCNN, tmp_path: Path) -> None:
    settings = SearchSettings(policy=policy, budget=Budget(params=0.5), keep=0.1, finetune_top=0, method="tucker2")
    result = search_ranks(dense, tiny_digits(), settings, logs=tmp_path, run=policy, on_trial=lambda _: None)
    (record,) = result.records
    assert record.rule == f"{policy} rule"
    assert record.params <= 0.5 * record.baseline.params


def test_no_password_reaches_a_log(dense: TinyCNN, tmp_path: Path) -> None:
    command = "papermill resnet18.ipynb -p storage postgresql+psycopg://me:secret@host/db -p seed 0"
    settings = dataclasses.replace(SETTINGS, trials=1, finetune_top=0)
    result = search_ranks(dense, tiny_digits(), settings, logs=tmp_path, run="run", command=command)
    assert result.records[0].environment["command"] == command.replace("secret", "***")
    assert "secret" not in result.log.read_text()


class Deep(nn.Module):
    """A network with a head that only training runs, like GoogLeNet."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.helper = tiny_cnn(), nn.Sequential(nn.Flatten(), nn.Linear(192, 300), nn.Linear(300, 10))

    def forward(self, x: torch.Tensor) -> object:
        y = self.body(x)
        return (y, self.helper(x)) if self.training else y


@pytest.mark.parametrize("policy", ["adaptive", "energy", "uniform"])
def test_a_budget_ignores_heads_that_only_training_runs(policy: Any, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = Deep().eval()
    settings = SearchSettings(
        method="svd", policy=policy, trials=2, batch=2, budget=Budget(params=0.5), finetune_top=1, table=False
    )
    result = search_ranks(model, tiny_digits(), settings, logs=tmp_path, run="deep", on_trial=lambda _: None)
    cost = profile(model, torch.randn(1, 3, 8, 8))
    idle = cost.params - cost.params_in_use
    assert idle > 0.5 * cost.params
    for record in result.records:
        assert 0.4 * cost.params_in_use < record.params - idle <= 0.5 * cost.params_in_use
    assert result.best["metric"].details.rung in ("finetuned", "full")
