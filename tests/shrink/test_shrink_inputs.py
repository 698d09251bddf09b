"""What strangers give to ``shrink``: odd outputs, batches, dtypes and modes, and arguments that are not allowed."""

from __future__ import annotations

import math
import re
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from common.calibration import recalibrate_bn
from common.calibration.divergence import kl_divergence, mask_divergence, mean_divergence, squared_error
from common.network.batches import joined
from common.planning import Budget, Entropy
from common.planning.rules import Fixed
from common.shrink import ShrinkSteps, shrink

HALF = Budget(params=0.5)


def images(count: int, size: int = 12) -> Tensor:
    return torch.randn(count, 3, size, size)


def network(*head: nn.Module, seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    body = [nn.Conv2d(3, 24, 3, padding=1), nn.ReLU(), nn.Conv2d(24, 32, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1)]
    return nn.Sequential(*body, nn.Flatten(), *(head or (nn.Linear(32, 10),))).eval()


class Masked(nn.Module):
    """A network that excludes a class."""

    def __init__(self, logit: float) -> None:
        super().__init__()
        self.logit, self.scores = logit, network()

    def forward(self, x: Tensor) -> Tensor:
        mask = torch.zeros(10)
        mask[3] = self.logit
        masked: Tensor = self.scores(x) + mask
        return masked


def test_an_excluded_class_adds_nothing_to_the_divergence() -> None:
    torch.manual_seed(0)
    batches = [images(32), images(32)]
    excluded, unlikely = (shrink(Masked(logit).eval(), batches, HALF, "svd") for logit in (-math.inf, -1e4))
    assert 0 < excluded.divergence == pytest.approx(unlikely.divergence, rel=1e-3)
    assert [step.kept for step in excluded.steps] == [step.kept for step in unlikely.steps]


@pytest.mark.parametrize("dtype", [torch.int64, torch.uint8])
def test_maps_of_class_numbers_are_compared_by_the_classes_of_each_pixel(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 24, 3, padding=1), nn.ReLU(), nn.Conv2d(24, 4, 3, padding=1)).eval()
    batches = [images(16), images(16)]
    maps = [(x, torch.randint(0, 4, (16, 12, 12)).to(dtype)) for x in batches]
    found = shrink(model, maps, HALF)
    assert found.measure is kl_divergence
    assert found.metrics == {}
    assert found.divergence > 0
    assert shrink(model, batches, HALF).measure is squared_error
    assert shrink(model, [(x, targets[:, :6]) for x, targets in maps], HALF).measure is squared_error


def test_outputs_that_are_no_numbers_are_infinitely_far() -> None:
    dense, broken = torch.randn(4, 10), torch.full((4, 10), math.nan)
    for divergence in (kl_divergence, squared_error):
        assert mean_divergence(divergence, dense, broken) == math.inf
        assert mean_divergence(divergence, dense, dense) == 0
    with pytest.raises(ValueError, match="the dense network's outputs on the held-out calibration images are not fin"):
        shrink(Masked(math.nan).eval(), [images(16)], HALF, "svd")


def test_a_half_precision_network_with_ordinary_activations() -> None:
    model = nn.Sequential(nn.Conv2d(3, 64, 3, padding=1), nn.ReLU(), nn.Conv2d(64, 10, 3), nn.AdaptiveAvgPool2d(1))
    nn.init.constant_(model[0].get_parameter("bias"), 0.3)  # a sum over all positions exceeds the range of float16
    found = shrink(model.half().eval(), [torch.rand(64, 3, 32, 32).half()], HALF, "svd")
    assert found.divergence < 1e-3


@pytest.mark.parametrize("sizes", [(32, 32, 1), (1, 32), (2,) * 8, (1,) * 16, (2,)])
@pytest.mark.filterwarnings("ignore:too few calibration patches")
def test_batchnorm_of_a_head_gets_two_inputs_at_least(sizes: tuple[int, ...]) -> None:
    model = network(nn.Linear(32, 64), nn.BatchNorm1d(64), nn.ReLU(), nn.Linear(64, 10))
    found = shrink(model, [images(count) for count in sizes], HALF, "svd")
    assert found.after.params <= 0.5 * found.before.params


