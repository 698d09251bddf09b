from __future__ import annotations

import dataclasses
import json
import math
import statistics
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from common.calibration import recalibrate_bn
from common.compression import load_compressed
from common.data import load_data
from common.data.normalization import IMAGENET, remember_normalization
from common.models import build_model
from common.network import profile
from common.planning import Budget, Entropy, Fixed, plan_ranks
from common.planning.decompositions import Decompositions
from common.search import SearchResult, SearchSettings, search_ranks
from common.search.finalists import best_first
from common.search.objective import Objective
from common.search.preparation import decompose_for_search, measure_sensitivities
from common.search.space import Space
from common.search.study.records import plan_of_record
from common.search.study.storage import open_study, opened_storage
from common.training import TrainingSettings, evaluate, train
from common.trials import TrialRecord, read_log
from common.trials.best import choose_best
from tests.networks import TinyCNN, same_weights, tiny_cnn, tiny_digits
from tests.records import make_record

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
    kept = decompose_for_search(dense, tiny_digits(), seed=0)
    plans = [
        plan_ranks(dense, x, "svd", Fixed(4), decompositions=kept),
        plan_ranks(dense, x, "arsvd", Entropy(0.5), decompositions=kept),
    ]
    result, seen = search(dense, tmp_path, plans=plans)
    assert all(torch.equal(before[name], tensor) for name, tensor in dense.state_dict().items())

    records, skipped = read_log(result.log)
    assert not skipped
    assert [record.trial for record in records] == list(range(10))
    assert records == [TrialRecord.from_dict(json.loads(record.to_line())) for record in result.records]
    assert [record.rule for record in records] == ["fixed", "entropy"] + ["adaptive policy"] * 8
    assert [record.method for record in records] == ["svd", "svd"] + ["htd"] * 8
    assert {record.status for record in records} == {"ok"}
    tuned = [record.trial for record in records if "finetuned" in record.metrics]
    scores = {record.trial: record.details.score for record in records}
    assert set(tuned) <= set(sorted(scores, key=lambda trial: scores[trial] or 0.0, reverse=True)[:2])
    assert len(tuned) + result.log.read_text().count("made it worse") == 2
    for record in records:
        if "finetuned" in record.metrics:
            assert record.metrics["finetuned"]["accuracy"] >= record.metrics["recalibrated"]["accuracy"]

    dense_cost = profile(dense, x)
    for record in records:
        assert "recalibrated" in record.metrics
        assert ("raw" in record.metrics) == (record.trial < 2 or "test" in record.metrics)
        assert record.details.study == "run"
        assert record.environment["command"].startswith("python ")
        assert record.params < dense_cost.params == record.baseline.params
        assert record.macs <= dense_cost.macs == record.baseline.macs
        assert record.latency is not None
        assert (record.latency.median_s or 0) > 0
        assert record.latency.note or (record.latency.speedup or 0) > 0
        assert record.seconds > 0
        assert bool(record.details.spectra) == (record.trial == 0)
        layers = record.details.layers
        assert layers.keys() == {name for name, made in record.plan.items() if made.dense is None}
        assert all(0 <= found.error < 1.5 and 0 < found.params < 1 for found in layers.values())
        assert all(0 < found.macs <= 1 for found in layers.values())

    spectra = records[0].details.spectra
    assert spectra.keys() == records[0].plan.keys()
    assert all(values == sorted(values, reverse=True) for values in spectra.values())
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
        (timing,) = record.details.latencies
        assert timing.runtime == "PyTorch eager"
        assert timing.macs_ratio == record.baseline.macs / record.macs
        times = record.details.layer_times
        assert times is not None
        assert times.before.keys() == {*record.plan, "rest"}
        assert times.after.keys() == times.before.keys()
        assert all(seconds > 0 for name, seconds in times.after.items() if name != "rest")
        assert record.baseline.metrics["test"] == pytest.approx(evaluate(dense, tiny_digits().test))
        assert same_weights(load_compressed(tmp_path / record.details.weights, tiny_cnn()), network)
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
        for stage in {"recalibrated", "finetuned"} & mine.metrics.keys():  # last bits may differ between threads
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
        if next(calls) == 2:  # every trial makes two calls, for a part of validation and for all of it
            raise RuntimeError("out of luck")
        return recalibrate_bn(*arguments, **keywords)

    monkeypatch.setattr("common.search.objective.recalibrate_bn", fail_once)
    result, _ = search(dense, tmp_path)
    assert [record.status for record in result.records] == ["ok", "failed"] + ["ok"] * 6
    assert result.records[1].error == "RuntimeError: out of luck"
    assert result.records[1].plan
    assert {record.details.sampler for record in result.records} == {"adaptive"}


