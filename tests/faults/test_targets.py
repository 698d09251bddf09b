"""Targets and outputs that changed what a network was judged by, without a word."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from common.calibration.divergence import kl_divergence, mask_divergence, standardized_error
from common.planning import Budget
from common.shrink import ShrinkSteps, Shrunk, shrink
from common.training import evaluate

BATCHES = [torch.randn(16, 3, 12, 12, generator=torch.Generator().manual_seed(seed)) for seed in range(2)]
QUICK = ShrinkSteps(measure=False, correct=False, improve=0, refit=False, recalibrate=False)
CLASSES = torch.arange(16) % 4
SEVERAL = (torch.rand(16, 4, generator=torch.Generator().manual_seed(0)) > 0.4).long()


def classifier(*last: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    pooled = (nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(24, 4))
    return nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 24, 3), *pooled, *last).eval()


def masks(*last: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 2, 3, padding=1), *last).eval()


def shrunk(model: nn.Module, targets: Any, task: str | None = None) -> Shrunk:
    return shrink(model, [(images, targets) for images in BATCHES], Budget(macs=0.5), "svd", steps=QUICK, task=task)


@pytest.mark.parametrize(
    ("build", "last", "targets", "said"),
    [
        (classifier, nn.Softmax(1), CLASSES, "classification takes logits: leave out the last softmax"),
        (
            masks,
            nn.Sigmoid(),
            (BATCHES[0][:, :2] > 0).float(),
            "segmentation takes logits: leave out the last sigmoid",
        ),
    ],
)
def test_a_network_that_returns_probabilities_is_told(build: Any, last: nn.Module, targets: Tensor, said: str) -> None:
    with pytest.warns(UserWarning, match=said):
        evaluate(build(last), [(BATCHES[0], targets)])
    with pytest.warns(UserWarning, match=said):
        shrunk(build(last), targets)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        evaluate(build(), [(BATCHES[0], targets)])
        evaluate(build(nn.Threshold(0.0, 1.0), nn.Hardtanh(1.0, 2.0)), [(BATCHES[0], targets)])  # whole numbers


@pytest.mark.parametrize("dtype", [torch.int64, torch.bool, torch.float32])
def test_several_labels_of_an_image_are_compared_class_by_class(dtype: torch.dtype) -> None:
    assert int(SEVERAL.sum(1).max()) > 1
    assert shrunk(classifier(), SEVERAL.to(dtype)).measure is mask_divergence
    one_each = torch.eye(4)[CLASSES].to(dtype)
    assert shrunk(classifier(), one_each).measure is kl_divergence


@pytest.mark.parametrize(
    ("targets", "said"),
    [
        (CLASSES.float(), "no metric is measured: .* class numbers .* of a whole-number type"),
        (CLASSES + 3, "no metric is measured: a target is 6, but the network has 4 outputs"),
    ],
)
def test_class_numbers_that_do_not_fit_are_named_and_change_no_measure(targets: Tensor, said: str) -> None:
    with pytest.warns(UserWarning, match=said):
        found = shrunk(classifier(), targets)
    assert found.measure is kl_divergence
    assert not found.metrics


def test_numbers_that_are_not_whole_are_predicted() -> None:
    assert shrunk(classifier(), torch.randn(16, 4)).measure is standardized_error


@pytest.mark.parametrize("targets", [["a"] * 16, CLASSES[:4]])
def test_a_named_task_needs_targets_of_use(targets: Any) -> None:
    with pytest.raises(ValueError, match=r"^task='classification': the targets of a batch .* of its 16 inputs$"):
        shrunk(classifier(), targets, "classification")
    assert shrunk(classifier(), targets).measure is kl_divergence
