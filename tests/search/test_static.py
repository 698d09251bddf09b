"""The static policy: the published probabilities, drawn ranks that are used as they are, and searches with it."""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

import pytest
import tensorly
import torch
from tensorly.decomposition import partial_tucker
from torch import nn

from common.network import profile
from common.network.shapes import trace_layers
from common.notebook.evidence import policy_picture
from common.planning import Budget
from common.planning.decompositions import Decompositions
from common.search import SearchResult, SearchSettings, search_ranks
from common.search.policies import POLICIES
from common.search.policies.static import mode_ranks
from common.search.probabilities import Probabilities
from common.search.space import Space
from common.search.study.specification import StudySpecification
from common.trials import TrialRecord, read_log
from tests.networks import TinyCNN, tiny_cnn, tiny_digits

X = torch.randn(1, 3, 12, 12, generator=torch.Generator().manual_seed(0))
STATIC = POLICIES["static"]
SENSITIVITIES = {"stem.0": 1.0, "conv": 0.5, "shortcut": 0.0}


def make_space(method: str, budget: Budget | None = None, width: int = 32) -> Space:
    model = tiny_cnn(width=width)
    decompositions = Decompositions(model)
    candidates = STATIC.candidates(trace_layers(model, X), decompositions, method)
    return Space(model, X, decompositions, method, budget, candidates=candidates)


def probabilities_of(space: Space) -> Probabilities:
    return Probabilities(STATIC.first_logits(space, SearchSettings(policy="static"), SENSITIVITIES))


def by_hand(channels: int, size: int, sensitivity: float) -> dict[int, float]:
    """Rank -> its published probability, for a mode of ``channels`` in a layer of ``size`` = C_in * C_out."""
    ranks = sorted({max(1, int(channels * percent / 100)) for percent in range(25, 95, 5)})
    scores = [math.exp((r / max(ranks)) ** sensitivity - r / math.log(size + 1)) for r in ranks]
    return {rank: score / sum(scores) for rank, score in zip(ranks, scores, strict=True)}


def test_both_ranks_have_the_published_probabilities_and_are_drawn_apart() -> None:
    """conv maps 32 to 64 channels, the stem 3 to 32: of 3 channels only the ranks 1 and 2 can be drawn."""
    space = make_space("tucker2")
    rows = probabilities_of(space).by_layer
    for name, (inputs, outputs) in {"stem.0": (3, 32), "conv": (32, 64)}.items():
        found: dict[tuple[int, ...], float] = defaultdict(float)
        for choice, probability in zip(space.candidates[name], rows[name], strict=True):
            if choice:
                found[choice.plan.ranks] += probability
            else:
                assert probability == 0
        modes = [by_hand(size, inputs * outputs, SENSITIVITIES[name]) for size in (inputs, outputs)]
        expected = {(r_in, r_out): a * b for r_in, a in modes[0].items() for r_out, b in modes[1].items()}
        # 27 elements of a 3x3 kernel over 3 inputs; with one input no more than 9 outputs add anything
        fitted: dict[tuple[int, ...], float] = defaultdict(float)
        for (r_in, r_out), probability in expected.items():
            fitted[r_in, min(r_out, 9 * r_in)] += probability
        assert found == pytest.approx(fitted, rel=1e-5)
    assert by_hand(3, 96, 1.0).keys() == {1, 2}


def test_a_picture_has_both_ranks_apart() -> None:
    shown = STATIC.by_level_name(probabilities_of(make_space("tucker2")))
    half = (len(STATIC.level_names) - 1) // 2
    for name, (inputs, outputs) in {"stem.0": (3, 32), "conv": (32, 64), "shortcut": (32, 64)}.items():
        rows = shown[name][:half], shown[name][half:-1]
        for row, size in zip(rows, (inputs, outputs), strict=True):
            expected = by_hand(size, inputs * outputs, SENSITIVITIES[name])
            assert [value for value in row if value] == pytest.approx(list(expected.values()), rel=1e-5)
        assert shown[name][-1] == 0
    assert shown["head"] == [0.0] * 2 * half + [1.0]


def test_ranks_are_rounded_down_as_published() -> None:
    assert mode_ranks(64) == [16, 19, 22, 25, 28, 32, 35, 38, 41, 44, 48, 51, 54, 57]
    assert mode_ranks(3) == [1] * 9 + [2] * 5
    assert mode_ranks(1) == [1] * 14


@pytest.mark.parametrize("method", ["tucker2", "htd", "svd"])
def test_other_methods_take_what_the_pair_allows(method: str) -> None:
    pairs = make_space("tucker2").candidates
    for name, choices in make_space(method).candidates.items():
        for choice, pair in zip(choices, pairs[name], strict=True):
            if choice is None or pair is None or name == "head":
                assert choice == pair
            elif method == "svd" or name == "shortcut":  # a 1x1 convolution
                assert choice.plan.method == "svd"
                if name != "stem.0":  # there, the outputs of a pair may be fewer than were drawn
                    assert choice.plan.ranks == (min(pair.plan.ranks),)
            else:
                assert choice.plan.method == method
                assert (choice.plan.ranks[0], choice.plan.ranks[-1]) == pair.plan.ranks
                if method == "htd":
                    assert choice.plan.ranks[1] == 3 * min(pair.plan.ranks)


