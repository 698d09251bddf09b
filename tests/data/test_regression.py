"""Numbers to predict: how they are recognised, and how networks for them are judged, trained and shrunk."""

from __future__ import annotations

import math
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.datasets import load_digits
from sklearn.metrics import r2_score
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from common.calibration.divergence import standardized_error
from common.data import METRICS, TASKS, DataBundle
from common.data.tasks import Regression, task_of
from common.data.tasks.regression import moments, r2
from common.planning import Budget
from common.search import SearchSettings, search_ranks
from common.shrink import shrink
from common.shrink.__main__ import main
from common.training import TrainingSettings, evaluate, evaluate_images, paired_difference, train

generator = torch.Generator().manual_seed(0)
CLEAN = F.interpolate(torch.rand(96, 1, 4, 4, generator=generator), 12, mode="bilinear")
NOISY = CLEAN + 0.1 * torch.randn(CLEAN.shape, generator=generator)
DISCS = (F.interpolate(torch.rand(8, 2, 4, 4, generator=generator), 12) > 0.5).float()


def loader(inputs: Tensor = NOISY, targets: Tensor = CLEAN) -> DataLoader[Any]:
    return DataLoader(TensorDataset(inputs, targets), batch_size=16)


def bundle(targets: Tensor = CLEAN, **options: Any) -> DataBundle:
    return DataBundle.from_loaders(loader(NOISY[:64], targets[:64]), loader(NOISY[64:], targets[64:]), **options)


def denoiser(width: int = 16) -> nn.Sequential:
    torch.manual_seed(0)
    widths = (1, width, width, 1)
    layers = [nn.Sequential(nn.Conv2d(a, b, 3, padding=1), nn.ReLU()) for a, b in pairwise(widths)]
    return nn.Sequential(*layers[:-1], layers[-1][0]).eval()


@pytest.mark.parametrize(
    ("targets", "task"),
    [
        (CLEAN, "regression"),
        (CLEAN * 255, "regression"),
        (torch.randn(8), "regression"),
        (torch.randn(8, 4), "regression"),
        (torch.rand(8, 3, 4), "regression"),
        (DISCS, "segmentation"),
        (DISCS.long(), "segmentation"),
        (DISCS * 255, "segmentation"),  # refused later: masks must be in [0, 1]
        (F.avg_pool2d(F.pad(DISCS, (2, 2, 2, 2)), 2), "segmentation"),  # soft edges
        (0.9 * DISCS + 0.05, "segmentation"),  # smoothed
        (CLEAN * (CLEAN > 0.5), "regression"),  # on a black ground
        (0.9 * F.one_hot(torch.arange(8)) + 0.05, None),  # smoothed labels of which several may hold
        (torch.zeros(8, 1, 4, 4), "segmentation"),
        (torch.arange(8), "classification"),
        (torch.arange(8.0), "classification"),  # refused later: of a whole-number type
        (torch.rand(8, 4).softmax(1), None),
        (F.one_hot(torch.arange(8)).float(), None),
    ],
)
def test_targets_tell_the_task(targets: Tensor, task: str | None) -> None:
    found = task_of(targets)
    assert (found and found.name) == task


@given(st.integers(2, 20), st.integers(1, 4), st.integers(0, 1000), st.floats(0, 100))
def test_r2_is_that_of_scikit_learn(count: int, outputs: int, seed: int, offset: float) -> None:
    draw = torch.Generator().manual_seed(seed)
    truth, guess = torch.randn(2, count, outputs, 3, generator=draw).double() + offset
    flat = (each.movedim(1, 2).reshape(-1, outputs).numpy() for each in (truth, guess))
    assert r2(moments(guess, truth)) == pytest.approx(r2_score(*flat), rel=1e-6, abs=1e-6)


@pytest.mark.parametrize("offset", [1e4, 1e6, -3e6])
def test_r2_holds_far_from_zero(offset: float) -> None:
    draw = torch.Generator().manual_seed(0)
    truth = offset + 0.5 * torch.randn(200, 1, generator=draw)
    guess = truth + 0.25 * torch.randn(200, 1, generator=draw)
    assert r2(moments(guess, truth)) == pytest.approx(r2_score(truth.numpy(), guess.numpy()), rel=1e-3)
    constant = torch.full((9, 1), offset)
    assert r2(moments(constant, constant)) == 1
    assert r2(moments(constant + 0.5, constant)) == 0


def test_r2_of_what_is_not_finite_is_not_a_number() -> None:
    truth = torch.randn(5, 2)
    for value in (torch.inf, torch.nan):
        broken = truth.clone()
        broken[0, 0] = value
        assert math.isnan(r2(moments(truth, broken)))
        assert math.isnan(r2(moments(broken, truth)))
    assert math.isnan(r2(moments(torch.tensor([[math.nan], [3]]), torch.full((2, 1), 3.0))))


def test_digits_on_a_black_ground_are_numbers() -> None:
    digits = torch.from_numpy(load_digits().images[:64] / 16).float()[:, None]
    assert task_of(digits) is TASKS["regression"]


