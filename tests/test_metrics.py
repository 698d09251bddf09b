from __future__ import annotations

import pytest
import torch
from torch import nn

from common.metrics import evaluate


def test_accuracy_and_loss_are_pooled_over_batches_of_any_size() -> None:
    model = nn.Identity()
    model.register_parameter("unused", nn.Parameter(torch.zeros(1)))
    logits = torch.tensor([[2.0, 0.0], [0.0, 1.0], [3.0, 1.0]])
    targets = torch.tensor([0, 1, 1])
    measured = evaluate(model, [(logits[:1], targets[:1]), (logits[1:], targets[1:])])
    assert measured["accuracy"] == pytest.approx(2 / 3)
    assert measured["loss"] == pytest.approx(nn.functional.cross_entropy(logits, targets).item())


def test_the_mode_is_left_and_evaluation_is_not_training() -> None:
    norm = nn.BatchNorm1d(2)
    frozen = nn.BatchNorm1d(2)
    model = nn.Sequential(nn.Linear(2, 2), norm, frozen).train()
    frozen.eval()
    evaluate(model, [(torch.randn(4, 2), torch.zeros(4, dtype=torch.long))])
    assert [module.training for module in model] == [True, True, False]
    assert norm.num_batches_tracked == 0


def test_no_batch_is_an_error() -> None:
    with pytest.raises(ValueError, match="no batch"):
        evaluate(nn.Linear(1, 1), [])
