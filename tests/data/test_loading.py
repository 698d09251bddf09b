from __future__ import annotations

import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from common.data import load_data
from common.data.bundle import Loader
from common.data.digits import load_digits
from common.data.image_tensors import ImageTensors
from common.data.loading import SCALES
from common.data.normalization import Normalization, check_normalization, remember_normalization
from common.data.splits import split_indices, subset
from common.models import build_model

MNIST_ROOT = Path(__file__).parents[3] / "shared" / "data"
PARTS = ("train", "calibration", "validation", "test")


def images_of(loader: Loader) -> torch.Tensor:
    assert isinstance(loader.dataset, ImageTensors)
    return loader.dataset.images


def test_splits_are_disjoint_and_complete() -> None:
    parts = split_indices(100, {"validation": 20, "calibration": 10}, seed=3)
    assert {name: len(index) for name, index in parts.items()} == {"validation": 20, "calibration": 10, "train": 70}
    assert sorted(torch.cat(list(parts.values())).tolist()) == list(range(100))
    again = split_indices(100, {"validation": 20, "calibration": 10}, seed=3)
    assert all(torch.equal(parts[name], again[name]) for name in parts)
    other = split_indices(100, {"validation": 20, "calibration": 10}, seed=4)
    assert not torch.equal(parts["train"], other["train"])
    with pytest.raises(ValueError, match="30 images cannot give 30"):
        split_indices(30, {"validation": 20, "calibration": 10}, seed=3)


def test_a_subset_is_drawn_and_in_order() -> None:
    assert subset(5, None, seed=0).tolist() == subset(5, 9, seed=0).tolist() == [0, 1, 2, 3, 4]
    some = subset(1000, 100, seed=0).tolist()
    assert some == sorted(set(some))
    assert len(some) == 100
    assert 400 < sum(some) / 100 < 600
    assert some != subset(1000, 100, seed=1).tolist()


def test_digits_come_in_four_disjoint_parts() -> None:
    data = load_data("digits", split_seed=5)
    sizes = {part: len(images_of(getattr(data, part))) for part in PARTS}
    assert sizes == {"train": 1037, "calibration": 160, "validation": 240, "test": 360}
    everything = torch.cat([images_of(getattr(data, part)) for part in PARTS])
    whole = torch.cat([load_digits(0)[0], load_digits(0)[2]])
    assert torch.equal(everything.flatten(1).sort(0).values, whole.flatten(1).sort(0).values)
    assert (data.num_classes, data.task, data.image_size, data.metric) == (10, "classification", 32, "accuracy")
    assert data.classes == tuple("0123456789")


def test_batches_are_normalised_colour_images() -> None:
    data = load_data("digits", image_size=20, batch_size=16)
    inputs, targets = next(iter(data.train))
    assert (inputs.shape, inputs.dtype, targets.dtype) == ((16, 3, 20, 20), torch.float32, torch.int64)
    assert torch.equal(inputs[:, 0], inputs[:, 2])
    pixels = torch.cat([batch for batch, _ in data.train])
    assert abs(float(pixels.mean())) < 0.1
    assert abs(float(pixels.std()) - 1) < 0.2
    assert data.example().shape == (1, 3, 20, 20)


def test_imagenet_statistics_can_be_asked_for() -> None:
    own = load_data("digits", image_size=8)
    data = load_data("digits", image_size=8, normalize="imagenet")
    (plain, _), (inputs, _) = next(iter(own.test)), next(iter(data.test))
    grey = plain[:, 0] * 0.3760 + 0.3053
    for channel, (mean, deviation) in enumerate(((0.485, 0.229), (0.456, 0.224), (0.406, 0.225))):
        assert torch.allclose(inputs[:, channel], (grey - mean) / deviation, atol=1e-5)
    assert torch.allclose(data.normalization.undo(inputs), grey[:, None].expand(-1, 3, -1, -1), atol=1e-6)