def test_a_constant_target_counts_one_if_it_is_predicted_exactly() -> None:
    truth = torch.stack([torch.full((4,), 3.0), torch.tensor([1.0, 2.0, 3.0, 4.0])], dim=1)
    assert r2(moments(truth, truth)) == 1
    guess = truth.clone()
    guess[0, 0] = 4
    assert r2(moments(guess, truth)) == 0.5
    assert r2(moments(truth[:, 1:].mean().expand(4, 1), truth[:, 1:])) == pytest.approx(0)


def test_a_column_serves_targets_without_one() -> None:
    task, truth = Regression(), torch.tensor([0.5, 1.5])
    assert float(task.loss(torch.tensor([[1.5], [1.5]]), truth)) == 0.5
    assert r2(moments(torch.tensor([[0.5], [1.5]]), truth)) == 1
    with pytest.raises(ValueError, match=r"logits \(2, 2\) and targets \(2,\)"):
        task.loss(torch.zeros(2, 2), truth)
    assert task.loss(torch.zeros(2, 1, 3, 3), torch.ones(2, 3, 3)) == 1
    assert task.loss(truth, truth[:, None], 0.1) == 0
    with pytest.raises(ValueError, match="numbers of one shape"):
        task.loss(torch.zeros(2, 2, 3, 3), torch.ones(2, 3, 3))


def test_a_bundle_of_clean_images_trains_a_denoiser_and_judges_it() -> None:
    data = bundle()
    assert (data.task, data.metric, data.classes) == ("regression", "r2", ("0",))
    model = denoiser()
    before = evaluate_images(model, data.test)
    train(model, data, TrainingSettings(optimizer="adamw", epochs=10, learning_rate=0.02))
    after = evaluate_images(model, data.test)
    assert after.metrics["r2"] > max(0, before.metrics["r2"])
    assert paired_difference(after, before, "r2").low > 0
    with torch.no_grad():
        error = F.mse_loss(model(NOISY[65::2]), CLEAN[65::2])
    assert after.metrics["loss"] == pytest.approx(float(error), rel=1e-3)


def test_a_student_is_pulled_to_the_teachers_numbers_at_any_temperature() -> None:
    student, taught = torch.tensor([[1.0, 2.0]], requires_grad=True), torch.tensor([[2.0, 4.0]])
    losses = [Regression().distillation_loss(student, taught, temperature) for temperature in (1.0, 4.0)]
    assert [loss.item() for loss in losses] == [2.5, 2.5]
    losses[0].backward()
    assert student.grad is not None
    assert torch.equal(student.grad, student.detach() - taught)


@pytest.mark.parametrize(
    ("targets", "message"),
    [
        (CLEAN.where(CLEAN > 0.1, torch.nan), "targets are not all finite"),
        (CLEAN[:, :, :, :6], None),
    ],
)
def test_unsuitable_targets_are_named(targets: Tensor, message: str | None) -> None:
    if message:
        with pytest.raises(ValueError, match=message):
            bundle(targets)
    else:
        with pytest.raises(ValueError, match="numbers of one shape"):
            evaluate(denoiser(), bundle(targets).validation)


def test_the_task_that_is_named_outweighs_what_the_targets_look_like() -> None:
    drawn = (CLEAN > 0.5).float()  # a binary image to be predicted as numbers
    data = bundle(drawn, task="regression")
    assert data.task == "regression"
    assert set(evaluate(denoiser(), data.validation)) == {"r2", "loss"}
    assert "dice" in evaluate(denoiser(), bundle(drawn).validation)
    assert "r2" in evaluate(denoiser(), loader(NOISY, drawn), "regression")
    model = denoiser()
    named = shrink(model, list(loader(NOISY, drawn)), Budget(macs=0.5), "svd", task="regression")
    assert set(named.metrics) == {"r2", "loss"}
    assert "divergence: squared error" in str(named)
    masks = shrink(model, list(loader(NOISY, drawn)), Budget(macs=0.5), "svd")
    assert "dice" in masks.metrics
    assert "divergence: Kullback-Leibler divergence of masks" in str(masks)


def test_a_search_goes_by_the_task_that_is_named(tmp_path: Path) -> None:
    drawn = (CLEAN > 0.5).float()
    soft = F.avg_pool2d(F.pad((CLEAN > 0.9).float(), (1, 0, 1, 0)), 2, 1)
    settings = SearchSettings(method="svd", trials=1, finetune_top=0, budget=Budget(macs=0.6), table=False)
    for targets, task in ((drawn, "regression"), (soft, "segmentation")):
        data = bundle(targets, task=task)
        model = denoiser()
        train(model, data, TrainingSettings(optimizer="adamw", epochs=3, learning_rate=0.02))
        result = search_ranks(model, data, settings, run=task, logs=tmp_path)
        assert data.metric in result.records[0].metrics["recalibrated"]


def test_a_dense_network_that_is_worse_than_the_mean_is_not_searched(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"r2 on validation is .* train it first"):
        search_ranks(
            denoiser(), bundle(CLEAN + 9), SearchSettings(method="svd", budget=Budget(macs=0.6)), logs=tmp_path
        )


