from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    DistributedSampler,
    IterableDataset,
    RandomSampler,
    Sampler,
    SequentialSampler,
    Subset,
    SubsetRandomSampler,
    TensorDataset,
    WeightedRandomSampler,
)

from common.data import DataBundle, load_data
from common.data.normalization import AS_GIVEN, CENTRED, Normalization
from common.data.own import OwnLoader
from common.search.study.specification import data_digest
from common.training import TrainingSettings, evaluate, train

TEN = tuple("0123456789")


def images(count: int = 40, classes: int = 10, size: int = 8) -> TensorDataset:
    """Image n has the value n everywhere and the class n modulo ``classes``."""
    numbers = torch.arange(count)
    return TensorDataset(numbers.view(-1, 1, 1, 1).expand(-1, 3, size, size).float(), numbers % classes)


def loader(dataset: Any = None, **options: Any) -> DataLoader[Any]:
    return DataLoader(images() if dataset is None else dataset, **{"batch_size": 16, **options})


def bundle(train: Any = None, **others: Any) -> DataBundle:
    """Make a bundle of plain loaders, except for the splits that are given."""
    splits: dict[str, Any] = {name: loader() for name in ("train", "calibration", "validation", "test")} | others
    if train is not None:
        splits["train"] = train
    return DataBundle("mine", **splits, classes=TEN, image_size=8, normalization=Normalization((0.5,), (0.5,)))


def order(batches: Any) -> list[int]:
    return [int(image[0, 0, 0]) for inputs, _ in batches for image in inputs]


class Stream(IterableDataset[tuple[Tensor, Tensor]]):
    """Yields the images of a data set one by one. It has no length."""

    def __iter__(self) -> Iterator[Any]:
        dataset = images()
        return (dataset[index] for index in range(len(dataset)))


class Backwards(Sampler[int]):
    """A sampler that takes no seed."""

    def __iter__(self) -> Iterator[int]:
        return iter(range(39, -1, -1))

    def __len__(self) -> int:
        return 40


class Restless(Sampler[int]):
    """A sampler that shuffles by numpy's global generator."""

    def __iter__(self) -> Iterator[int]:
        return iter(np.random.permutation(40).tolist())

    def __len__(self) -> int:
        return 40


KINDS: dict[str, Callable[[], DataLoader[Any]]] = {
    "shuffled": lambda: loader(shuffle=True),
    "in order": lambda: loader(),
    "with a generator": lambda: loader(shuffle=True, generator=torch.Generator()),
    "drop_last": lambda: loader(shuffle=True, drop_last=True),
    "sampler": lambda: loader(sampler=Backwards()),
    "weighted": lambda: loader(sampler=WeightedRandomSampler([1.0] * 40, 40)),
    "subset": lambda: loader(sampler=SubsetRandomSampler(range(40))),
    "batch_sampler": lambda: DataLoader(images(), batch_sampler=BatchSampler(RandomSampler(images()), 16, False)),
    "list of batches": lambda: DataLoader(images(), batch_sampler=[list(range(16)), list(range(16, 40))]),
    "iterable": lambda: loader(Stream()),
    "workers": lambda: loader(shuffle=True, num_workers=1, persistent_workers=True),
}
SEEDED = {"shuffled", "with a generator", "drop_last", "weighted", "subset", "batch_sampler", "workers"}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_loader_serves(kind: str) -> None:
    data = bundle(KINDS[kind]())
    passes = []
    for seed in (3, 3, 4):
        data.shuffle(seed)
        torch.rand(1)  # the order is not that of the global generator
        passes.append(order(data.train))
    assert passes[0] == passes[1]
    assert (passes[0] != passes[2]) == (kind in SEEDED)
    assert len(data.train) == len(list(data.train))
    expected = 32 if kind == "drop_last" else 40
    assert [len(seen) for seen in passes] == [expected] * 3
    if kind != "weighted":
        assert all(len(set(seen)) == expected for seen in passes)


def test_from_loaders_needs_nothing_but_loaders(capsys: pytest.CaptureFixture[str]) -> None:
    data = DataBundle.from_loaders(loader(shuffle=True), loader(batch_size=1), name="mine")
    assert (data.name, data.task, data.metric, data.classes) == ("mine", "classification", "accuracy", TEN)
    assert (data.image_size, data.normalization, dict(data.source)) == (8, AS_GIVEN, {})
    assert order(data.validation) == list(range(0, 40, 2))
    assert order(data.test) == list(range(1, 40, 2))
    assert data.validation_images() == len(data.validation) == 20
    assert sorted(order(data.calibration)) == list(range(40))
    assert order(data.calibration) == order(data.calibration)
    assert data.example().shape == (1, 3, 8, 8)
    assert capsys.readouterr().err == "mine has no test loader: every second image of validation is the test split\n"