def test_a_finetuning_that_diverges_does_not_end_the_search(
    dense: TinyCNN, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def diverge(*_: Any, **__: Any) -> None:
        raise FloatingPointError("the loss is nan")

    monkeypatch.setattr("common.search.finalists.train", diverge)
    result, _ = search(dense, tmp_path)
    assert not any("finetuned" in record.metrics for record in result.records)
    assert result.best
    assert result.log.read_text().count("failed: the loss is nan") == 2


def test_a_finished_run_is_read_again_and_never_written_over(dense: TinyCNN, tmp_path: Path) -> None:
    first, _ = search(dense, tmp_path)
    log = first.log.read_bytes()
    again, shown = search(dense, tmp_path)
    assert first.log.read_bytes() == log
    assert not shown
    assert again.records == read_log(first.log)[0]
    assert [record.trial for record in again.records] == [record.trial for record in first.records]
    assert {name: record.trial for name, record in again.best.items()} == {
        name: record.trial for name, record in first.best.items()
    }
    assert again.networks.keys() == first.networks.keys()
    assert all(same_weights(network, again.networks[number]) for number, network in first.networks.items())
    assert again.finished
    assert not again.remaining
    with pytest.raises(ValueError, match=r"run='run' was begun differently"):
        search(tiny_cnn(seed=5), tmp_path)


def stop_after(count: int) -> Any:
    """An ``on_trial`` that presses Ctrl-C when so many trials have been shown."""
    shown = iter(range(1, 1000))

    def stop(_: TrialRecord) -> None:
        if next(shown) == count:
            raise KeyboardInterrupt

    return stop


def test_ctrl_c_ends_with_what_there_is_and_the_same_call_goes_on(
    dense: TinyCNN, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, _ = search(dense, tmp_path, "whole")
    partial = search_ranks(dense, tiny_digits(), SETTINGS, logs=tmp_path, run="cut", on_trial=stop_after(3))
    assert [record.trial for record in partial.records] == [0, 1, 2]
    assert (partial.remaining, partial.networks) == (5, {})
    assert not any("test" in record.metrics for record in partial.records)
    calls = iter(range(100))

    def stop_inside(*arguments: Any, **keywords: Any) -> int:
        if next(calls) == 5:  # in the third trial from here, on its way from a part of validation to all of it
            raise KeyboardInterrupt
        return recalibrate_bn(*arguments, **keywords)

    with monkeypatch.context() as patch:
        patch.setattr("common.search.objective.recalibrate_bn", stop_inside)
        partial, _ = search(dense, tmp_path, "cut")
    assert [record.trial for record in partial.records] == [0, 1, 2, 3, 4]
    rest, seen = search(dense, tmp_path, "cut")
    assert rest.remaining == 0
    assert [record.trial for record in seen][:3] == [5, 6, 7]
    assert [record.plan for record in rest.records] == [record.plan for record in whole.records]
    assert rest.last_policy == whole.last_policy
    assert [record.trial for record in read_log(tmp_path / "cut.log")[0]] == list(range(8))


def test_an_interrupted_finetuning_goes_on_without_the_ones_that_are_done(
    dense: TinyCNN, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained: list[str] = []

    def spy(*arguments: Any, **keywords: Any) -> Any:
        trained.append(keywords["description"])
        if len(trained) == 2:
            raise KeyboardInterrupt
        return train(*arguments, **keywords)

    monkeypatch.setattr("common.search.finalists.train", spy)
    first, _ = search(dense, tmp_path, "tuned")
    assert (first.remaining, first.networks) == (0, {})
    last, _ = search(dense, tmp_path, "tuned")
    assert len(trained) == 3
    assert trained[1] == trained[2] != trained[0]
    assert last.networks
    for number, network in last.networks.items():
        record = last.records[number]
        stage = record.metrics.get("finetuned", record.metrics["recalibrated"])
        assert evaluate(network, tiny_digits().validation)["accuracy"] == pytest.approx(stage["accuracy"])


def test_a_run_goes_on_only_with_the_same_network_data_and_settings(dense: TinyCNN, tmp_path: Path) -> None:
    stop = search_ranks(dense, tiny_digits(), SETTINGS, logs=tmp_path, run="one", on_trial=stop_after(1))
    assert stop.remaining == 7
    with pytest.raises(ValueError, match=r"^run='one' was begun differently: settings.seed=5 \(it was 0\);"):
        search_ranks(dense, tiny_digits(), dataclasses.replace(SETTINGS, seed=5), logs=tmp_path, run="one")
    with pytest.raises(ValueError, match=r"the dense network.s weights; make the same call or name another run$"):
        search_ranks(tiny_cnn(3), tiny_digits(), SETTINGS, logs=tmp_path, run="one")
    with pytest.raises(ValueError, match=r"begun differently: the validation split, load_data's limit=50 \(it was"):
        search_ranks(dense, tiny_digits(limit=50), SETTINGS, logs=tmp_path, run="one")
    augmented = load_data("digits", image_size=8, batch_size=32, limit=96, augment=True)
    with pytest.raises(ValueError, match=r"begun differently: load_data's augment=True \(it was False\);"):
        search_ranks(dense, augmented, SETTINGS, logs=tmp_path, run="one")
    with pytest.raises(ValueError, match="begun differently: the decompositions "):
        search_ranks(
            dense, tiny_digits(), SETTINGS, logs=tmp_path, run="one", decompositions=Decompositions(dense, sweeps=1)
        )
    assert stop.log.read_text().splitlines()[-1].endswith("stopped; the same call with run='one' goes on from here")
    assert not stop.finished
    more = dataclasses.replace(SETTINGS, trials=10, finetune_top=2)
    result = search_ranks(dense, tiny_digits(), more, logs=tmp_path, run="one", on_trial=lambda _: None)
    assert [record.trial for record in result.records] == list(range(10))
    assert result.finished


def test_a_log_without_a_study_is_never_written_over(dense: TinyCNN, tmp_path: Path) -> None:
    (tmp_path / "old.log").write_text("something\n")
    for storage in (None, tmp_path / "elsewhere.journal"):
        with pytest.raises(ValueError, match=r"run='old' has a log in .* already"):
            search_ranks(dense, tiny_digits(), SETTINGS, logs=tmp_path, run="old", storage=storage)


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


def test_under_a_budget_only_those_that_keep_to_it_are_finetuned(dense: TinyCNN, tmp_path: Path) -> None:
    x = tiny_digits().example()
    kept = decompose_for_search(dense, tiny_digits(), seed=0)
    large, small = (  # one is more accurate than any at the budget
        plan_ranks(dense, x, "svd", Budget(macs=macs), decompositions=kept) for macs in (0.9, 0.25)
    )
    settings = SearchSettings(
        method="svd", trials=2, budget=Budget(macs=0.3), finetune_top=3, keep=0.1, finetune=SETTINGS.finetune
    )
    plans = [large, small]
    result = search_ranks(dense, tiny_digits(), settings, plans=plans, logs=tmp_path, run="b", on_trial=lambda _: None)
    reached = [record.metrics["recalibrated"]["accuracy"] for record in result.records]
    assert reached[0] > max(reached[1:])
    text = result.log.read_text()
    tried = {record.trial for record in result.records if "finetuned" in record.metrics}
    tried |= {number for number in range(4) if f"fine-tuning trial {number} made it worse" in text}
    assert tried == {1, 2, 3}


def test_of_those_that_differ_by_luck_the_one_with_the_least_loss_comes_first() -> None:
    """The standard error of 80% on 400 images is 2%."""
    figures = [(0.80, 0.9), (0.785, 0.5), (0.779, 0.1), (0.20, 0.05), (0.77, 0.4)]
    records = [
        make_record(trial=trial, metrics={"recalibrated": {"accuracy": accuracy, "loss": loss}})
        for trial, (accuracy, loss) in enumerate(figures)
    ]
    assert [record.trial for record in best_first(records, 400)] == [1, 0, 2, 4, 3]
    assert best_first([make_record(metrics={})], 400) == []


def test_under_a_budget_the_chosen_is_not_the_luckiest(dense: TinyCNN, tmp_path: Path) -> None:
    settings = dataclasses.replace(
        SETTINGS, method="svd", policy="random", budget=Budget(macs=0.4), climb=1, keep=1.0, finetune_top=1, seed=6
    )
    result = search_ranks(dense, tiny_digits(), settings, logs=tmp_path, run="b", on_trial=lambda _: None)
    raw = [r.replace(metrics={"recalibrated": r.metrics["recalibrated"]}) for r in result.records]
    least = best_first(raw, 96)[0].trial
    accuracies = [record.metrics["recalibrated"]["accuracy"] for record in result.records]
    assert accuracies[least] < max(accuracies)  # otherwise the seed tells nothing
    text = result.log.read_text()
    tuned = [r.trial for r in result.records if "finetuned" in r.metrics or f"trial {r.trial} made it worse" in text]
    assert tuned == [least]
    assert list(result.best) == ["metric"]
    assert "test" in result.best["metric"].metrics


@pytest.mark.parametrize(
    ("budget", "lost", "loss", "kept"),
    [
        (Budget(macs=0.4), 0.01, -0.1, True),
        (Budget(macs=0.4), 0.01, 0.1, False),
        (Budget(macs=0.4), 0.2, -0.1, False),
        (None, 0.01, -0.1, False),
    ],
)
def test_a_finetuning_that_lowers_the_loss_may_cost_a_little_of_the_metric_under_a_budget(
    budget: Budget | None,
    lost: float,
    loss: float,
    kept: bool,
    dense: TinyCNN,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    measured = Objective.evaluate

    def tune(network: Any, *_: Any, **__: Any) -> list[dict[str, float]]:
        network.tuned = True
        return []

    def evaluate_tuned(self: Objective, network: Any) -> dict[str, float]:
        found = measured(self, network)
        if hasattr(network, "tuned"):
            found = {**found, "accuracy": found["accuracy"] - lost, "loss": found["loss"] + loss}
        return found

    monkeypatch.setattr("common.search.finalists.train", tune)
    monkeypatch.setattr(Objective, "evaluate", evaluate_tuned)
    settings = SearchSettings(method="svd", trials=2, budget=budget, finetune_top=1)
    result = search_ranks(dense, tiny_digits(), settings, logs=tmp_path, run="b", on_trial=lambda _: None)
    assert any("finetuned" in record.metrics for record in result.records) == kept
    assert ("made it worse" in result.log.read_text()) != kept


def test_the_pruner_decides_who_climbs(dense: TinyCNN, tmp_path: Path) -> None:
    """After the start-up a trial is measured on all of validation only if it is in the upper half on the part."""
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


def test_under_a_budget_the_policy_goes_by_the_loss(dense: TinyCNN, tmp_path: Path) -> None:
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


def test_a_loss_that_is_no_number_is_the_worst(dense: TinyCNN) -> None:
    data = tiny_digits()
    decompositions = Decompositions(dense)
    x = data.example()
    with_budget = Objective(dense, data, decompositions, Space(dense, x, decompositions, "svd", Budget(params=0.5)))
    assert with_budget.merit({"accuracy": 0.5, "loss": math.nan}, 0.5) == -math.inf
    assert with_budget.merit({"accuracy": 0.5, "loss": 2.0}, 0.5) == -2.0
    without = Objective(dense, data, decompositions, Space(dense, x, decompositions, "svd"))
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


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"policy": "energy"}, r"policy='energy' needs a budget; give budget=Budget\(params=..., macs=...\)"),
        ({"method": "mixed"}, "method='mixed' needs a budget"),
        ({"budget": Budget(macs=0.001)}, r"cannot be met: the least that can be kept is macs=0\.\d+$"),
    ],
)
def test_bad_settings_are_refused(changes: dict[str, Any], sentence: str, dense: TinyCNN, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=sentence):
        search_ranks(dense, tiny_digits(), SearchSettings(**changes), logs=tmp_path, run="bad")


