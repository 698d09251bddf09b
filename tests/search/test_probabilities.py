from __future__ import annotations

import math

import pytest
import torch

from common.network.shapes import trace_layers
from common.planning import LayerPlan
from common.planning.decompositions import Decompositions
from common.search.candidates import LEVEL_SHARES, Candidate, Candidates, layer_candidates, plan_of
from common.search.probabilities import Probabilities, elite_of, sensitivity_logits
from common.search.sensitivity import REFERENCE_LEVEL, layer_sensitivities
from tests.networks import tiny_cnn

X = torch.randn(4, 3, 12, 12, generator=torch.Generator().manual_seed(0))


def candidate(share: float, error: float) -> Candidate:
    return Candidate(LayerPlan("svd", (1,)), int(1000 * share), int(1000 * share), error)


CHOICES = (*[None] * (REFERENCE_LEVEL - 1), candidate(0.1, 0.9), candidate(0.5, 0.5), candidate(1.0, 0.0))
CANDIDATES: Candidates = {
    "tough": CHOICES,
    "tender": CHOICES,
    "small": (*[None] * REFERENCE_LEVEL, *CHOICES[REFERENCE_LEVEL:]),
}
SMALLEST, MIDDLE, DENSE = range(REFERENCE_LEVEL - 1, REFERENCE_LEVEL + 2)
SENSITIVITIES = {"tough": 0.01, "tender": 50.0, "small": 1.0}


@pytest.mark.parametrize("method", ["svd", "tucker2", "htd"])
def test_candidates_keep_to_their_level(method: str) -> None:
    model = tiny_cnn(width=32)
    shapes = trace_layers(model, X)
    found = layer_candidates(shapes, Decompositions(model), method)
    assert list(found) == list(shapes)
    for name, choices in found.items():
        dense_params, dense_macs = shapes[name].dense_cost
        assert len(choices) == len(LEVEL_SHARES)
        for share, choice in zip(LEVEL_SHARES, choices, strict=True):
            if choice is not None:
                assert choice.params <= share * dense_params
                assert choice.macs <= dense_macs
        errors = [choice.error for choice in choices if choice]
        assert errors == sorted(errors, reverse=True)
        dense = choices[-1]
        assert dense is not None
        assert (dense.plan.method, dense.params, dense.macs) == (None, dense_params, dense_macs)
    assert sum(choice is not None for choice in found["conv"]) >= 5


def test_the_first_policy_follows_sensitivity_and_size() -> None:
    probabilities = Probabilities(sensitivity_logits(CANDIDATES, SENSITIVITIES, temperature=0.1)).by_layer
    for row in probabilities.values():
        assert sum(row) == pytest.approx(1)
    assert probabilities["small"][SMALLEST] == 0
    tough, tender = probabilities["tough"], probabilities["tender"]
    assert tough[SMALLEST] > tough[MIDDLE] > tough[DENSE]
    assert tender[DENSE] > tender[MIDDLE] > tender[SMALLEST]


def test_logits_by_hand() -> None:
    """Two layers of one size, measured at error 0.2 with 1 and 3 nats (median 2); an error of 0.4 quadruples them."""
    filler = [None] * REFERENCE_LEVEL
    two: Candidates = {
        "a": (candidate(0.1, 0.4), *filler[1:], candidate(0.3, 0.2), candidate(1.0, 0.0)),
        "b": (*filler, candidate(0.3, 0.2), candidate(1.0, 0.0)),
    }
    rows = Probabilities(sensitivity_logits(two, {"a": 1.0, "b": 3.0}, alpha=0.5, beta=2.0, temperature=0.5)).by_layer
    divergences = torch.tensor([4 / 2, 1 / 2, 0.0]).log1p()
    expected = (0.5 * divergences + 2 * torch.tensor([0.1, 0.3, 1.0])).div(-0.5).softmax(0).tolist()
    assert [probability for probability in rows["a"] if probability] == pytest.approx(expected)
    divergences = torch.tensor([3 / 2, 0.0]).log1p()
    expected = (0.5 * divergences + 2 * torch.tensor([0.3, 1.0])).div(-0.5).softmax(0).tolist()
    assert [probability for probability in rows["b"] if probability] == pytest.approx(expected)


