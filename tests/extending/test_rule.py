"""A user's rank rule, in one file outside ``common``: it is planned, compressed, searched and reported."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

import analyze_results
from common.calibration import calibrate
from common.compression import compress
from common.network import profile
from common.network.shapes import dense_reason
from common.planning import RULES, Budget, LayerPlan, RankPlan, method_names, plan_ranks
from common.planning.decompositions import layer_method
from common.planning.rules import Network, PerLayerRule
from common.search import SearchSettings, search_ranks
from common.search.policies import POLICIES
from common.search.policies.largest import LargestPlan, PlansAt, plans_by
from common.search.study.records import plan_of_record
from common.trials import read_log
from tests.networks import tiny_cnn, tiny_digits

X = torch.randn(32, 3, 8, 8, generator=torch.Generator().manual_seed(0))


@dataclass(frozen=True)
class Root(PerLayerRule):
    """Every rank is its greatest value to the ``power``.

    Raises:
        ValueError: ``power`` is not in [0, 1].
    """

    name = "root"
    power: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.power <= 1:
            raise ValueError(f"power={self.power!r}: it must be in [0, 1]")

    @property
    def settings(self) -> dict[str, Any]:
        return {"power": self.power}

    def choose(self, network: Network) -> dict[str, LayerPlan]:
        layers = {}
        for name, shape in network.shapes.items():
            if reason := dense_reason(shape):
                layers[name] = LayerPlan(reason=reason)
                continue
            method = layer_method(network.methods[0], shape)
            decomposition = network.decompositions.get(name, method)
            ranks = tuple(math.ceil(most**self.power) for most in decomposition.max_ranks)
            layers[name] = network.decompositions.plan(name, method, decomposition.fit(ranks))
        return layers


class SameRoot(LargestPlan):
    """The rule as a search policy: its largest plan within the budget."""

    name = "root"

    def plans_at(self, model: torch.nn.Module, x: torch.Tensor, decompositions: Any, method: str) -> PlansAt:
        return plans_by(lambda share: Root(share, only_if_smaller=False), model, x, decompositions, method)


@pytest.fixture(autouse=True)
def _registered() -> Iterator[None]:
    """What ``@RULES.add`` above the first class and ``POLICIES.add(SameRoot())`` do, for these tests alone."""
    with RULES.including(Root), POLICIES.including(SameRoot()):
        yield


def kept(plan: RankPlan) -> dict[str, tuple[int, ...]]:
    return {name: layer.ranks for name, layer in plan.factored.items()}


@pytest.mark.parametrize("method", [name for name in method_names() if name != "arsvd"])
def test_it_is_planned_and_compressed_by_every_method(method: str) -> None:
    model = tiny_cnn(width=32)
    moments = calibrate(model, [X])
    plan = plan_ranks(model, X[:1], method, Root(), moments=moments)
    assert (plan.rule, dict(plan.settings)) == ("root", {"power": 0.5})
    assert RankPlan.from_json(plan.to_json()) == plan
    small = compress(model, plan, moments=moments)
    assert profile(small, X[:1]).params < profile(model, X[:1]).params


def test_it_rounds_and_keeps_layers_dense_as_every_rule_does() -> None:
    model = tiny_cnn(width=32)
    assert kept(plan_ranks(model, X[:1], "svd", Root()))["conv"] == (8,)
    assert kept(plan_ranks(model, X[:1], "svd", Root(round_to=5)))["conv"] == (10,)
    assert not kept(plan_ranks(model, X[:1], "svd", Root(1.0)))
    assert kept(plan_ranks(model, X[:1], "svd", Root(1.0, only_if_smaller=False)))["conv"] == (64,)


def test_it_refuses_what_it_cannot_do() -> None:
    with pytest.raises(ValueError, match=r"power=2: it must be in \[0, 1\]"):
        Root(2)
    with pytest.raises(ValueError, match=r"round_to=0: it must be a whole number of at least 1"):
        Root(round_to=0)
    with pytest.raises(ValueError, match=r"rule=Root\(.*\) with method='arsvd': it must be Entropy"):
        plan_ranks(tiny_cnn(), X[:1], "arsvd", Root())


def test_its_plan_is_measured_first_in_a_search_logged_and_reported(tmp_path: Path) -> None:
    model = tiny_cnn(width=32)
    moments = calibrate(model, [X])
    plans = [plan_ranks(model, X[:1], "svd", Root(power), moments=moments) for power in (0.3, 0.5)]
    settings = SearchSettings(method="svd", trials=2, finetune_top=1, finetune_given=True)
    result = search_ranks(model, tiny_digits(), settings, plans=plans, logs=tmp_path, run="own", on_trial=_ignore)
    records, _ = read_log(result.log)
    assert [record.rule for record in records] == ["root", "root", "adaptive policy", "adaptive policy"]
    assert [dict(plan_of_record(record).settings) for record in records[:2]] == [{"power": 0.3}, {"power": 0.5}]
    assert all("test" in record.metrics for record in records[:2])
    assert analyze_results.main([str(result.log), "--out", str(tmp_path / "results")]) == 0
    report = (tmp_path / "results" / "report.html").read_text()
    assert "root" in report
    assert "power=0.3" in report


def test_it_is_a_search_policy_at_a_budget(tmp_path: Path) -> None:
    settings = SearchSettings(method="svd", policy="root", budget=Budget(params=0.5), finetune_top=0)
    model = tiny_cnn(width=32)
    (record,) = search_ranks(model, tiny_digits(), settings, logs=tmp_path, run="own", on_trial=_ignore).records
    assert record.rule == "root rule"
    assert 0.3 < record.params / profile(model, X[:1]).params <= 0.5
    assert 0 < plan_of_record(record).settings["power"] < 1


def _ignore(_: object) -> None:
    """Show nothing."""
