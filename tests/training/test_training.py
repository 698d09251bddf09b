from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset, RandomSampler, TensorDataset

from common.data import DataBundle, load_data
from common.models import build_model
from common.training import EpochLog, TrainingSettings, evaluate, train
from common.training.loop import _Run, uses_bfloat16
from tests.networks import Returning, bright_images, same_weights, tiny_cnn, tiny_digits


class Killed(Exception):
    pass


def without_seconds(history: list[EpochLog]) -> list[EpochLog]:
    return [{name: value for name, value in entry.items() if name != "seconds"} for entry in history]


def test_training_learns() -> None:
    model, data = tiny_cnn(), tiny_digits(limit=600)
    before = evaluate(model, data.validation)["accuracy"]
    history = train(model, data, TrainingSettings(epochs=5.0, learning_rate=0.1, amp="off"))
    assert [entry["epoch"] for entry in history] == [1, 2, 3, 4, 5]
    assert history[-1]["train_loss"] < history[0]["train_loss"]
    assert evaluate(model, data.validation)["accuracy"] > max(0.6, before)


def test_the_best_epoch_is_kept() -> None:
    model, data = tiny_cnn(), tiny_digits()
    history = train(model, data, TrainingSettings(epochs=4.0, learning_rate=0.3, amp="off"))
    assert evaluate(model, data.validation)["accuracy"] == max(entry["accuracy"] for entry in history)


def test_a_fraction_of_an_epoch() -> None:
    data = tiny_digits()
    assert len(data.train) == 3
    history = train(tiny_cnn(), data, TrainingSettings(epochs=1.4, amp="off"))
    assert [round(entry["epoch"], 2) for entry in history] == [1, 1.33]


@pytest.mark.parametrize("amp", ["off", "on"])
def test_an_interrupted_training_continues_to_the_same_result(tmp_path: Path, amp: str) -> None:
    settings = TrainingSettings(epochs=4.0, amp=amp)  # type: ignore[arg-type]
    whole, stopped = tiny_cnn(), tiny_cnn()
    expected = train(whole, tiny_digits(), settings)

    def kill(entry: EpochLog) -> None:
        if entry["epoch"] == 3:
            raise Killed

    path = tmp_path / "run.checkpoint"
    with pytest.raises(Killed):
        train(stopped, tiny_digits(), settings, checkpoint=path, on_epoch=kill)
    resumed = tiny_cnn(seed=9)
    assert without_seconds(train(resumed, tiny_digits(), settings, checkpoint=path)) == without_seconds(expected)
    assert same_weights(resumed, whole)
    with pytest.raises(ValueError, match=r"written under other settings \(learning_rate\)"):
        train(
            tiny_cnn(),
            tiny_digits(),
            TrainingSettings(epochs=4.0, learning_rate=0.2, amp=settings.amp),
            checkpoint=path,
        )