def test_budgets_of_latency_are_refused() -> None:
    with pytest.raises(ValueError, match=r"latency=0\.5.* a search keeps to params and macs"):
        SearchSettings(budget=Budget(macs=0.5, latency=0.5))


def test_a_run_that_was_stopped_early_cannot_change_its_objective(dense: TinyCNN, tmp_path: Path) -> None:
    (tmp_path / "run.journal").touch()
    with opened_storage(tmp_path / "run.journal") as opened:
        open_study("run", opened, ["maximize"])  # as a search leaves it that is stopped at its sensitivities
    with pytest.raises(ValueError, match="run='run' was begun with another objective than 'pareto'"):
        search_ranks(dense, tiny_digits(), SearchSettings(objective="pareto", trials=2), logs=tmp_path, run="run")


def test_more_than_five_epochs_of_finetuning_are_refused() -> None:
    with pytest.raises(ValueError, match="at most 5 epochs"):
        SearchSettings(finetune=TrainingSettings(epochs=5.5))


def test_what_only_finetuning_would_find_is_refused_before_the_first_trial(dense: TinyCNN, tmp_path: Path) -> None:
    wrong = dataclasses.replace(SETTINGS, finetune=dataclasses.replace(SETTINGS.finetune, features=("layer9",)))
    with pytest.raises(ValueError, match=r"^features='layer9': the network has no module of this name$"):
        search_ranks(dense, tiny_digits(), wrong, logs=tmp_path, run="run")
    model = build_model("resnet20", 10)
    remember_normalization(model, IMAGENET)
    with pytest.raises(ValueError, match=r"^the network was trained on pixels normalised by .*normalize='imagenet'"):
        search_ranks(model, tiny_digits(), SETTINGS, logs=tmp_path, run="run")
    assert not list(tmp_path.iterdir())