def test_without_any_sensitivity_only_size_counts() -> None:
    row = Probabilities(sensitivity_logits(CANDIDATES, {}, temperature=0.1)).by_layer["tender"]
    assert row[SMALLEST] > row[MIDDLE] > row[DENSE]


def test_samples_follow_the_probabilities_and_the_seed() -> None:
    policy = Probabilities(sensitivity_logits(CANDIDATES, SENSITIVITIES, temperature=0.5))
    generator = torch.Generator().manual_seed(0)
    drawn = [policy.sample(generator) for _ in range(3000)]
    for name, row in policy.by_layer.items():
        for level, probability in enumerate(row):
            assert sum(levels[name] == level for levels in drawn) / 3000 == pytest.approx(probability, abs=0.03)
    assert policy.sample(torch.Generator().manual_seed(7)) == policy.sample(torch.Generator().manual_seed(7))


def test_the_update_moves_toward_the_elite_and_keeps_a_share_of_the_first() -> None:
    policy = Probabilities(sensitivity_logits(CANDIDATES, SENSITIVITIES, temperature=0.5))
    before = policy.by_layer
    policy.update([], smoothing=0.5)
    assert policy.by_layer == before
    most = {"tough": DENSE, "tender": SMALLEST, "small": MIDDLE}
    elite = [most] * 3 + [{**most, "tough": MIDDLE}]
    policy.update(elite, smoothing=0.5, floor=0.0)
    weights = [math.log(5 / place) for place in (1, 2, 3, 4)]  # only the last of the elite differs
    shares = [0.0] * SMALLEST + [0, weights[3] / sum(weights), sum(weights[:3]) / sum(weights)]
    expected = [0.5 * p + 0.5 * share for p, share in zip(before["tough"], shares, strict=True)]
    assert policy.by_layer["tough"] == pytest.approx(expected)
    for _ in range(50):
        policy.update(elite, smoothing=1.0, floor=0.03)
    for name, level in (("tender", SMALLEST), ("small", MIDDLE)):
        expected = [0.03 * p + 0.97 * (index == level) for index, p in enumerate(before[name])]
        assert policy.by_layer[name] == pytest.approx(expected)


def test_the_elite_is_the_best_share() -> None:
    trials = [((score,), {"a": index}) for index, score in enumerate([0.1, 0.9, 0.5, 0.7, 0.3])]
    assert elite_of(trials, 0.4) == [{"a": 1}, {"a": 3}]
    assert elite_of(trials, 0.01) == [{"a": 1}]
    higher = [((1.0, 0.9), {"a": 0}), ((2.0, 0.1), {"a": 1})]
    assert elite_of(higher, 0.5) == [{"a": 1}], "a trial that climbed further is better whatever its score"


def test_sensitivity_is_measured_on_the_output() -> None:
    model = tiny_cnn(width=32)
    with torch.no_grad():
        model.shortcut.weight.zero_()  # does not affect the output
    decompositions = Decompositions(model)
    candidates = layer_candidates(trace_layers(model, X), decompositions, "svd")
    found = layer_sensitivities(model, candidates, decompositions, X)
    assert found.keys() == candidates.keys()
    assert found["shortcut"] == 0
    assert found["conv"] > 0
    assert found["stem.0"] > 0


def test_a_plan_takes_the_chosen_candidates() -> None:
    plan = plan_of(CANDIDATES, {"tough": SMALLEST, "tender": DENSE, "small": MIDDLE}, "svd", "test")
    assert list(plan.layers.values()) == [
        choices[index].plan  # type: ignore[union-attr]
        for choices, index in zip(CANDIDATES.values(), (SMALLEST, DENSE, MIDDLE), strict=True)
    ]