def test_from_loaders_uses_its_arguments() -> None:
    test, calibration = loader(images(7)), loader(images(18))
    data = DataBundle.from_loaders(
        loader(), loader(), test, calibration, classes=list("abcdefghijk"), image_size=9, normalization=CENTRED
    )
    assert (data.name, data.classes) == ("custom", tuple("abcdefghijk"))
    assert (data.image_size, data.normalization) == (9, CENTRED)
    assert [len(order(split)) for split in (data.validation, data.test, data.calibration)] == [40, 7, 18]


def test_calibration_is_bounded() -> None:
    data = DataBundle.from_loaders(loader(images(4000, size=1), batch_size=300), loader(), loader())
    assert [len(targets) for _, targets in data.calibration] == [300] * 7
    assert (len(data.calibration), len(data.train)) == (7, 14)


def test_classes_have_the_data_sets_own_names() -> None:
    dataset = images(classes=3)
    dataset.classes = ["ant", "bee", "cat", "dog"]  # type: ignore[attr-defined]
    data = DataBundle.from_loaders(loader(Subset(dataset, range(20))), loader(), loader())
    assert data.classes == ("ant", "bee", "cat", "dog")
    dataset.classes = ["ant", "bee"]  # type: ignore[attr-defined]
    assert DataBundle.from_loaders(loader(dataset), loader(images(classes=4))).classes == tuple("0123")


def test_masks_mean_segmentation() -> None:
    masks = TensorDataset(torch.rand(10, 3, 8, 12), torch.rand(10, 2, 8, 12) > 0.5)
    data = DataBundle.from_loaders(loader(masks), loader(masks), loader(masks))
    assert (data.task, data.metric, data.classes, data.image_size) == ("segmentation", "dice", ("0", "1"), 12)
    _, targets = next(iter(data.test))
    assert (targets.dtype, targets.unique().tolist()) == (torch.float32, [0, 1])


def test_inputs_and_class_numbers_come_in_the_suites_types() -> None:
    dataset = TensorDataset(torch.rand(6, 1, 8, 8).double(), torch.arange(6).to(torch.uint8))
    inputs, targets = next(iter(bundle(loader(dataset)).train))
    assert (inputs.dtype, targets.dtype, targets.tolist()) == (torch.float32, torch.int64, list(range(6)))


def test_a_batch_of_one_image_is_left_out_of_train_and_calibration() -> None:
    data = bundle(loader(images(33)), calibration=loader(images(17)), validation=loader(images(33)))
    assert [len(targets) for _, targets in data.train] == [16, 16]
    assert [len(targets) for _, targets in data.calibration] == [16]
    assert [len(targets) for _, targets in data.validation] == [16, 16, 1]
    assert [len(split) for split in (data.train, data.calibration, data.validation)] == [2, 1, 3]
    singles = bundle(loader(images(3), batch_size=1)).train
    assert len(singles) == len(list(singles)) == 3


def test_processes_share_each_batch() -> None:
    for make in (lambda: loader(images(46), shuffle=True), lambda: loader(images(46))):
        bundles = [bundle(make()) for _ in range(3)]
        for process, data in enumerate(bundles):
            torch.manual_seed(process)  # which every process has of its own
            data.shuffle(3)
        whole, *parts = [
            data.train if index == 0 else data.train_part(index - 1, 2) for index, data in enumerate(bundles)
        ]
        assert [len(part) for part in parts] == [3, 3]
        for (inputs, _), (even, _), (odd, _) in zip(whole, *parts, strict=True):
            assert torch.equal(inputs[0::2], even)
            assert torch.equal(inputs[1::2], odd)
    uneven = bundle(loader(images(33)))
    assert [order(uneven.train_part(part, 2)) for part in (0, 1)] == [list(range(part, 32, 2)) for part in (0, 1)]
    assert len(uneven.train_part(0, 2)) == 2
    with pytest.raises(ValueError, match=r"batch_size=16: 3 processes share .* a multiple of 3, at least 6"):
        uneven.train_part(0, 3)