class Dropping(nn.Module):
    """A network that draws random numbers while it trains."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        self.inner = tiny_cnn(seed)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.inner(nn.functional.dropout(x, 0.2, self.training))


def train_and_continue(
    build: Callable[..., nn.Module], data: Callable[[], DataBundle], settings: TrainingSettings, path: Path
) -> list[EpochLog]:
    """Check that a training killed after epoch 2 continues as if it had not been, and return its history."""

    def kill(entry: EpochLog) -> None:
        if entry["epoch"] == 2:
            raise Killed

    whole = build(seed=0)
    expected = train(whole, data(), settings)
    with pytest.raises(Killed):
        train(build(seed=0), data(), settings, checkpoint=path, on_epoch=kill)
    torch.rand(7)
    resumed = build(seed=9)
    assert without_seconds(train(resumed, data(), settings, checkpoint=path)) == without_seconds(expected)
    assert same_weights(resumed, whole)
    return expected


def test_a_continued_training_draws_the_same_random_numbers(tmp_path: Path) -> None:
    settings, path = TrainingSettings(epochs=3.0, amp="off"), tmp_path / "run.checkpoint"

    def data() -> DataBundle:
        return load_data("digits", image_size=8, batch_size=32, limit=96, augment=True)

    train_and_continue(Dropping, data, settings, path)


def test_a_checkpoint_of_another_network_is_refused(tmp_path: Path) -> None:
    settings, path = TrainingSettings(epochs=1.0, amp="off"), tmp_path / "run.checkpoint"
    data = load_data("digits", image_size=8, batch_size=32, limit=64)
    train(build_model("resnet20", 10), data, settings, checkpoint=path)
    with pytest.raises(ValueError, match=r"written under other settings \(network\); delete it"):
        train(build_model("resnet56", 10), data, settings, checkpoint=path)
    augmented = load_data("digits", image_size=8, batch_size=32, limit=64, augment=True)
    with pytest.raises(ValueError, match=r"written under other settings \(augment\); delete it"):
        train(build_model("resnet20", 10), augmented, settings, checkpoint=path)


def test_a_checkpoint_that_is_none_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "training.pt"
    for content in (b"", b"no checkpoint", b"PK\x03\x04 cut"):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"training\.pt is damaged or no checkpoint of a training; delete it"):
            train(tiny_cnn(), tiny_digits(), TrainingSettings(epochs=1), checkpoint=path)
    torch.save({"weight": torch.zeros(2)}, path)
    with pytest.raises(ValueError, match=r"training\.pt is no checkpoint of a training"):
        train(tiny_cnn(), tiny_digits(), TrainingSettings(epochs=1), checkpoint=path)


def test_images_of_another_dtype_are_told_in_one_sentence() -> None:
    with pytest.raises(ValueError, match=r"the network does not take x of shape .* and dtype float32: RuntimeError"):
        train(tiny_cnn().double(), tiny_digits(), TrainingSettings(epochs=1))


def test_a_checkpoint_of_other_data_is_refused(tmp_path: Path) -> None:
    settings, path = TrainingSettings(epochs=1.0, amp="off"), tmp_path / "run.checkpoint"
    train(tiny_cnn(), tiny_digits(), settings, checkpoint=path)
    with pytest.raises(ValueError, match=r"written under other settings \(batches, limit\); delete it"):
        train(tiny_cnn(), tiny_digits(limit=64), settings, checkpoint=path)


def test_early_stopping() -> None:
    model, data = tiny_cnn(), tiny_digits()
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    model.head.weight.requires_grad_()
    settings = TrainingSettings(epochs=50.0, learning_rate=1e-9, patience=2, amp="off")
    accuracies = [entry["accuracy"] for entry in train(model.eval(), data, settings)]
    assert len(accuracies) < 50
    assert len(accuracies) - 1 - accuracies.index(max(accuracies)) == 2


@pytest.mark.parametrize(("name", "value"), [("optimizer", "adamw"), ("schedule", "plateau")])
def test_other_optimizers_and_schedules_learn_and_resume(tmp_path: Path, name: str, value: str) -> None:
    settings = TrainingSettings(epochs=5.0, learning_rate=0.02, amp="off", **{name: value})  # type: ignore[arg-type]
    whole, path = tiny_cnn(), tmp_path / "run.checkpoint"
    expected = train(whole, tiny_digits(limit=400), settings)
    assert expected[-1]["train_loss"] < 0.8 * expected[0]["train_loss"]

    def kill(entry: EpochLog) -> None:
        if entry["epoch"] == 2:
            raise Killed

    with pytest.raises(Killed):
        train(tiny_cnn(), tiny_digits(limit=400), settings, checkpoint=path, on_epoch=kill)
    resumed = tiny_cnn(seed=9)
    history = train(resumed, tiny_digits(limit=400), settings, checkpoint=path)
    assert without_seconds(history) == without_seconds(expected)
    assert same_weights(resumed, whole)


def test_plateau_lowers_the_rate_after_its_patience() -> None:
    """If the metric never improves after the first epoch, every second epoch divides the rate by ten."""
    model, data = tiny_cnn(), tiny_digits()
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    model.head.weight.requires_grad_()
    settings = TrainingSettings(epochs=6.0, learning_rate=1e-9, schedule="plateau", plateau_patience=2, amp="off")
    rates = [entry["learning_rate"] for entry in train(model.eval(), data, settings)]
    assert rates == pytest.approx([1e-9, 1e-9, 1e-9, 1e-10, 1e-10, 1e-11])


def test_a_loss_that_is_not_finite_stops_with_a_sentence() -> None:
    model = tiny_cnn()
    nn.init.constant_(model.head.weight, torch.nan)
    with pytest.raises(FloatingPointError, match=r"the loss is nan at step 1; learning_rate=0.1 is too high"):
        train(model, tiny_digits(), TrainingSettings(epochs=1.0, amp="off"))


def test_a_last_step_to_nan_keeps_the_epoch_before() -> None:
    """The loss is still finite, but the weights after the step are not."""
    model, steps = tiny_cnn(), 0

    def spoil(gradient: torch.Tensor) -> torch.Tensor:
        nonlocal steps
        steps += 1
        return gradient * torch.nan if steps == 6 else gradient

    model.conv.weight.register_hook(spoil)
    settings = TrainingSettings(epochs=2.0, amp="off", learning_rate=0.01)
    history = train(model, tiny_digits(), settings)
    assert steps == 6
    assert len(history) == 2
    assert all(tensor.isfinite().all() for tensor in model.state_dict().values())
    steps = 3
    with pytest.raises(FloatingPointError, match=r"the loss on validation is not finite; learning_rate=0.01"):
        train(model, tiny_digits(), TrainingSettings(epochs=1.0, amp="off", learning_rate=0.01))


@pytest.mark.parametrize(
    ("name", "value"), [("epochs", 0.0), ("learning_rate", -1.0), ("amp", "yes"), ("patience", 0)]
)
def test_bad_settings_are_named(name: str, value: object) -> None:
    with pytest.raises(ValueError, match=name):
        TrainingSettings(**{name: value})  # type: ignore[arg-type]


def test_autocast_follows_the_setting() -> None:
    cpu = torch.device("cpu")
    assert uses_bfloat16("on", cpu)
    assert not uses_bfloat16("off", cpu)
    assert not uses_bfloat16("auto", cpu)


def test_a_checkpoint_of_another_batch_size_is_refused(tmp_path: Path) -> None:
    settings, path = TrainingSettings(epochs=1.0, amp="off"), tmp_path / "c"
    train(tiny_cnn(), tiny_digits(batch_size=50, limit=100), settings, checkpoint=path)
    with pytest.raises(ValueError, match=r"written under other settings \(batch_size\); delete it"):
        train(tiny_cnn(), tiny_digits(batch_size=40, limit=100), settings, checkpoint=path)


def test_a_small_improvement_is_one_for_plateau_too() -> None:
    model = tiny_cnn()
    run = _Run(model, None, TrainingSettings(schedule="plateau", plateau_patience=2, amp="off"), tiny_digits())
    for step in range(6):
        run.log({"loss": 1.0, "accuracy": 0.99 + step * 1e-6})
    assert run.optimizer.param_groups[0]["lr"] == run.settings.learning_rate


def images(count: int = 80) -> TensorDataset:
    return bright_images(count)


class Stream(IterableDataset[tuple[Tensor, ...]]):
    def __iter__(self) -> Iterator[tuple[Tensor, ...]]:
        return zip(*images().tensors, strict=True)


LOADERS: dict[str, Callable[[], DataLoader[Any]]] = {
    "shuffled": lambda: DataLoader(images(), batch_size=16, shuffle=True),
    "in order": lambda: DataLoader(images(), batch_size=16),
    "one image left over": lambda: DataLoader(images(81), batch_size=16, shuffle=True),
    "own sampler": lambda: DataLoader(images(), batch_size=16, sampler=list(range(80))),
    "batches": lambda: DataLoader(images(), batch_sampler=[list(range(n, n + 16)) for n in range(0, 80, 16)]),
    "replacement": lambda: DataLoader(images(), batch_size=16, sampler=RandomSampler(images(), True, 80)),
    "no length": lambda: DataLoader(Stream(), batch_size=16),
}


@pytest.mark.parametrize("kind", LOADERS)
def test_training_on_own_loaders_learns_and_continues(tmp_path: Path, kind: str) -> None:
    settings, path = TrainingSettings(epochs=3.0, learning_rate=0.05, amp="off"), tmp_path / "run.checkpoint"

    def data() -> DataBundle:
        test = DataLoader(images(), batch_size=16)
        return DataBundle.from_loaders(LOADERS[kind](), test, test)

    history = train_and_continue(tiny_cnn, data, settings, path)
    assert [entry["epoch"] for entry in history] == [1, 2, 3]
    assert history[-1]["train_loss"] < history[0]["train_loss"]


def test_a_loader_that_runs_dry_is_named() -> None:
    class Once(IterableDataset[tuple[Tensor, ...]]):
        """Gives its images to the first readers only."""

        def __init__(self, passes: int) -> None:
            self.passes = passes

        def __len__(self) -> int:
            return 80

        def __iter__(self) -> Iterator[tuple[Tensor, ...]]:
            self.passes -= 1
            return zip(*images().tensors, strict=True) if self.passes >= 0 else iter([])

    plain = DataLoader(images(), batch_size=16)
    data = DataBundle.from_loaders(DataLoader(Once(3), batch_size=16), plain, plain, plain)
    with pytest.raises(ValueError, match="the training split gives no batch any more"):
        train(tiny_cnn(), data, TrainingSettings(epochs=4.0, amp="off"))


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda x, training: (x, x[0]) if training else x, "a tuple"),
        (lambda x, _: OrderedDict(out=x, aux=x), r"an OrderedDict \(keys out, aux\)"),
        (lambda x, training: x if training else {"logits": x, "p": x}, r"a dict \(keys logits, p\)"),
    ],
)
def test_a_network_that_returns_no_tensor_is_refused_before_the_first_step(
    make: Callable[[Tensor, bool], object], said: str
) -> None:
    model, before = Returning(make), tiny_cnn()
    epochs: list[EpochLog] = []
    with pytest.raises(ValueError, match=f"the network must return one tensor, but it returns {said}"):
        train(model, tiny_digits(), TrainingSettings(epochs=1.0, amp="off"), on_epoch=epochs.append)
    assert not epochs
    assert same_weights(model.body, before)


@pytest.mark.parametrize(
    "make", [lambda x, training: (x, x / 2) if training else x, lambda x, _: OrderedDict(logits=x)]
)
def test_auxiliary_heads_are_left_out_of_the_loss(make: Callable[[Tensor, bool], object]) -> None:
    model, plain = Returning(make), Returning(lambda x, _: x)
    settings = TrainingSettings(epochs=1.0, amp="off")
    history, expected = train(model, tiny_digits(), settings), train(plain, tiny_digits(), settings)
    assert history[0]["train_loss"] == expected[0]["train_loss"]
    assert same_weights(model, plain)


def test_a_network_of_fewer_classes_is_refused_before_the_first_step() -> None:
    model = tiny_cnn()
    model.head = nn.Linear(32, 5)
    with pytest.raises(ValueError, match="the network has outputs for 5 classes and the data 'digits' has 10"):
        train(model, tiny_digits(), TrainingSettings(epochs=1.0, amp="off"))


def test_a_class_without_an_output_is_named_when_it_occurs() -> None:
    late = TensorDataset(images().tensors[0], torch.tensor([0] * 79 + [10]))
    plain = DataLoader(images(), batch_size=16)
    data = DataBundle.from_loaders(DataLoader(late, batch_size=16), plain, plain)
    with pytest.raises(ValueError, match=r"a target is 10, but the network has 10 outputs; .* in 0\.\.9"):
        train(tiny_cnn(), data, TrainingSettings(epochs=1.0, amp="off"))


def test_a_checkpoint_of_an_own_network_of_another_width_is_refused(tmp_path: Path) -> None:
    settings, path = TrainingSettings(epochs=1.0, amp="off"), tmp_path / "run.checkpoint"
    train(tiny_cnn(width=8), tiny_digits(), settings, checkpoint=path)
    with pytest.raises(ValueError, match=r"run\.checkpoint was written for another network; delete it"):
        train(tiny_cnn(width=12), tiny_digits(), settings, checkpoint=path)
