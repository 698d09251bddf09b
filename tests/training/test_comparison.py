from __future__ import annotations

import math

import pytest
import torch
from scipy.stats import norm

from common.data.tasks import METRICS
from common.training import Evaluation, mean_difference, paired_difference


def evaluation(hits: torch.Tensor, metric: str = "accuracy") -> Evaluation:
    return Evaluation({metric: float(hits.double().mean())}, {METRICS[metric].observe: hits})


def test_the_interval_is_that_of_paired_means() -> None:
    generator = torch.Generator().manual_seed(0)
    before = torch.rand(4000, generator=generator) < 0.8
    after = before.clone()
    after[:300] = torch.rand(300, generator=generator) < 0.5
    changes = after.double() - before.double()
    found = paired_difference(evaluation(after), evaluation(before), "accuracy")
    half = norm.ppf(0.975) * float(changes.std()) / math.sqrt(len(changes))
    assert found.images == 4000
    assert found.value == pytest.approx(float(changes.mean()), abs=1e-6)
    assert found.low == pytest.approx(found.value - half, abs=0.1 * half)
    assert found.high == pytest.approx(found.value + half, abs=0.1 * half)
    assert found.verdict == "worse"
    assert paired_difference(evaluation(before), evaluation(after), "accuracy").verdict == "better"


def test_the_same_network_makes_no_difference() -> None:
    hits = torch.arange(100) % 3 == 0
    found = paired_difference(evaluation(hits), evaluation(hits), "accuracy")
    assert (found.value, found.low, found.high, found.verdict) == (0, 0, 0, "no difference")


def test_dice_is_compared_by_whole_images() -> None:
    """Intersection, prediction, truth and all pixels, of one class and three images."""
    truth = torch.tensor([[[10, 10, 10, 64]], [[20, 20, 20, 64]], [[5, 5, 5, 64]]])
    missed = truth.clone()
    missed[1, 0, :2] = 0
    found = paired_difference(evaluation(missed, "dice"), evaluation(truth, "dice"), "dice")
    assert found.value == pytest.approx(-1 / 3)
    assert found.low == pytest.approx(-1)
    assert found.high == 0
    assert found.verdict == "no difference"


def test_groups_are_compared_by_their_means() -> None:
    """Three networks against one: the interval is that of the images' mean differences."""
    generator = torch.Generator().manual_seed(0)
    before = torch.rand(2000, generator=generator) < 0.8
    seeds = [torch.where(torch.rand(2000, generator=generator) < 0.1, ~before, before) for _ in range(3)]
    found = mean_difference([evaluation(each) for each in seeds], [evaluation(before)], "accuracy")
    changes = torch.stack(seeds).double().mean(0) - before.double()
    half = norm.ppf(0.975) * float(changes.std()) / math.sqrt(len(changes))
    assert found.value == pytest.approx(float(changes.mean()), abs=1e-6)
    assert [found.low, found.high] == pytest.approx([found.value - half, found.value + half], abs=0.1 * half)


def test_seeds_are_averaged_by_their_dice_and_not_by_their_pixels() -> None:
    """One seed finds each of two tumours, the other none: the mean Dice is one half, that of the mean areas 2/3."""
    whole = torch.tensor([[[4, 4, 4, 9]], [[3, 3, 3, 9]]])
    nothing = whole * torch.tensor([0, 0, 1, 1])
    found = mean_difference(
        [evaluation(whole, "dice"), evaluation(nothing, "dice")], [evaluation(whole, "dice")], "dice"
    )
    assert (found.value, found.low, found.high, found.verdict) == (-0.5, -0.5, -0.5, "worse")


@pytest.mark.parametrize(("better", "worse", "verdict"), [(4, 0, 0), (5, 0, 0), (6, 0, 1), (7, 1, 0), (9, 1, 1)])
def test_few_images_are_compared_by_the_exact_test(better: int, worse: int, verdict: int) -> None:
    """McNemar's p is 0.125, 0.0625, 0.031, 0.070 and 0.021; the bootstrap alone would call all of them better."""
    before = torch.ones(1000).bool()
    before[:better] = False
    after = torch.ones(1000).bool()
    after[better : better + worse] = False
    found = paired_difference(evaluation(after), evaluation(before), "accuracy")
    assert found.verdict == ("better" if verdict else "no difference")
    assert found.low <= found.value <= found.high
    alone = mean_difference([evaluation(after)], [evaluation(before)], "accuracy")
    assert (alone.verdict, alone.high) == ("better", found.high)
    against = paired_difference(evaluation(before), evaluation(after), "accuracy")
    assert against.verdict == ("worse" if verdict else "no difference")


def test_the_images_are_drawn_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    hits = torch.arange(400) % 3 == 0
    whole = mean_difference([evaluation(hits)], [evaluation(hits.roll(1))], "accuracy")
    monkeypatch.setattr("common.training.comparison.DRAWN", 1200)
    parts = mean_difference([evaluation(hits)], [evaluation(hits.roll(1))], "accuracy")
    assert (parts.low, parts.high) == (whole.low, whole.high)


def test_one_image_has_no_interval() -> None:
    found = paired_difference(evaluation(torch.tensor([True])), evaluation(torch.tensor([False])), "accuracy")
    assert (found.value, found.verdict) == (1, "")


def test_other_images_are_refused() -> None:
    with pytest.raises(ValueError, match="after has 2 images, before has 3"):
        paired_difference(evaluation(torch.ones(2).bool()), evaluation(torch.ones(3).bool()), "accuracy")


@pytest.mark.filterwarnings("error")
def test_draws_in_which_the_metric_is_undefined_are_left_out() -> None:
    counts = torch.zeros(50, 1, 4)  # overlap, found, true and all pixels: four images of fifty have a mask
    counts[:4, :, :3] = torch.tensor([[[80.0, 100, 100]], [[60, 90, 100]], [[70, 80, 90]], [[50, 60, 70]]])
    observe = METRICS["dice_present"].observe
    worse = counts.clone()
    worse[:, :, 0] /= 2
    found = mean_difference([Evaluation({}, {observe: counts})], [Evaluation({}, {observe: worse})], "dice_present")
    assert found.low <= found.value <= found.high
    assert found.low > 0
