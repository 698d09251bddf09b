from __future__ import annotations

import math

import pytest
import torch

from common.data.tasks import Classification, Segmentation
from common.data.tasks.segmentation import soft_dice_loss


def logit(share: float) -> float:
    return math.log(share / (1 - share))


def test_class_numbers_mean_cross_entropy() -> None:
    logits = torch.tensor([[math.log(3), 0.0], [0.0, 0.0]])
    loss = Classification().loss(logits, torch.tensor([0, 1]))
    assert float(loss) == pytest.approx((math.log(4 / 3) + math.log(2)) / 2)
    smoothed = Classification().loss(logits[:1], torch.tensor([0]), label_smoothing=0.2)
    assert float(smoothed) == pytest.approx(0.9 * math.log(4 / 3) + 0.1 * math.log(4))


def test_masks_mean_dice_and_binary_cross_entropy() -> None:
    # One image, one class, two pixels: 0.8 where the truth is 1 and 0.4 where it is 0.
    logits = torch.tensor([logit(0.8), logit(0.4)]).view(1, 1, 1, 2)
    targets = torch.tensor([1.0, 0.0]).view(1, 1, 1, 2)
    dice = 1 - (2 * 0.8 + 1) / (0.8 + 0.4 + 1 + 1)
    assert float(soft_dice_loss(logits, targets)) == pytest.approx(dice, rel=1e-6)
    entropy = -(math.log(0.8) + math.log(0.6)) / 2
    assert float(Segmentation().loss(logits, targets)) == pytest.approx(dice + entropy, rel=1e-6)
    smoothed = -(0.9 * math.log(0.8) + 0.1 * math.log(0.2) + 0.9 * math.log(0.6) + 0.1 * math.log(0.4)) / 2
    assert float(Segmentation().loss(logits, targets, label_smoothing=0.2)) == pytest.approx(dice + smoothed, rel=1e-6)


def test_dice_is_pooled_over_the_batch_and_averaged_over_classes() -> None:
    shares = torch.tensor([[[0.9], [0.2]], [[0.1], [0.3]]]).unsqueeze(3)  # image, class, 1 x 1 pixel
    targets = torch.tensor([[[1.0], [0.0]], [[0.0], [1.0]]]).unsqueeze(3)
    first = 1 - (2 * 0.9 + 1) / (0.9 + 0.1 + 1 + 1)
    second = 1 - (2 * 0.3 + 1) / (0.2 + 0.3 + 1 + 1)
    assert float(soft_dice_loss(shares.logit(), targets)) == pytest.approx((first + second) / 2, rel=1e-6)


def test_a_batch_without_truth_trains_towards_empty_masks() -> None:
    logits = torch.zeros(2, 1, 4, 4, requires_grad=True)
    loss = Segmentation().loss(logits, torch.zeros(2, 1, 4, 4))
    loss.backward()
    assert logits.grad is not None
    assert torch.isfinite(loss)
    assert (logits.grad > 0).all()
    certain = Segmentation().loss(torch.full((2, 1, 4, 4), -30.0), torch.zeros(2, 1, 4, 4))
    assert float(certain) == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize(("logits", "targets"), [((2, 3), (2, 3)), ((2, 1, 4, 4), (2, 4, 4)), ((2, 3), (3,))])
def test_shapes_that_do_not_fit_are_named(logits: tuple[int, ...], targets: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="they must be"):
        Classification().loss(torch.zeros(logits), torch.zeros(targets))
    with pytest.raises(ValueError, match="they must be"):
        Segmentation().loss(torch.zeros(logits), torch.zeros(targets))


@pytest.mark.parametrize(
    ("targets", "sentence"),
    [
        (torch.tensor([0, 3]), r"a target is 3, but the network has 3 outputs; class numbers must be in 0\.\.2"),
        (torch.tensor([-100, 1]), "a target is -100, but the network has 3 outputs"),
        (torch.tensor([0.0, 1.0]), r"targets torch\.float32: class numbers must be of a whole-number type"),
    ],
)
def test_class_numbers_without_an_output_are_named(targets: torch.Tensor, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        Classification().loss(torch.zeros(2, 3), targets)


def test_class_numbers_may_be_of_any_whole_number_type() -> None:
    logits = torch.randn(2, 3)
    expected = Classification().loss(logits, torch.tensor([2, 0]))
    for dtype in (torch.uint8, torch.int32):
        assert Classification().loss(logits, torch.tensor([2, 0], dtype=dtype)) == expected
