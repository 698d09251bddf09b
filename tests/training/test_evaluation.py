from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from common.data.tasks import Segmentation
from common.training import evaluate
from tests.networks import Returning


def fixed() -> nn.Module:
    """A network whose inputs are its logits."""
    model = nn.Identity()
    model.register_parameter("unused", nn.Parameter(torch.zeros(1)))
    return model


def mask(*pixels: int) -> torch.Tensor:
    """A mask ``(1, 2, 3)`` of these pixels, counted along the rows."""
    flat = torch.zeros(6)
    flat[list(pixels)] = 1
    return flat.view(1, 2, 3)


def judged(*cases: tuple[torch.Tensor, torch.Tensor]) -> dict[str, float]:
    """Metrics of pairs of prediction and truth, in batches of two images."""
    predicted, truth = (torch.stack(masks) for masks in zip(*cases, strict=True))
    return evaluate(fixed(), list(zip((predicted * 8 - 4).split(2), truth.split(2), strict=True)))


def test_accuracy_and_loss_are_pooled_over_batches_of_any_size() -> None:
    logits = torch.tensor([[2.0, 0.0], [0.0, 1.0], [3.0, 1.0]])
    targets = torch.tensor([0, 1, 1])
    measured = evaluate(fixed(), [(logits[:1], targets[:1]), (logits[1:], targets[1:])])
    assert measured["accuracy"] == pytest.approx(2 / 3)
    assert measured["loss"] == pytest.approx(nn.functional.cross_entropy(logits, targets).item())


def test_evaluation_keeps_modes_and_running_statistics() -> None:
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


def test_masks_are_judged_image_by_image() -> None:
    measured = judged(
        (mask(0, 1, 2), mask(1, 2, 3, 4)),  # 2 pixels in both
        (mask(), mask()),
        (mask(5), mask()),  # a false alarm
        (mask(0), mask(3, 4)),  # missed
        (mask(3, 4), mask(3, 4)),
    )
    loss = measured.pop("loss")
    assert measured == pytest.approx(
        {
            "dice": (4 / 7 + 1 + 0 + 0 + 1) / 5,
            "iou": (2 / 5 + 1 + 0 + 0 + 1) / 5,
            "dice_present": (4 / 7 + 0 + 1) / 3,
            "dice_pooled": 2 * 4 / (7 + 8),
            "pixel_accuracy": 1 - (3 + 0 + 1 + 3 + 0) / 30,
            "missed": 1 / 3,
            "false_alarms": 1 / 2,
        }
    )
    assert loss > 0


def test_each_class_of_an_image_is_a_case() -> None:
    measured = judged((torch.cat([mask(0), mask(1)]), torch.cat([mask(0), mask()])))
    assert measured["dice"] == measured["iou"] == 0.5
    assert (measured["dice_present"], measured["missed"], measured["false_alarms"]) == (1, 0, 1)
    assert measured["dice_pooled"] == 0.5
    assert measured["pixel_accuracy"] == pytest.approx(11 / 12)


def test_shares_of_no_cases_are_left_out() -> None:
    nothing = judged((mask(), mask()))
    assert (nothing["dice"], nothing["dice_pooled"], nothing["false_alarms"]) == (1, 1, 0)
    assert not {"dice_present", "missed"} & set(nothing)
    assert "false_alarms" not in judged((mask(1), mask(1)))


def test_a_logit_of_zero_is_no_prediction_and_the_loss_is_that_of_training() -> None:
    logits, truth = torch.randn(5, 2, 4, 4), (torch.rand(5, 2, 4, 4) < 0.3).float()
    logits[0] = 0
    batches = [(logits[:3], truth[:3]), (logits[3:], truth[3:])]
    measured = evaluate(fixed(), batches)
    expected = (3 * Segmentation().loss(*batches[0]) + 2 * Segmentation().loss(*batches[1])) / 5
    assert measured["loss"] == pytest.approx(float(expected))
    wrong = ((logits > 0) != truth.bool()).float().mean()
    assert measured["pixel_accuracy"] == pytest.approx(1 - float(wrong))


def test_an_empty_batch_counts_for_nothing() -> None:
    logits, targets = torch.tensor([[1.0, 0.0]]), torch.tensor([0])
    assert evaluate(fixed(), [(logits, targets), (logits[:0], targets[:0])])["accuracy"] == 1


def test_plain_loaders_serve_and_other_batches_are_named() -> None:
    dataset = TensorDataset(torch.eye(6), torch.tensor([0, 1, 2, 3, 4, 0]))
    assert evaluate(fixed(), DataLoader(dataset, batch_size=4))["accuracy"] == pytest.approx(5 / 6)
    named = [{"image": torch.eye(6), "label": torch.arange(6)}]
    with pytest.raises(ValueError, match=r"a batch must be a pair .* but it is a dict \(keys image, label\)"):
        evaluate(fixed(), named)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"it is a tuple \(of length 3: Tensor, Tensor, Tensor\)"):
        evaluate(fixed(), [(torch.eye(6), torch.arange(6), torch.arange(6))])  # type: ignore[list-item]


def test_a_network_must_return_one_tensor() -> None:
    with pytest.raises(ValueError, match="the network must return one tensor, but it returns a tuple"):
        evaluate(Returning(lambda x, _: (x, x), fixed()), [(torch.eye(6), torch.arange(6))])


def test_a_network_without_parameters_is_measured_on_the_processor() -> None:
    assert evaluate(nn.Flatten(), [(torch.eye(3), torch.arange(3))])["accuracy"] == 1.0