@pytest.mark.filterwarnings("ignore:This DataLoader will create")  # more workers than a small machine has cores
def test_workers_give_the_same_batches() -> None:
    one, other = (load_data("digits", image_size=8, limit=40, batch_size=16, workers=workers) for workers in (0, 2))
    for bundle in (one, other):
        bundle.shuffle(3)
    assert all(torch.equal(x[0], y[0]) for x, y in zip(one.train, other.train, strict=True))


def test_the_seed_fixes_the_order_of_training() -> None:
    data, again = load_data("digits", image_size=8), load_data("digits", image_size=8)
    for bundle in (data, again):
        bundle.shuffle(7)
    assert all(torch.equal(one[1], other[1]) for one, other in zip(data.train, again.train, strict=True))
    data.shuffle(8)
    again.shuffle(7)
    assert not torch.equal(next(iter(data.train))[1], next(iter(again.train))[1])


def test_the_seed_of_training_does_not_move_an_image_between_the_splits() -> None:
    one, other = load_data("digits", seed=1), load_data("digits", seed=2)
    for part in PARTS:
        assert torch.equal(images_of(getattr(one, part)), images_of(getattr(other, part)))


def test_an_example_reads_one_image_and_leaves_the_random_state(monkeypatch: pytest.MonkeyPatch) -> None:
    data = load_data("digits", batch_size=16, limit=64, augment=True, workers=2)
    monkeypatch.setattr(type(data.calibration), "__iter__", None)  # it would start two processes
    state = torch.get_rng_state()
    first, again = data.example(), data.example()
    assert first.shape == (1, 3, data.image_size, data.image_size)
    assert torch.equal(first, again)
    assert torch.equal(torch.get_rng_state(), state)


def test_calibration_comes_in_whole_batches() -> None:
    data = load_data("digits", image_size=8, batch_size=53)  # 160 images: three batches and one image
    assert [len(targets) for _, targets in data.calibration] == [53, 53, 53]
    assert [len(targets) for _, targets in load_data("digits", image_size=8, batch_size=500).calibration] == [160]


def test_evaluation_reads_every_image_once_and_in_order() -> None:
    data = load_data("digits", image_size=8, batch_size=50)
    assert isinstance(data.test.dataset, ImageTensors)
    assert torch.equal(torch.cat([targets for _, targets in data.test]), data.test.dataset.labels)


def test_augmentation_moves_and_mirrors_whole_images() -> None:
    images = torch.arange(1, 65, dtype=torch.uint8).reshape(1, 1, 8, 8).expand(400, -1, -1, -1)
    data = ImageTensors(images, torch.zeros(400, dtype=torch.long), 8, Normalization((0.0,), (1.0,)), augment=True)
    torch.manual_seed(0)
    batch = data[range(400)][0][:, 0] * 255
    straight = images[0, 0].float()
    padded = [torch.nn.functional.pad(view, (1, 1, 1, 1)) for view in (straight, straight.flip(1))]
    allowed = [view[y : y + 8, x : x + 8] for view in padded for y in range(3) for x in range(3)]
    seen = [[bool(torch.allclose(image, candidate)) for candidate in allowed] for image in batch]
    assert all(sum(row) == 1 for row in seen)
    assert all(any(column) for column in zip(*seen, strict=True))


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (
            {"name": "digit"},
            r"dataset='digit' is unknown \(did you mean 'digits'\?\); allowed: digits, mnist, cifar10, imagefolder",
        ),
        ({"name": "digits", "image_size": 4}, "image_size=4: it must be at least 8"),
        ({"name": "digits", "batch_size": 1}, "batch_size=1: it must be at least 2"),
        ({"name": "digits", "limit": 0}, "limit=0: it must be at least 2"),
        ({"name": "mnist"}, "data_root=None: mnist needs the folder"),
        ({"name": "cifar10"}, "data_root=None: cifar10 needs the folder"),
        ({"name": "imagefolder"}, "data_root=None: imagefolder needs the folder"),
        ({"name": "coco"}, "data_root=None: coco needs the folder"),
        ({"name": "digits", "workers": -1}, "workers=-1: it must be at least 0"),
        ({"name": "digits", "workers": 100_000}, r"workers=100000: it must be at most \d+ on this machine"),
        ({"name": "digits", "normalize": "imagnet"}, r"normalize='imagnet' is unknown \(did you mean 'imagenet'\?\)"),
        ({"name": "digits", "unannotated": "no"}, "unannotated='no' is unknown; allowed: keep, drop"),
    ],
)
def test_bad_arguments_are_named(arguments: dict[str, object], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        load_data(**arguments)  # type: ignore[arg-type]


def test_a_root_without_mnist_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"data_root=.* does not hold MNIST"):
        load_data("mnist", tmp_path)