@pytest.mark.parametrize("kind", ["sampler", "iterable", "list of batches"])
def test_processes_do_not_share_what_has_no_known_order(kind: str) -> None:
    with pytest.raises(ValueError, match="the train loader: 2 processes must read the same batches in the same order"):
        bundle(KINDS[kind]()).train_part(0, 2)


def test_a_distributed_sampler_keeps_its_own_order() -> None:
    data = bundle(loader(sampler=DistributedSampler(images(), num_replicas=2, rank=1, shuffle=False)))
    assert order(data.train_part(1, 2)) == list(range(1, 40, 2))


def test_validation_has_one_order_and_its_digest_ignores_it() -> None:
    shuffled, plain = (bundle(validation=loader(shuffle=shuffle)) for shuffle in (True, False))
    assert order(shuffled.validation) == order(shuffled.validation) != order(plain.validation)
    assert data_digest(shuffled) == data_digest(plain) == data_digest(bundle(validation=loader(sampler=Restless())))
    assert data_digest(plain) != data_digest(bundle(validation=loader(images(41))))
    halves = DataBundle.from_loaders(loader(), loader(shuffle=True))
    assert sorted(order(halves.validation) + order(halves.test)) == list(range(40))
    with pytest.raises(ValueError, match="the validation loader gives other images in every pass; give a test loader"):
        DataBundle.from_loaders(loader(), loader(sampler=Restless()))


def test_the_suites_own_loaders_serve_as_well() -> None:
    own = load_data("digits", image_size=8, limit=40, batch_size=16)
    data = DataBundle.from_loaders(own.train, own.validation, own.test, own.calibration)
    own.shuffle(3)
    expected = torch.cat([targets for _, targets in own.train])
    data.shuffle(3)
    assert torch.equal(torch.cat([targets for _, targets in data.train]), expected)
    moved = DataBundle("turned", own.calibration, own.train, own.validation, own.test, own.classes, 8, CENTRED)
    moved.shuffle(3)  # a loader that does not shuffle
    assert len(list(moved.train)) == len(own.calibration)


class Named(Dataset[dict[str, Any]]):
    def __len__(self) -> int:
        return 20

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"image": torch.zeros(3, 8, 8), "label": index % 10}


def collated(*parts: object) -> DataLoader[Any]:
    return loader(collate_fn=lambda _: parts[0] if len(parts) == 1 else parts)


X, Y = torch.zeros(4, 3, 8, 8), torch.arange(4)
PAIR = r"a batch of the train loader must be a pair of tensors \(inputs, targets\), but it is "


@pytest.mark.parametrize(
    ("train", "sentence"),
    [
        (None, "train is None; it must be a DataLoader"),
        (images(), "train is a TensorDataset; it must be a DataLoader"),
        (iter([(X, Y)]), "train is a list_iterator, which can be read only once; give a DataLoader"),
        ([], "the train loader gives no batch$"),
        (loader(Subset(images(), [])), "the train loader gives no batch$"),
        (
            loader(batch_size=64, drop_last=True),
            "the train loader gives no batch; drop_last leaves out a batch with fewer images than batch_size=64",
        ),
        (loader(Named()), PAIR + r"a dict \(keys image, label\); give the DataLoader a collate_fn"),
        (collated(X, Y, Y), PAIR + r"a tuple \(of length 3: Tensor, Tensor, Tensor\)"),
        (collated(X), PAIR + "a Tensor"),
        (collated(X, list("abcd")), PAIR + r"a tuple \(of length 2: Tensor, list\)"),
        (collated({"pixels": X}, Y), PAIR + r"a tuple \(of length 2: dict, Tensor\)"),
        (loader([("no image", 1)] * 3), PAIR + r"a list \(of length 2: tuple, Tensor\)"),
        (loader([(object(), 1)] * 3), "the first batch of the train loader cannot be read: default_collate"),
        (
            collated((X * 255).byte(), Y),
            r"inputs are uint8 of shape \(4, 3, 8, 8\); they must be floats \(N, C, H, W\), .*; scale them as",
        ),
        (loader(batch_size=None), r"inputs are float32 of shape \(3, 8, 8\); .*; give the DataLoader a batch_size"),
        (collated(X.flatten(1), Y), r"inputs are float32 of shape \(4, 192\); they must be floats .* for volumes$"),
        (collated(X * torch.nan, Y), "the train loader: its first batch has inputs that are not finite"),
        (
            collated(X, Y[:, None]),
            r"targets are int64 of shape \(4, 1\); .* of a whole-number type for 4 inputs; take targets.squeeze\(1\)",
        ),
        (
            collated(X, torch.eye(10)[:4]),
            r"float32 of shape \(4, 10\); .*; for one-hot targets take targets.argmax\(1\)",
        ),
        (collated(X, Y.float()), r"targets are float32 of shape \(4,\)"),
        (collated(X, Y[:3]), r"targets are int64 of shape \(3,\); they must be class numbers \(4,\)"),
        (collated(X, Y.sum()), r"targets are int64 of shape \(\)"),
        (collated(X, Y + 7), "the train loader: a target is 10; it must be in 0..9, as there are 10 classes"),
        (collated(X, Y - 1), "the train loader: a target is -1; it must be in 0..9"),
    ],
)
def test_unsuitable_loaders_are_named_at_once(train: Any, sentence: str) -> None:
    splits = (train, loader(), loader(), loader())
    with pytest.raises(ValueError, match=sentence):
        DataBundle("mine", *splits, TEN, 8, CENTRED)
    with pytest.raises(ValueError, match=sentence):
        DataBundle.from_loaders(train, loader(), classes=TEN)


