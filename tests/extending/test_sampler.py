"""A user's search policy, in one file outside ``common``: it proposes, resumes, is logged and is reported."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.samplers import BaseSampler

import analyze_results
from common.network import profile
from common.planning import Budget, RankPlan
from common.search import SearchResult, SearchSettings, search_ranks
from common.search.policies import POLICIES, SearchPolicy, Start
from common.search.policies.samplers import LevelSampler
from common.search.space import Levels
from common.trials import read_log
from tests.networks import tiny_cnn, tiny_digits


class Upward(LevelSampler):
    """The n-th trial gives every layer its n-th level, from the smallest."""

    def levels(self, study: optuna.Study, place: int) -> Levels:
        return {name: min(each.low + place, each.high) for name, each in self._distributions.items()}


class Ladder(SearchPolicy):
    """Tries one size after another, the same for all layers."""

    name = "ladder"
    kind = "policy"

    def sampler(self, start: Start, plan: RankPlan | None) -> BaseSampler:
        return Upward(start.space.distributions())


@pytest.fixture(autouse=True)
def _registered() -> Iterator[None]:
    """What ``POLICIES.add(Ladder())`` below the class does, for these tests alone."""
    with POLICIES.including(Ladder()):
        yield


def search(folder: Path, run: str = "own", **changes: Any) -> SearchResult:
    settings = SearchSettings(
        **{"method": "svd", "policy": "ladder", "trials": 4, "climb": 1.0, "finetune_top": 1, **changes}
    )
    return search_ranks(tiny_cnn(width=32), tiny_digits(), settings, logs=folder, run=run, on_trial=lambda _: None)


def test_it_proposes_what_is_logged_and_reported(tmp_path: Path) -> None:
    result = search(tmp_path)
    records, _ = read_log(result.log)
    assert {record.rule for record in records} == {"ladder policy"}
    sizes = [record.params for record in records]
    assert sizes == sorted(set(sizes))
    assert result.networks
    assert result.last_policy != result.first_policy
    assert analyze_results.main([str(result.log), "--out", str(tmp_path / "results")]) == 0
    assert "ladder" in (tmp_path / "results" / "report.html").read_text()


def test_a_stopped_search_continues_with_the_same_trials(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = search(tmp_path, "whole")
    levels = Upward.levels

    def stop(self: Upward, study: optuna.Study, place: int) -> Levels:
        if place == 2:
            raise KeyboardInterrupt
        return levels(self, study, place)

    monkeypatch.setattr(Upward, "levels", stop)
    assert search(tmp_path).remaining == 2
    monkeypatch.undo()
    assert [record.plan for record in search(tmp_path).records] == [record.plan for record in whole.records]


def test_it_fills_a_budget(tmp_path: Path) -> None:
    result = search(tmp_path, budget=Budget(params=0.5), trials=2)
    most = 0.5 * profile(tiny_cnn(width=32), tiny_digits().example()).params
    assert all(record.params <= most for record in result.records)


def test_it_is_named_where_a_policy_is_unknown(tmp_path: Path) -> None:
    message = r"policy='lader' is unknown \(did you mean 'ladder'\?\); allowed: adaptive, .*, nsga2, ladder"
    with pytest.raises(ValueError, match=message):
        SearchSettings(policy="lader")
    assert SearchSettings(policy="ladder").proposer == "ladder policy"


def test_a_policy_says_what_it_needs() -> None:
    class Needy(Ladder):
        name = "needy"
        needs_budget = True
        mixes_methods = False

    with POLICIES.including(Needy()):
        with pytest.raises(ValueError, match=r"policy='needy' needs a budget; give budget="):
            SearchSettings(policy="needy")
        with pytest.raises(ValueError, match=r"policy='needy' with method='mixed': the methods' ranks differ"):
            SearchSettings(policy="needy", method="mixed", budget=Budget(params=0.5))