def test_drawn_ranks_stay_as_they_are_under_a_budget() -> None:
    free, limited = make_space("tucker2"), make_space("tucker2", Budget(macs=0.1))
    generator = torch.Generator().manual_seed(0)
    probabilities = probabilities_of(limited)
    for _ in range(20):
        levels = probabilities.sample(generator)
        plan = limited.plan(levels, "static policy")
        assert plan.layers == free.plan(levels, "static policy").layers
        assert plan.layers["head"].reason == "the static policy factors convolutions only"
        r_in, r_out = plan.layers["conv"].ranks
        assert 0.25 * 32 <= r_in <= 0.9 * 32
        assert 0.25 * 64 <= r_out <= 0.9 * 64


def test_sensitivities_by_hand() -> None:
    """At ranks (1, 1) each weight loses its second entry: 1, a third of it, and 0."""
    model = nn.Sequential(nn.Conv2d(2, 2, 3), nn.Conv2d(2, 2, 3), nn.Conv2d(2, 2, 1), nn.Flatten(), nn.Linear(8, 2))
    for layer, second in ((model[0], 1.0), (model[1], 1 / 3), (model[2], 0.0)):
        assert isinstance(layer, nn.Conv2d)
        with torch.no_grad():
            layer.weight.zero_()
            layer.weight[0, 0, 0, 0], layer.weight[1, 1, 0, 0] = 1.0, second
    shapes = trace_layers(model, torch.zeros(1, 2, 6, 6))
    found = STATIC.sensitivities(shapes, Decompositions(model), "htd")
    assert found == pytest.approx({"0": 1.0, "1": 1 / 9, "2": 0.0, "4": 0.0})


def test_sensitivities_are_those_of_tensorly() -> None:
    model = tiny_cnn(width=16)
    errors = {}
    with tensorly.backend_context("pytorch"):
        for name in ("stem.0", "conv"):
            weight = model.get_submodule(name).get_parameter("weight").detach()
            half = [max(1, size // 2) for size in weight.shape[:2]]
            (core, factors), _ = partial_tucker(weight, rank=half, modes=[0, 1], init="svd")
            rebuilt = tensorly.tenalg.multi_mode_dot(core, factors, modes=[0, 1])
            errors[name] = float((weight - rebuilt).square().mean())
    found = STATIC.sensitivities(trace_layers(model, X), Decompositions(model), "tucker2")
    assert found is not None
    assert found["conv"] / found["stem.0"] == pytest.approx(errors["conv"] / errors["stem.0"], rel=5e-3)


def search(folder: Path, model: nn.Module, on_trial: Callable[[TrialRecord], None] = lambda _: None) -> SearchResult:
    settings = SearchSettings(
        method="tucker2", policy="static", budget=Budget(macs=0.4), trials=4, finetune_top=0, keep=0.01
    )
    return search_ranks(model, tiny_digits(), settings, logs=folder, run="static", on_trial=on_trial)


@pytest.fixture(scope="module")
def result(dense: TinyCNN, tmp_path_factory: pytest.TempPathFactory) -> SearchResult:
    return search(tmp_path_factory.mktemp("whole"), dense)


def test_a_search_runs_logs_and_chooses_only_what_keeps_to_the_budget(dense: TinyCNN, result: SearchResult) -> None:
    records, _ = read_log(result.log)
    assert {record.rule for record in records} == {"static policy"}
    assert {record.status for record in result.records} == {"ok"}  # none was pruned
    most = 0.4 * profile(dense, tiny_digits().example()).macs
    fitting = {record.trial for record in result.records if record.macs <= most}
    assert 0 < len(fitting) < len(result.records)
    assert set(result.networks) <= fitting
    assert {record.trial for record in result.best.values()} <= fitting
    assert result.best["metric"].trial in fitting
    assert result.last_policy == result.first_policy
    assert result.sensitivities["head"] == 0
    assert max(result.sensitivities.values()) == 1
    assert len(policy_picture(result).axes) == 3


def test_a_stopped_search_continues_with_the_same_trials(dense: TinyCNN, result: SearchResult, tmp_path: Path) -> None:
    def interrupt(record: TrialRecord) -> None:
        if record.trial == 1:
            raise KeyboardInterrupt

    stopped = search(tmp_path, dense, interrupt)
    assert 0 < stopped.remaining < len(result.records)
    rest = search(tmp_path, dense)
    assert [record.plan for record in rest.records] == [record.plan for record in result.records]


def test_a_study_of_the_earlier_static_policy_is_refused(result: SearchResult) -> None:
    values = json.loads(json.dumps(result.study.user_attrs["blueprint"]))
    assert StudySpecification.from_json(values).settings.policy == "static"
    values["settings"]["static_beta"] = 0.05
    with pytest.raises(ValueError, match=r"^the study was begun with policy='static' of an earlier version, .* run$"):
        StudySpecification.from_json(values)
    values["settings"]["policy"] = "adaptive"
    assert StudySpecification.from_json(values).settings.policy == "adaptive"