@pytest.mark.parametrize(
    ("masks", "sentence"),
    [
        (
            torch.zeros(4, 8, 8),
            r"targets are .* \(4, 8, 8\); they must be masks \(4, K, H, W\) .*; give each class its own mask",
        ),
        (torch.full((4, 2, 8, 8), 255, dtype=torch.uint8), "masks hold values from 255 to 255; they must be in"),
        (torch.zeros(4, 3, 8, 8), "there are 3 masks per image but 2 classes"),
        (torch.arange(4), r"targets are int64 of shape \(4,\); they must be masks \(4, K, H, W\) for 4 inputs"),
    ],
)
def test_unsuitable_masks_are_named_at_once(masks: Tensor, sentence: str) -> None:
    good = collated(X, torch.zeros(4, 2, 8, 8))
    with pytest.raises(ValueError, match=f"the validation loader: .*{sentence}"):
        DataBundle.from_loaders(good, collated(X, masks), classes=("a", "b"), task="segmentation")
    with pytest.raises(ValueError, match="task='segment' is unknown"):
        DataBundle.from_loaders(good, good, task="segment")


@pytest.mark.parametrize(
    ("network", "inputs", "targets", "metric"),
    [
        (nn.Sequential(nn.Conv1d(2, 4, 3, padding=1), nn.Flatten(), nn.Linear(48, 3)), (2, 12), (3,), "accuracy"),
        (nn.Conv3d(1, 2, 3, padding=1), (1, 4, 6, 4), (2, 4, 6, 4), "dice"),
    ],
    ids=["signals", "volumes"],
)
def test_signals_and_volumes_have_targets_too(
    network: nn.Module, inputs: tuple[int, ...], targets: tuple[int, ...], metric: str
) -> None:
    x = torch.randn(24, *inputs, generator=torch.Generator().manual_seed(0))
    y = torch.arange(24) % 3 if metric == "accuracy" else (torch.rand(24, *targets) > 0.5).float()
    made = TensorDataset(x, y)
    data = DataBundle.from_loaders(loader(made), loader(made))
    assert (data.metric, data.image_size, data.num_classes) == (metric, max(inputs[1:]), targets[0])
    settings = TrainingSettings(epochs=1.0, amp="off", distillation=0.5)
    history = train(network, data, settings, teacher=copy.deepcopy(network))
    assert len(history) == 1
    assert 0 <= evaluate(network, data.test)[metric] <= 1


def test_an_unnamed_class_is_found_when_it_occurs() -> None:
    late = TensorDataset(images().tensors[0], torch.tensor([0] * 39 + [10]))
    data = bundle(validation=loader(late))
    with pytest.raises(ValueError, match=r"the validation loader: a target is 10; it must be in 0\.\.9"):
        list(data.validation)


def test_reading_the_first_batch_draws_no_random_numbers() -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    bundle(loader(shuffle=True))
    assert torch.equal(torch.rand(3), expected)


def test_an_endless_loader_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    class Endless(IterableDataset[tuple[Tensor, Tensor]]):
        def __iter__(self) -> Iterator[Any]:
            while True:
                yield torch.zeros(1, 2, 2), 0

    monkeypatch.setattr("common.data.own.MOST_BATCHES", 50)
    served = OwnLoader(loader(Endless(), batch_size=2), "train")
    with pytest.raises(ValueError, match="the train loader gave more than 50 batches; it must be finite"):
        len(served)
    assert isinstance(loader().sampler, SequentialSampler)