def test_batches_of_one_join_the_next_when_batchnorm_is_recalibrated() -> None:
    x = images(9)
    whole, cut = nn.BatchNorm2d(3), nn.BatchNorm2d(3)
    for norm, batches in ((whole, [x[:4], x[4:8]]), (cut, [x[:1], x[1:4], x[4:8], x[8:]])):
        assert recalibrate_bn(nn.Sequential(norm), batches) == 1
    torch.testing.assert_close(whole.running_mean, cut.running_mean)
    torch.testing.assert_close(whole.running_var, cut.running_var)


def test_batches_are_joined_by_shape() -> None:
    counts = [(len(batch), batch.shape[-1]) for batch in joined([images(n, s) for n, s in SHAPES], 4)]
    assert counts == [(4, 8), (6, 16), (3, 8)]
    assert [len(batch) for batch in joined([images(1) for _ in range(9)], 4)] == [4, 5]


SHAPES = ((1, 8), (3, 8), (5, 16), (1, 16), (3, 8))


def test_images_of_several_sizes() -> None:
    found = shrink(network(), [images(32), images(32, 16)], HALF)
    assert found.after.params <= 0.5 * found.before.params
    dense = nn.Sequential(nn.Conv2d(3, 24, 3), nn.Conv2d(24, 3, 3)).eval()
    with pytest.raises(ValueError, match=r"outputs have shapes \(3, 8, 8\), \(3, 12, 12\) for inputs of diff"):
        shrink(dense, [images(32), images(32, 16)], HALF)


def test_a_regressor_without_an_axis_of_outputs_is_as_one_with_it() -> None:
    torch.manual_seed(1)
    x = images(64)
    regressor = network(nn.Linear(32, 1))
    flat = nn.Sequential(*regressor, nn.Flatten(0)).eval()
    plain, squeezed = (shrink(each, [x], HALF, "svd") for each in (regressor, flat))
    assert plain.divergence == pytest.approx(squeezed.divergence, rel=1e-4)
    with pytest.raises(ValueError, match=r"output has shape \(\) for \d+ inputs; its first axis must be that of"):
        shrink(nn.Sequential(network(), Mean()).eval(), [x], HALF)


