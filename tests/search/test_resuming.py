from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from common.calibration import recalibrate_bn
from common.data import load_data
from common.planning import Budget
from common.planning.decompositions import Decompositions
from common.search import SearchSettings, search_ranks
from common.search.study.storage import open_study, opened_storage
from common.training import TrainingSettings, evaluate, train
from common.trials import TrialRecord, read_log
from tests.networks import TinyCNN, same_weights, tiny_cnn, tiny_digits
from tests.search.studies import SETTINGS, search


def test_a_finished_run_is_read_again_and_never_overwritten(dense: TinyCNN, tmp_path: Path) -> None:
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
    """Return an ``on_trial`` that presses Ctrl-C after this many trials."""
    shown = iter(range(1, 1000))

    def stop(_: TrialRecord) -> None:
        if next(shown) == count:
            raise KeyboardInterrupt

    return stop


def test_ctrl_c_returns_the_trials_so_far_and_the_same_call_continues(
    dense: TinyCNN, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, _ = search(dense, tmp_path, "whole")
    partial = search_ranks(dense, tiny_digits(), SETTINGS, logs=tmp_path, run="cut", on_trial=stop_after(3))
    assert [record.trial for record in partial.records] == [0, 1, 2]
    assert (partial.remaining, partial.networks) == (5, {})
    assert not any("test" in record.metrics for record in partial.records)
    calls = iter(range(100))

    def stop_inside(*arguments: Any, **keywords: Any) -> int:
        if next(calls) == 5:  # in the third trial from here, between a part of validation and all of it
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


def test_an_interrupted_finetuning_continues_with_the_remaining_finalists(
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
    trials = [description for description in trained if "trial" in description]
    assert len(trials) == 3
    assert trials[1] == trials[2] != trials[0]
    assert last.networks
    for number, network in last.networks.items():
        record = last.records[number]
        stage = record.metrics.get("finetuned", record.metrics["recalibrated"])
        assert evaluate(network, tiny_digits().validation)["accuracy"] == pytest.approx(stage["accuracy"])


def test_a_run_continues_only_with_the_same_network_data_and_settings(dense: TinyCNN, tmp_path: Path) -> None:
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


def test_a_log_without_a_study_is_never_overwritten(dense: TinyCNN, tmp_path: Path) -> None:
    (tmp_path / "old.log").write_text("something\n")
    for storage in (None, tmp_path / "elsewhere.journal"):
        with pytest.raises(ValueError, match=r"run='old' has a log in .* already"):
            search_ranks(dense, tiny_digits(), SETTINGS, logs=tmp_path, run="old", storage=storage)


def test_a_run_that_was_stopped_early_cannot_change_its_objective(dense: TinyCNN, tmp_path: Path) -> None:
    (tmp_path / "run.journal").touch()
    with opened_storage(tmp_path / "run.journal") as opened:
        open_study("run", opened, ["maximize"])  # the state of a search that was stopped at its sensitivities
    with pytest.raises(ValueError, match="run='run' was begun with another objective than 'pareto'"):
        search_ranks(dense, tiny_digits(), SearchSettings(objective="pareto", trials=2), logs=tmp_path, run="run")


def test_a_finished_run_takes_no_more_trials(dense: TinyCNN, tmp_path: Path) -> None:
    search(dense, tmp_path)
    more = dataclasses.replace(SETTINGS, trials=SETTINGS.trials + 1)
    with pytest.raises(ValueError, match=r"run='run' is finished with \d+ trials, and \d+ are asked for"):
        search_ranks(dense, tiny_digits(), more, logs=tmp_path, run="run")
    other = dataclasses.replace(SETTINGS, runtimes=("eager", "channels_last"))
    with pytest.raises(ValueError, match=r"run='run' is finished and was timed in eager, not in channels_last"):
        search_ranks(dense, tiny_digits(), other, logs=tmp_path, run="run")
    again, _ = search(dense, tmp_path)  # a call that was refused has changed nothing
    assert again.finished
    assert len(again.records) == SETTINGS.trials


@pytest.mark.parametrize("kind", [SearchSettings, TrainingSettings])
def test_a_misspelt_setting_is_refused(kind: Any) -> None:
    with pytest.raises(ValueError, match=r"trails\s+Unexpected keyword argument"):
        kind(trails=5)
    with pytest.raises(ValueError, match=r"seed\s+Input should be less than 4294967296"):
        kind(seed=2**70)


def test_a_study_begun_by_an_earlier_version_continues(tmp_path: Path) -> None:
    """Its specification calls the divergences ``harms``, and its records have the first schema."""
    for file in (Path(__file__).parent / "begun").iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    assert '"harms"' in (tmp_path / "begun.journal").read_text()
    before, _ = read_log(tmp_path / "begun.log")
    settings = SearchSettings(
        method="svd", trials=4, batch=2, budget=Budget(params=0.3), finetune_top=1, keep=0.1, startup=1, climb=0.5
    )
    result = search_ranks(tiny_cnn(), tiny_digits(), settings, logs=tmp_path, run="begun", on_trial=lambda _: None)
    assert result.finished
    assert [record.trial for record in result.records] == [0, 1, 2, 3, 4]
    assert [record.plan for record in result.records[:3]] == [record.plan for record in before]
    assert [record.rule for record in result.records] == ["energy"] + ["adaptive policy"] * 4