def test_a_download_without_a_network_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError("no network")

    monkeypatch.setattr(socket, "create_connection", refuse)
    with pytest.raises(ConnectionError, match="MNIST could not be downloaded"):
        load_data("mnist", tmp_path, download=True)


@pytest.mark.skipif(not (MNIST_ROOT / "MNIST" / "raw").is_dir(), reason="MNIST is not on this machine")
def test_mnist_is_the_real_one() -> None:
    data = load_data("mnist", MNIST_ROOT, batch_size=100)
    sizes = {part: len(images_of(getattr(data, part))) for part in PARTS}
    assert sizes == {"train": 53000, "calibration": 2000, "validation": 5000, "test": 10000}
    assert torch.cat([targets for _, targets in data.test])[:5].tolist() == [7, 2, 1, 0, 4]


def test_processes_share_each_batch() -> None:
    """The parts of two processes together are the batch, and both read the images in the same order."""
    whole, *parts = (load_data("digits", image_size=8, batch_size=32, limit=96) for _ in range(3))
    for data in (whole, *parts):
        data.shuffle(3)
    shares = [data.train_part(index, 2) for index, data in enumerate(parts)]
    assert [len(share) for share in shares] == [len(whole.train)] * 2
    for (inputs, targets), (even, even_targets), (odd, odd_targets) in zip(whole.train, *shares, strict=True):
        assert torch.equal(inputs[0::2], even)
        assert torch.equal(inputs[1::2], odd)
        assert torch.equal(targets, torch.stack([even_targets, odd_targets], dim=1).flatten())
    assert whole.train_part(0, 1) is whole.train
    with pytest.raises(ValueError, match=r"batch_size=32: 17 processes share .* a multiple of 17, at least 34"):
        whole.train_part(0, 17)
    with pytest.raises(ValueError, match=r"^the training split has 20 images, fewer than batch_size=32: 2 processes"):
        load_data("digits", image_size=8, batch_size=32, limit=20).train_part(0, 2)


def test_importing_data_or_calibration_loads_no_data_library() -> None:
    libraries = ["sklearn", "pycocotools", "torchvision"]
    loaded = f"[name for name in {libraries} if name in sys.modules]"
    command = [sys.executable, "-c", f"import sys, common.data, common.calibration, common.models\nprint({loaded})"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=Path(__file__).parents[2])
    assert done.stdout.strip() == "[]"


def test_an_unknown_option_is_named() -> None:
    with pytest.raises(TypeError, match=r"^load_data\(\) got an unexpected keyword argument 'limits'$"):
        load_data("digits", limits=3)  # type: ignore[call-arg]


def test_defaults_are_stored_as_their_values() -> None:
    source = dict(load_data("digits", batch_size=16).source)
    assert source == {
        "name": "digits",
        "root": None,
        "image_size": 32,
        "batch_size": 16,
        "seed": 0,
        "split_seed": 0,
        "limit": None,
        "download": False,
        "augment": False,
        "normalize": "dataset",
        "unannotated": "keep",
        "workers": None,
        "metric": "accuracy",
    }
    assert dict(load_data(**source).source) == source


def test_the_scale_of_the_pixels_themselves_is_remembered_like_any_other() -> None:
    network = build_model("resnet20", 10)
    scales = {name: load_data("digits", image_size=8, limit=16, normalize=name).normalization for name in SCALES}
    for name, scale in scales.items():
        remember_normalization(network, scale)
        check_normalization(network, scale)
        for other in scales.keys() - {name}:
            with pytest.raises(ValueError, match="the network was trained on pixels normalised by"):
                check_normalization(network, scales[other])
