from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from common.data.normalization import IMAGENET, remember_normalization
from common.models import build_model
from common.planning import Budget, Fixed, plan_ranks
from common.search import SearchSettings, search_ranks
from common.training import TrainingSettings
from tests.networks import TinyCNN, tiny_digits
from tests.search.studies import SETTINGS


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"policy": "energy"}, r"policy='energy' needs a budget; give budget=Budget\(params=..., macs=...\)"),
        ({"method": "mixed"}, "method='mixed' needs a budget"),
        ({"budget": Budget(macs=0.001)}, r"cannot be met: the least that can be kept is macs=0\.\d+; BatchNorm2d"),
    ],
)
def test_bad_settings_are_refused(changes: dict[str, Any], sentence: str, dense: TinyCNN, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=sentence):
        search_ranks(dense, tiny_digits(), SearchSettings(**changes), logs=tmp_path, run="bad")


def test_budgets_of_latency_are_refused() -> None:
    with pytest.raises(ValueError, match=r"latency=0\.5.* a search keeps to params and macs"):
        SearchSettings(budget=Budget(macs=0.5, latency=0.5))


def test_more_than_five_epochs_of_finetuning_are_refused() -> None:
    with pytest.raises(ValueError, match="at most 5 epochs"):
        SearchSettings(finetune=TrainingSettings(epochs=5.5))


def test_errors_of_the_finetuning_are_found_before_the_first_trial(dense: TinyCNN, tmp_path: Path) -> None:
    wrong = dataclasses.replace(SETTINGS, finetune=dataclasses.replace(SETTINGS.finetune, features=("layer9",)))
    with pytest.raises(ValueError, match=r"^features='layer9': the network has no module of this name$"):
        search_ranks(dense, tiny_digits(), wrong, logs=tmp_path, run="run")
    model = build_model("resnet20", 10)
    remember_normalization(model, IMAGENET)
    with pytest.raises(ValueError, match=r"^the network was trained on pixels normalised by .*normalize='imagenet'"):
        search_ranks(model, tiny_digits(), SETTINGS, logs=tmp_path, run="run")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("below", ["file", "file/logs", "file/far/below"])
def test_logs_that_cannot_be_written_are_found_before_any_work(
    below: str, dense: TinyCNN, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("precious")
    monkeypatch.setattr("common.search.search.decompose_for_search", pytest.fail)
    monkeypatch.setattr("common.latency.runtimes.Eager.check", pytest.fail)
    for run, storage in ((None, None), ("run", None), ("run", f"sqlite:///{tmp_path}/studies.db")):
        with pytest.raises(ValueError, match=rf"^logs='{tmp_path}/{below}'.* (a file of that name|Not a directory)$"):
            search_ranks(dense, tiny_digits(), SETTINGS, logs=tmp_path / below, run=run, storage=storage)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


class Frames(nn.Module):
    """A network without a layer that can be factored."""

    def __init__(self) -> None:
        super().__init__()
        self.memory = nn.GRU(3, 10, batch_first=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.memory(x.flatten(2).mT)[0].mean(1)
        return y


def hooked_weight() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.utils.parametrizations.weight_norm(nn.Linear(192, 10)))


@pytest.mark.parametrize(
    ("make", "reason"),
    [(Frames, r"nothing can be factored: .* GRU x 1"), (hooked_weight, "1 stays dense: its weight is computed")],
)
def test_a_network_without_a_layer_to_factor_is_reported_at_once(make: Any, reason: str, tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match=f"there is nothing to search: {reason}"):
        result = search_ranks(make(), tiny_digits(), SETTINGS, logs=tmp_path, run="none")
    assert not result.records
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("as_list", [False, True])
def test_plans_that_are_no_list_of_plans_are_refused_before_any_work(
    as_list: bool, dense: TinyCNN, tmp_path: Path
) -> None:
    plan: Any = ["conv"] if as_list else plan_ranks(dense, tiny_digits().example(), "svd", Fixed(2))
    with pytest.raises(ValueError, match=r"plans is \w+: it must be a list of RankPlan"):
        search_ranks(dense, tiny_digits(), SETTINGS, plans=plan, logs=tmp_path, run="bad")
    assert not list(tmp_path.iterdir())
