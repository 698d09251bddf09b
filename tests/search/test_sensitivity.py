"""How much the network's output changes when one layer alone is factored."""

from __future__ import annotations

import math

import pytest
import torch

from common.calibration import calibrate
from common.data.tasks import Classification
from common.network.shapes import trace_layers
from common.planning.decompositions import Decompositions
from common.search.candidates import layer_candidates
from common.search.preparation import measure_sensitivities
from common.search.sensitivity import UNUSABLE, measure_divergences
from common.search.settings import SearchSettings
from tests.networks import tiny_cnn, tiny_digits


def test_divergences_are_measured_at_the_errors_of_the_factors_used() -> None:
    """Each point has the error on held-out patches; improved factors have smaller ones and move the output less."""
    model, data = tiny_cnn(width=24).eval(), tiny_digits(400)
    plain = Decompositions(model, calibrate(model, data.calibration))
    candidates = layer_candidates(trace_layers(model, data.example()), plain, "htd")
    improved = plain.with_sweeps(2)
    inputs = torch.cat([inputs for inputs, _ in data.calibration])
    before, after = (
        measure_divergences(model, candidates, each, inputs, at_measured_errors=True) for each in (plain, improved)
    )
    predicted = measure_divergences(model, candidates, plain, inputs)
    assert {error for error, _ in predicted["conv"]} <= {each.error**2 for each in candidates["conv"] if each}
    assert sorted(value for _, value in predicted["conv"]) == sorted(value for _, value in before["conv"])
    assert set(before) == set(after)
    expected = {
        improved.get("conv", "htd").measured_error(each.plan.ranks)
        for each in candidates["conv"]
        if each and each.error
    }
    for (error, _), (least, divergence) in zip(sorted(before["conv"]), sorted(after["conv"]), strict=True):
        assert least <= error
        assert divergence >= 0
        assert min(abs(least**0.5 - each) for each in expected) < 1e-6
    assert sum(value for _, value in after["conv"]) < sum(value for _, value in before["conv"])


def test_outputs_that_are_no_numbers_count_as_far_away() -> None:
    model, data = tiny_cnn(width=8).eval(), tiny_digits(40)
    plain = Decompositions(model)
    candidates = layer_candidates(trace_layers(model, data.example()), plain, "svd")
    found = measure_divergences(
        model, candidates, plain, data.example(), divergence=lambda dense, _: torch.full((len(dense),), math.nan)
    )
    values = [value for points in found.values() for _, value in points]
    assert values
    assert set(values) == {UNUSABLE}


def test_a_search_compares_outputs_as_the_task_does(monkeypatch: pytest.MonkeyPatch) -> None:
    model, data = tiny_cnn(width=8).eval(), tiny_digits(40)
    monkeypatch.setattr(Classification, "divergence", lambda _, dense, __: torch.full((len(dense),), 7.0))
    found, _ = measure_sensitivities(model, data, Decompositions(model), SearchSettings(trials=1))
    assert set(found.values()) <= {0.0, 7.0}
    assert 7.0 in found.values()
