from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any

import optuna
import pytest
import torch
from torch import nn

from common.compression import load_compressed, save_compressed
from common.planning import Budget, RankPlan, plan_ranks
from common.search import SearchResult, SearchSettings, search_ranks
from common.search.finalists import Finalists, best_first
from common.search.objective import Objective
from common.search.preparation import decompose_for_search
from common.search.study.storage import FINISHED
from common.training import evaluate_images, train
from common.trials import TrialRecord, read_log
from tests.networks import TinyCNN, same_weights, tiny_cnn, tiny_digits
from tests.records import make_record
from tests.search.studies import SETTINGS, search


def search_by_svd(dense: TinyCNN, logs: Path, run: str = "b", **changes: Any) -> SearchResult:
    """A small search within a quarter of the MACs."""
    settings = dataclasses.replace(SETTINGS, method="svd", budget=Budget(macs=0.25), seed=1, **changes)
    return search_ranks(dense, tiny_digits(), settings, logs=logs, run=run, on_trial=lambda _: None)


def killed(*_: object) -> None:
    """What takes the place of a function at which the process is stopped."""
    raise KeyboardInterrupt


def test_the_test_split_is_read_for_the_chosen_only(
    dense: TinyCNN, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A search without an accepted trial reads it once, for the dense network."""
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


def test_a_finetuning_that_diverges_or_lacks_memory_does_not_end_the_search(
    dense: TinyCNN, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    errors = iter([FloatingPointError("the loss is nan"), RuntimeError("can't allocate memory")])

    def diverge(*_: Any, **__: Any) -> None:
        raise next(errors)

    monkeypatch.setattr("common.search.finalists.train", diverge)
    result, _ = search(dense, tmp_path)
    assert not any("finetuned" in record.metrics for record in result.records)
    assert result.best
    assert "failed: FloatingPointError: the loss is nan" in result.log.read_text()
    assert "failed: RuntimeError: can't allocate memory" in result.log.read_text()


def test_the_dense_network_gets_the_same_finetuning_once(
    dense: TinyCNN, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    described: list[str] = []

    def spy(*given: Any, **named: Any) -> Any:
        described.append(named["description"])
        assert named["teacher"] is dense
        return train(*given, **named)

    monkeypatch.setattr("common.search.finalists.train", spy)
    asked = dataclasses.replace(SETTINGS, method="svd", budget=Budget(macs=0.25), trials=2, keep=0.1, finetune_top=1)

    def run(folder: str, **changes: Any) -> SearchResult:
        settings = dataclasses.replace(asked, **changes)
        return search_ranks(dense, tiny_digits(), settings, logs=tmp_path / folder, run="run", on_trial=lambda _: None)

    with monkeypatch.context() as patch:
        patch.setattr(Objective, "time", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        assert not run("on").finished
    result = run("on")
    assert described.count("fine-tuning dense") == 1
    file = result.log.with_name(f"{result.log.stem}-dense-finetuned.safetensors")
    metrics = [evaluate_images(network, tiny_digits().test) for network in (load_compressed(file, dense), dense)]
    assert metrics[0].metrics != metrics[1].metrics
    tuned = [record for record in result.records if "finetuned" in record.metrics and record.details.weights]
    assert tuned
    for record in result.records:
        difference = record.details.tuned_difference
        assert (difference is not None) == (record in tuned)
        if difference:
            value = record.metrics["test"]["accuracy"] - metrics[0].metrics["accuracy"]
            assert difference.value == pytest.approx(value)
    alone = run("off", finetune_dense=False)
    assert not alone.log.with_name(file.name).exists()
    assert not any(record.details.tuned_difference for record in alone.records)


def test_the_best_trial_is_refitted_and_keeps_that_after_a_stop(
    dense: TinyCNN, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = dataclasses.replace(
        SETTINGS, method="svd", budget=Budget(macs=0.25), trials=3, keep=0.1, finetune_top=0, seed=1
    )

    def run(folder: str, **changes: Any) -> SearchResult:
        asked = dataclasses.replace(settings, **changes)
        return search_ranks(dense, tiny_digits(), asked, logs=tmp_path / folder, run="b", on_trial=lambda _: None)

    plain, found = run("plain", refit=False), run("whole")
    refitted = [record for record in found.records if "refitted" in record.metrics]
    assert len(refitted) == 1
    record = refitted[0]
    assert record.metrics["refitted"]["loss"] < record.metrics["recalibrated"]["loss"]
    assert not any("refitted" in each.metrics for each in plain.records)
    with torch.no_grad():
        x = tiny_digits().example()
        assert not torch.equal(found.networks[record.trial](x), plain.networks[record.trial](x))

    with monkeypatch.context() as patch:
        patch.setattr(Finalists, "test_chosen", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        assert not run("stopped").finished
    with monkeypatch.context() as patch:
        patch.setattr(Objective, "refitted", lambda *_: pytest.fail("it was refitted before the stop"))
        again = run("stopped")
    assert again.finished
    assert same_weights(again.networks[record.trial], found.networks[record.trial])
    assert again.records[record.trial].metrics["refitted"] == record.metrics["refitted"]


def test_a_refit_that_fails_or_does_harm_is_left_out(
    dense: TinyCNN, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: object) -> None:
        raise ValueError("its inputs on the calibration data are not finite")

    for name, made, line in (
        ("fails", fails, "failed: ValueError: its inputs on"),
        ("harms", lambda *_: tiny_cnn(seed=5), "made it worse; the network stays as it was"),
    ):
        monkeypatch.setattr(Objective, "refitted", made)
        result, _ = search(dense, tmp_path / name)
        assert line in result.log.read_text()
        assert not any("refitted" in record.metrics for record in result.records)
        assert result.best


def test_under_a_budget_only_trials_within_it_are_finetuned(dense: TinyCNN, tmp_path: Path) -> None:
    x = tiny_digits().example()
    kept = decompose_for_search(dense, tiny_digits(), seed=0)
    large, small = (  # a trial above the budget is more accurate than all trials within it
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


def test_among_trials_that_differ_by_chance_the_least_loss_comes_first() -> None:
    """The standard error of 80% on 400 images is 2%."""
    figures = [(0.80, 0.9), (0.785, 0.5), (0.779, 0.1), (0.20, 0.05), (0.77, 0.4)]
    records = [
        make_record(trial=trial, metrics={"recalibrated": {"accuracy": accuracy, "loss": loss}})
        for trial, (accuracy, loss) in enumerate(figures)
    ]
    assert [record.trial for record in best_first(records, 400)] == [1, 0, 2, 4, 3]
    assert best_first([make_record(metrics={})], 400) == []


def test_under_a_budget_the_choice_ignores_differences_by_chance(dense: TinyCNN, tmp_path: Path) -> None:
    settings = dataclasses.replace(
        SETTINGS, method="svd", policy="random", budget=Budget(macs=0.4), climb=1, keep=1.0, finetune_top=1, seed=4
    )
    result = search_ranks(dense, tiny_digits(), settings, logs=tmp_path, run="b", on_trial=lambda _: None)
    raw = [r.replace(metrics={"recalibrated": r.metrics["recalibrated"]}) for r in result.records]
    least = best_first(raw, 96)[0].trial
    accuracies = [record.metrics["recalibrated"]["accuracy"] for record in result.records]
    assert accuracies[least] < max(accuracies)  # otherwise this seed does not test the choice
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
    settings = SearchSettings(method="svd", trials=2, budget=budget, finetune_top=1, finetune_dense=False)
    result = search_ranks(dense, tiny_digits(), settings, logs=tmp_path, run="b", on_trial=lambda _: None)
    assert any("finetuned" in record.metrics for record in result.records) == kept
    assert ("made it worse" in result.log.read_text()) != kept


def test_a_stop_between_a_finalists_file_and_its_record_repeats_no_training_on_top(
    dense: TinyCNN, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(folder: str) -> SearchResult:
        return search_by_svd(dense, tmp_path / folder, trials=3, keep=0.1, finetune_top=1)

    whole = run("whole")
    tuned = next(record for record in whole.records if "finetuned" in record.metrics and "refitted" in record.metrics)

    def saved_and_killed(network: nn.Module, file: Path) -> Path:
        path = save_compressed(network, file)
        if file.name == f"b-trial{tuned.trial}.safetensors":
            raise KeyboardInterrupt
        return path

    with monkeypatch.context() as patch:
        patch.setattr("common.search.finalists.save_compressed", saved_and_killed)
        assert not run("stopped").finished
    again = run("stopped")
    assert again.finished
    record = again.records[tuned.trial]
    assert record.metrics["finetuned"] == tuned.metrics["finetuned"]
    assert same_weights(again.networks[tuned.trial], whole.networks[tuned.trial])
    assert not list((tmp_path / "stopped").glob("*-refitted.safetensors"))


@pytest.mark.parametrize("place", ["before the log", "before the end"])
def test_what_a_finalist_reached_stays_in_the_log_wherever_the_search_stops(
    dense: TinyCNN, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    def run(folder: str) -> SearchResult:
        return search_by_svd(dense, tmp_path / folder, trials=3, keep=0.1, finetune_top=3)

    def stages(records: Iterable[TrialRecord]) -> dict[int, set[str]]:
        return {record.trial: {*record.metrics} for record in records}

    write = Finalists._write

    def killed_once_finetuned(self: Finalists, record: TrialRecord) -> None:
        if "finetuned" in record.metrics:
            raise KeyboardInterrupt
        write(self, record)

    whole = run("whole")
    assert sum("finetuned" in record.metrics for record in whole.records) > 1
    with monkeypatch.context() as patch:
        if place == "before the log":
            patch.setattr(Finalists, "_write", killed_once_finetuned)
        else:
            patch.setattr(Finalists, "test_chosen", killed)
        assert not run("stopped").finished
    if place != "before the log":
        for file in (tmp_path / "stopped").glob("*-refitted.safetensors"):
            file.unlink()
    again = run("stopped")
    assert again.finished
    for found in (again.records, run("stopped").records, read_log(tmp_path / "stopped" / "b.log")[0]):
        assert stages(found) == stages(whole.records)


def test_more_trials_after_a_stop_replace_no_finalist_by_an_untuned_network(
    dense: TinyCNN, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = dataclasses.replace(
        SETTINGS, method="svd", policy="random", budget=Budget(macs=0.4), climb=1, finetune_top=1, keep=0.3
    )

    def run(seed: int, trials: int) -> SearchResult:
        more = dataclasses.replace(settings, seed=seed, trials=trials)
        return search_ranks(dense, tiny_digits(), more, logs=tmp_path, run=f"s{seed}", on_trial=lambda _: None)

    def metrics(records: Iterable[TrialRecord]) -> dict[int, dict[str, dict[str, float]]]:
        return {record.trial: dict(record.metrics) for record in records}

    tuned = 0
    for seed in (1, 6):
        with monkeypatch.context() as patch:
            patch.setattr(Finalists, "test_chosen", killed)
            first = run(seed, 1)
        found = run(seed, 6)
        assert found.finished
        for record in first.records:
            tuned += "finetuned" in record.metrics
            assert record.metrics.keys() <= found.records[record.trial].metrics.keys()
        assert metrics(run(seed, 6).records) == metrics(found.records) == metrics(read_log(found.log)[0])
        for number, network in found.networks.items():
            assert same_weights(
                network, load_compressed(found.log.with_name(f"s{seed}-trial{number}.safetensors"), dense)
            )
    assert tuned


def test_a_stop_before_a_search_is_finished_repeats_no_refitting(
    dense: TinyCNN, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = partial(search_by_svd, dense, tmp_path, "a**b[1]", trials=2, finetune_top=0)
    set_attribute = optuna.Study.set_user_attr

    def killed_at_the_end(study: optuna.Study, key: str, value: Any) -> None:
        if key == FINISHED:
            raise KeyboardInterrupt
        set_attribute(study, key, value)

    with monkeypatch.context() as patch:
        patch.setattr(optuna.Study, "set_user_attr", killed_at_the_end)
        assert not run().finished
    assert list(tmp_path.glob("*-refitted.safetensors"))
    monkeypatch.setattr(Objective, "refitted", lambda *_: pytest.fail("it was refitted before the stop"))
    found = run()
    assert found.finished
    assert any("refitted" in record.metrics for record in found.records)
    assert not list(tmp_path.glob("*-refitted.safetensors"))


def test_the_log_holds_what_was_measured_when_a_lost_network_was_made_again(
    dense: TinyCNN, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = partial(search_by_svd, dense, tmp_path, trials=4, finetune_top=3)
    with monkeypatch.context() as patch:
        patch.setattr(Finalists, "test_chosen", killed)
        assert not run().finished
    for file in tmp_path.glob("b-trial*.safetensors"):
        file.unlink()
    refitted = Objective.refitted

    def otherwise(self: Objective, plan: RankPlan) -> nn.Module:
        network = refitted(self, plan)
        with torch.no_grad():
            for parameter in network.parameters():
                parameter.mul_(1.001)  # another processor rounds otherwise
        return network

    monkeypatch.setattr(Objective, "refitted", otherwise)
    found = run()
    logged = {record.trial: record.metrics for record in read_log(found.log)[0]}
    for record in found.records:
        assert dict(record.metrics) == dict(logged[record.trial])
