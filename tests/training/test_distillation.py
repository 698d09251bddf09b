from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable

import pytest
import torch
from torch import nn

from common.data.tasks import Classification, Segmentation
from common.training import TrainingSettings, train
from common.training.distillation import Teacher, feature_loss
from tests.networks import Returning, tiny_cnn, tiny_digits


def test_distillation_pulls_toward_the_teacher() -> None:
    data = tiny_digits(limit=300)
    teacher = tiny_cnn()
    train(teacher, data, TrainingSettings(epochs=6.0, amp="off"))
    student = tiny_cnn(seed=5)
    inputs = next(iter(data.validation))[0]

    def distance() -> float:
        with torch.no_grad():
            return Classification().distillation_loss(student.eval()(inputs), teacher(inputs), 2.0).item()

    before = distance()
    train(student, data, TrainingSettings(epochs=8.0, distillation=1.0, amp="off"), teacher=teacher)
    assert distance() < 0.5 * before


def test_features_pull_toward_the_teachers() -> None:
    data, teacher, student = tiny_digits(limit=300), tiny_cnn(), tiny_cnn(seed=5)
    inputs = next(iter(data.validation))[0]

    def distance() -> float:
        with torch.no_grad():
            return feature_loss(
                student.eval().conv(inputs.new_ones(4, 16, 8, 8)), teacher.conv(inputs.new_ones(4, 16, 8, 8))
            ).item()

    before = distance()
    settings = TrainingSettings(epochs=6.0, distillation=1.0, features=("stem", "conv"), amp="off")
    train(student, data, settings, teacher=teacher)
    assert distance() < 0.7 * before
    assert not any(module._forward_hooks for module in (*student.modules(), *teacher.modules()))


def test_the_loss_of_classes_by_hand() -> None:
    """Two classes at T = 1: KL((0.8, 0.2) || (0.5, 0.5)) = 0.8 ln 1.6 + 0.2 ln 0.4; softening by 2 multiplies by 4."""
    taught, logits, loss = torch.tensor([[0.8, 0.2]]).log(), torch.zeros(1, 2), Classification().distillation_loss
    expected = 0.8 * math.log(1.6) + 0.2 * math.log(0.4)
    assert loss(logits, taught, 1.0) == pytest.approx(expected, rel=1e-5)
    assert loss(2 * logits, 2 * taught, 2.0) == pytest.approx(4 * expected, rel=1e-5)
    assert loss(taught, taught, 3.0) == pytest.approx(0, abs=1e-6)


def test_the_loss_of_masks_by_hand() -> None:
    """A pixel of 0.8 against one of 0.5 diverges as two classes do; the mean is over all pixels."""
    taught, loss = torch.full((2, 1, 3, 3), math.log(0.8 / 0.2)), Segmentation().distillation_loss
    expected = 0.8 * math.log(1.6) + 0.2 * math.log(0.4)
    assert loss(torch.zeros_like(taught), taught, 1.0) == pytest.approx(expected, rel=1e-5)
    assert loss(torch.zeros_like(taught), 2 * taught, 2.0) == pytest.approx(4 * expected, rel=1e-5)
    assert loss(taught, taught, 2.0) == pytest.approx(0, abs=1e-6)


def test_the_loss_of_features_by_hand() -> None:
    taught = torch.tensor([0.0, 2.0])  # of variance 1
    assert feature_loss(torch.tensor([1.0, 2.0]), taught) == pytest.approx(0.5)


def test_a_feature_that_a_network_lacks_is_named() -> None:
    with pytest.raises(ValueError, match="features='stern': the network has no module of this name"):
        Teacher(tiny_cnn(), nn.Identity(), Classification(), 2.0, ("stern",))


def test_a_name_that_one_of_them_lacks_leaves_no_trace() -> None:
    teacher, student = tiny_cnn(), nn.Sequential(nn.Conv2d(3, 4, 3))
    with pytest.raises(ValueError, match=r"^features='stem': the network has no module of this name$"):
        Teacher(teacher, student, Classification(), 2.0, ("stem",))
    assert not any(module._forward_hooks for module in (*student.modules(), *teacher.modules()))


def test_the_teacher_keeps_its_mode() -> None:
    teacher, seen = tiny_cnn().train(), []
    teacher.register_forward_hook(lambda module, _, __: seen.append(module.training))
    teaching = Teacher(teacher, tiny_cnn(seed=5), Classification(), 2.0, ())
    teaching.loss(torch.randn(2, 3, 8, 8), torch.zeros(2, 10))
    assert seen == [False]
    assert all(module.training for module in teacher.modules())


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (
            lambda x, _: {"out": x, "aux": x},
            r"the teacher must return one tensor, but it returns a dict \(keys out, aux\)",
        ),
        (lambda x, _: x[:, :1], r"outputs: the network's have the shape \(32, 10\) and the teacher's \(32, 1\)"),
        (lambda x, _: torch.cat([x, x], 1), r"the teacher's \(32, 20\); they must be the same"),
    ],
)
def test_a_teacher_with_other_outputs_is_named(make: Callable[[torch.Tensor, bool], object], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        train(tiny_cnn(), tiny_digits(), TrainingSettings(epochs=1.0, amp="off"), teacher=Returning(make))


def test_features_that_cannot_be_compared_are_named() -> None:
    settings = TrainingSettings(epochs=1.0, features=("stem",), amp="off")
    with pytest.raises(ValueError, match=r"features='stem': the network's have the shape \(32, 16, 8, 8\)"):
        train(tiny_cnn(), tiny_digits(), settings, teacher=tiny_cnn(width=8))
    pairs = [nn.Sequential(OrderedDict(body=Returning(lambda x, _: (x, x)), last=First())) for _ in range(2)]
    settings = TrainingSettings(epochs=1.0, features=("body",), amp="off")
    with pytest.raises(ValueError, match="features='body': the module must return one tensor, but it returns a tuple"):
        train(pairs[0], tiny_digits(), settings, teacher=pairs[1])


class First(nn.Module):
    def forward(self, x: tuple[torch.Tensor, ...]) -> torch.Tensor:
        return x[0]