class Mean(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.mean()


def test_a_single_image_is_a_batch_of_one() -> None:
    torch.manual_seed(1)
    x = images(32)
    singly, together = (shrink(network(), batches, HALF, "svd") for batches in (list(x), list(x.split(1))))
    assert singly.plan == together.plan
    with pytest.raises(ValueError, match=r"the network does not take x of shape .* and dtype uint8"):
        shrink(network(), [x.to(torch.uint8)], HALF)


@pytest.mark.parametrize("targets", [[{"boxes": 0}] * 32, None, ["name"] * 32])
def test_targets_that_are_no_tensor_add_no_metrics(targets: Any) -> None:
    assert shrink(network(), [(images(32), targets)], HALF, "svd").metrics == {}


def test_the_callers_modes_and_random_numbers_make_no_difference() -> None:
    torch.manual_seed(1)
    x = images(64)
    plain = shrink(network(), [x], HALF, "svd")
    with torch.autocast("cpu", torch.bfloat16):
        mixed = shrink(network(), [x], HALF, "svd")
        assert torch.is_autocast_enabled("cpu")
    with torch.inference_mode():
        inferred = shrink(network(), [x.clone()], HALF, "svd")
    for found in (mixed, inferred):
        assert found.divergence == pytest.approx(plain.divergence, rel=1e-4)
    model = network()
    torch.manual_seed(7)
    shrink(model, [x], HALF, "svd")
    drawn = torch.rand(1)
    torch.manual_seed(7)
    assert drawn == torch.rand(1)


NO_WORK: list[tuple[Any, str, str]] = [
    (Fixed(4), "mixed", "method='mixed' with Fixed ranks"),
    (Fixed({"nosuch": 4}), "svd", "layer name in ranks='nosuch' is unknown; allowed: 0, 2, 6"),
    (Budget(latency=0.5), "cp", "method='cp': the times of its layers are not tabulated"),
    (Budget(latency=0.5, runtime="tflite"), "mixed", "runtime='tflite' is unknown"),
]


@pytest.mark.parametrize(("rule", "method", "said"), NO_WORK)
def test_a_rule_that_cannot_plan_is_refused_before_any_work(
    rule: Any, method: str, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def calibrate(*_: Any, **__: Any) -> None:
        raise AssertionError("the work began")

    monkeypatch.setattr("common.shrink.shrinking.calibrate", calibrate)
    with pytest.raises(ValueError, match=re.escape(said)):
        shrink(network(), [images(8)], rule, method)


def test_a_network_whose_layers_cannot_be_timed_is_refused_before_any_work() -> None:
    with pytest.raises(
        ValueError, match=r"^device='meta': latency tables are measured on the processor; allowed: cpu"
    ):
        shrink(network().to("meta"), [images(8)], Budget(latency=0.5))


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: Budget(params="0.5"), "Budget(params='0.5'): it must be in (0, 1]"),  # type: ignore[arg-type]
        (lambda: Budget(params=True), "Budget(params=True): it must be in (0, 1]"),
        (lambda: Budget(params=0.5, round_to=2.5), "round_to=2.5: it must be a whole number"),  # type: ignore[arg-type]
        (lambda: Entropy("x"), "tau='x': it must be in [0, 1]"),  # type: ignore[arg-type]
        (lambda: Fixed(0), "ranks=0: it must be a whole number of at least 1, a fraction in (0, 1]"),
        (lambda: Fixed({"0": "most"}), "ranks='most': it must be a whole number of at least 1"),
        (lambda: Fixed(1.5), "ranks=1.5: it must be"),
        (lambda: ShrinkSteps(improve=1.5), "improve=1.5: it must be a whole number of sweeps"),  # type: ignore[arg-type]
        (lambda: ShrinkSteps(improve=-1), "improve=-1: it must be a whole number of sweeps"),
    ],
)
def test_settings_of_a_wrong_type_are_refused(make: Any, said: str) -> None:
    with pytest.raises(ValueError, match=re.escape(said)):
        make()


@pytest.mark.parametrize("masks", [1, 3])
def test_masks_are_compared_as_masks_where_targets_show_them(masks: int) -> None:
    torch.manual_seed(1)
    model, x = nn.Sequential(nn.Conv2d(3, 24, 3, padding=1), nn.ReLU(), nn.Conv2d(24, masks, 3, padding=1)), images(32)
    targets = torch.rand(32, masks, 12, 12).round()
    found = shrink(model.eval(), [(x, targets)], HALF, "svd")
    unknown = shrink(model.eval(), [x], HALF, "svd")
    asked = shrink(model.eval(), [x], HALF, "svd", divergence=mask_divergence)
    assert found.divergence == asked.divergence != unknown.divergence
    assert "dice" in found.metrics


@pytest.mark.parametrize("masks", [1, 3])
def test_the_divergence_of_masks_is_that_of_independent_outcomes(masks: int) -> None:
    dense, output = torch.randn(2, 5, masks, 4, 4)
    wanted, given = dense.sigmoid().double(), output.sigmoid().double()
    terms = wanted * (wanted / given).log() + (1 - wanted) * ((1 - wanted) / (1 - given)).log()
    torch.testing.assert_close(mask_divergence(dense, output), terms.flatten(1).mean(1).float())
    assert mask_divergence(dense, dense).abs().max() < 1e-7