def test_depths_without_a_channel_axis_are_one_variable() -> None:
    smaller, whole = loader(NOISY[:, :, :8], CLEAN[:, 0, :8]), loader(NOISY, CLEAN[:, 0])
    data = DataBundle.from_loaders(smaller, whole, whole)
    assert (data.task, data.classes) == ("regression", ("0",))
    assert evaluate(denoiser(), data.test)["r2"] == evaluate(denoiser(), loader())["r2"]
    for one, other in ((torch.tensor(0.5), torch.tensor([0.5])), (torch.tensor([0.5]), torch.tensor(0.5))):
        with pytest.raises(ValueError, match="numbers of one shape"):
            Regression().loss(one, other)


def test_a_guess_that_may_be_wrong_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    bundle()
    assert "targets in [0, 1] are taken for regression" in capsys.readouterr().err
    bundle(task="regression")
    bundle((CLEAN > 0.5).float())
    assert "taken for" not in capsys.readouterr().err


@pytest.mark.filterwarnings("ignore:the network's outputs look like probabilities")
def test_a_training_does_not_continue_as_another_task(tmp_path: Path) -> None:
    drawn, settings = (CLEAN > 0.5).float(), TrainingSettings(epochs=1)
    train(denoiser(), bundle(drawn), settings, checkpoint=tmp_path / "state")
    with pytest.raises(ValueError, match=r"other settings \(task"):
        train(denoiser(), bundle(drawn, task="regression"), settings, checkpoint=tmp_path / "state")


def test_the_task_says_how_outputs_without_targets_are_compared() -> None:
    model = nn.Sequential(denoiser(), nn.Flatten(), nn.Linear(144, 4)).eval()
    scores = shrink(model, [NOISY], Budget(macs=0.5), "svd")
    assert "divergence: Kullback-Leibler divergence of class probabilities" in str(scores)
    numbers = shrink(model, [NOISY], Budget(macs=0.5), "svd", task="regression")
    assert "divergence: squared error" in str(numbers)
    with pytest.raises(ValueError, match="task='regress' is unknown"):
        shrink(model, [NOISY], Budget(macs=0.5), "svd", task="regress")
    with pytest.raises(ValueError, match="targets"):
        shrink(model, [(NOISY, CLEAN)], Budget(macs=0.5), "svd", task="classification")


def test_a_shrunk_denoiser_reports_r2() -> None:
    found = shrink(denoiser(), list(loader()), Budget(macs=0.5), "svd")
    assert set(found.metrics) == {"r2", "loss"}
    assert found.measure is standardized_error
    assert METRICS["r2"].greater_is_better


@pytest.mark.parametrize("shape", [(40, 3), (40, 3, 5, 5)])
def test_the_divergence_of_numbers_does_not_depend_on_their_units(shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    dense = torch.randn(shape, dtype=torch.float64)
    output = dense + 0.1 * torch.randn(shape, dtype=torch.float64)
    scale, offset = (torch.tensor(each).reshape(3, *[1] * (len(shape) - 2)) for each in ([1.0, 1e4, 1e-3], [0, 7, -2]))
    expected = standardized_error(dense, output)
    found = standardized_error(dense * scale + offset, output * scale + offset)
    torch.testing.assert_close(found, expected)
    assert float(expected.mean()) == pytest.approx(0.01, rel=0.3)
    one = standardized_error(dense.flatten(), output.flatten())  # a single number for each input
    torch.testing.assert_close(one, standardized_error(dense.reshape(-1, 1), output.reshape(-1, 1)))


def test_a_variable_that_does_not_vary_keeps_its_own_scale() -> None:
    dense = torch.tensor([[5.0, 0.0], [5.0, 2.0]])
    assert float(standardized_error(dense, dense).sum()) == 0
    torch.testing.assert_close(standardized_error(dense, dense + torch.tensor([3.0, 0.0])), torch.full((2,), 4.5))


def test_the_command_shrinks_and_finetunes_a_denoiser(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    torch.save((NOISY, CLEAN), tmp_path / "images.pt")
    (tmp_path / "mydenoiser.py").write_text(
        """
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 1, 3, padding=1))


def loaders():
    pairs = torch.load("images.pt", weights_only=True)
    return tuple(
        DataLoader(TensorDataset(*(each[part] for each in pairs)), batch_size=16)
        for part in (slice(0, 48), slice(48, 72), slice(72, 96))
    )
""",
        encoding="utf-8",
    )
    command = [
        "--network",
        "mydenoiser:network",
        "--dataset",
        "mydenoiser:loaders",
        "--macs",
        "0.6",
        "--method",
        "svd",
    ]
    assert main([*command, "--finetune-epochs", "1", "--rounds", "3"]) == 0
    text = capsys.readouterr().out
    assert "R2 on the 24 images of the test split" in text
    assert "dice" not in text.lower()
    sys.modules.pop("mydenoiser")