def test_no_password_reaches_a_log(dense: TinyCNN, tmp_path: Path) -> None:
    command = "papermill resnet18.ipynb -p storage postgresql+psycopg://me:secret@host/db -p seed 0"
    settings = dataclasses.replace(SETTINGS, trials=1, finetune_top=0)
    result = search_ranks(dense, tiny_digits(), settings, logs=tmp_path, run="run", command=command)
    assert result.records[0].environment["command"] == command.replace("secret", "***")
    assert "secret" not in result.log.read_text()


@pytest.mark.parametrize("below", ["file", "file/logs", "file/far/below"])
def test_logs_that_cannot_be_written_are_found_before_any_work(
    below: str, dense: TinyCNN, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("precious")
    monkeypatch.setattr("common.search.search.decompose_for_search", pytest.fail)
    monkeypatch.setattr("common.search.search.check_runtime", pytest.fail)
    for run, storage in ((None, None), ("run", None), ("run", f"sqlite:///{tmp_path}/studies.db")):
        with pytest.raises(ValueError, match=rf"^logs='{tmp_path}/{below}'.* (a file of that name|Not a directory)$"):
            search_ranks(dense, tiny_digits(), SETTINGS, logs=tmp_path / below, run=run, storage=storage)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


class Frames(nn.Module):
    """A network without a layer that could be factored."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv1d(3, 10, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.conv(x.flatten(2)).mean(2)
        return y


def hooked_weight() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.utils.parametrizations.weight_norm(nn.Linear(192, 10)))


@pytest.mark.parametrize(
    ("make", "reason"),
    [(Frames, r"nothing can be factored: .* Conv1d x 1"), (hooked_weight, "1 stays dense: its weight is computed")],
)
def test_a_network_that_offers_no_choice_is_told_so_at_once(make: Any, reason: str, tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match=f"there is nothing to search: {reason}"):
        result = search_ranks(make(), tiny_digits(), SETTINGS, logs=tmp_path, run="none")
    assert not result.records
    assert not list(tmp_path.iterdir())


class Deep(nn.Module):
    """As GoogLeNet: a head that only training runs."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.helper = tiny_cnn(), nn.Sequential(nn.Flatten(), nn.Linear(192, 300), nn.Linear(300, 10))

    def forward(self, x: torch.Tensor) -> object:
        y = self.body(x)
        return (y, self.helper(x)) if self.training else y


@pytest.mark.parametrize("policy", ["adaptive", "energy", "uniform"])
def test_a_budget_leaves_heads_out_that_only_training_runs(policy: Any, tmp_path: Path) -> None:
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


def test_a_finished_run_takes_no_more_trials(dense: TinyCNN, tmp_path: Path) -> None:
    search(dense, tmp_path)
    more = dataclasses.replace(SETTINGS, trials=SETTINGS.trials + 1)
    with pytest.raises(ValueError, match=r"run='run' is finished with \d+ trials, and \d+ are asked for"):
        search_ranks(dense, tiny_digits(), more, logs=tmp_path, run="run")
