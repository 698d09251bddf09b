from __future__ import annotations

import hashlib
import pickle
import socket
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from common.data import DataBundle, load_data
from common.data.cifar10 import CLASSES
from common.data.image_tensors import ImageTensors
from common.torchvision_compat import torchvision

PARTS = ("train", "calibration", "validation", "test")
CIFAR10 = torchvision.datasets.CIFAR10


def split(data: DataBundle, part: str) -> ImageTensors:
    dataset = getattr(data, part).dataset
    assert isinstance(dataset, ImageTensors)
    return dataset


def write_class_folders(root: Path) -> None:
    generator = np.random.default_rng(0)
    for part, count in (("train", 720), ("test", 3)):
        for name in CLASSES:
            (root / part / name).mkdir(parents=True)
            for index in range(count):
                pixels = generator.integers(0, 256, (2, 2, 3), dtype=np.uint8)
                Image.fromarray(pixels).resize((32, 32), 0).save(root / part / name / f"{index}.png")


def write_published(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Write files in the published format, and let torchvision expect their checksums."""
    folder = root / "cifar-10-batches-py"
    folder.mkdir()

    def write(name: str, content: object) -> str:
        (folder / name).write_bytes(pickle.dumps(content))
        return hashlib.md5((folder / name).read_bytes()).hexdigest()

    def batch(number: int, count: int) -> dict[str, object]:
        rows = np.full((count, 3072), number, dtype=np.uint8)
        rows[:, 1024] = 200  # the first pixel's green
        return {"data": rows, "labels": [index % 10 for index in range(count)]}

    train = [[f"data_batch_{n}", write(f"data_batch_{n}", batch(n, 1500))] for n in range(1, 6)]
    monkeypatch.setattr(CIFAR10, "train_list", train)
    monkeypatch.setattr(CIFAR10, "test_list", [["test_batch", write("test_batch", batch(6, 20))]])
    meta = {"filename": "batches.meta", "key": "label_names", "md5": write("batches.meta", {"label_names": CLASSES})}
    monkeypatch.setattr(CIFAR10, "meta", meta)


def test_class_folders(tmp_path: Path) -> None:
    write_class_folders(tmp_path)
    (tmp_path / "train" / "cat" / ".DS_Store").write_bytes(b"a file browser's own")
    data = load_data("cifar10", tmp_path)
    assert [len(split(data, part)) for part in PARTS] == [200, 2000, 5000, 30]
    assert (data.num_classes, data.classes) == (10, CLASSES)
    assert {part for part in PARTS if split(data, part).augment} == {"train", "calibration"}
    inputs, targets = next(iter(data.test))
    assert inputs.shape == (30, 3, 32, 32)
    assert targets.tolist() == sorted(list(range(10)) * 3)
    with Image.open(tmp_path / "test" / "airplane" / "0.png") as image:
        expected = torch.from_numpy(np.asarray(image).copy()).permute(2, 0, 1)
    assert torch.equal(split(data, "test").images[0], expected)
    (tmp_path / "test" / "truck").rename(tmp_path / "test" / "lorry")
    with pytest.raises(FileNotFoundError, match=r"data_root=.* does not hold CIFAR-10: .*truck has no images"):
        load_data("cifar10", tmp_path)


def test_the_published_files_come_before_class_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_published(tmp_path, monkeypatch)
    (tmp_path / "train").mkdir()
    data = load_data("cifar10", tmp_path)
    assert [len(split(data, part)) for part in PARTS] == [500, 2000, 5000, 20]
    test = split(data, "test")
    assert test.labels.tolist() == [index % 10 for index in range(20)]
    assert test.images.shape == (20, 3, 32, 32)
    assert test.images[3, :, 0, :2].tolist() == [[6, 6], [200, 6], [6, 6]]


class Payload:
    """Unpickling it creates a folder."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[Path]]:
        return Path.mkdir, (self.path,)


def test_an_altered_pickle_is_never_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_published(tmp_path, monkeypatch)
    trap = pickle.dumps(Payload(tmp_path / "trapped"))
    for path in (tmp_path / "cifar-10-batches-py").iterdir():
        path.write_bytes(trap)
    sentence = r"does not hold CIFAR10: files in .* are missing or altered \(data_batch_1 has another checksum; "
    with pytest.raises(FileNotFoundError, match=sentence):
        load_data("cifar10", tmp_path)
    assert not (tmp_path / "trapped").exists()
    pickle.loads(trap)
    assert (tmp_path / "trapped").exists()


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("data_batch_3", b"<html>Quota exceeded</html>", "data_batch_3 is a web page"),
        ("test_batch", b"", "test_batch is empty"),
        ("batches.meta", b"\x1f\x8b\x08", "batches.meta is still packed by gzip"),
        ("data_batch_5", None, "missing: data_batch_5"),
    ],
)
def test_a_damaged_published_file_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, content: bytes | None, reason: str
) -> None:
    write_published(tmp_path, monkeypatch)
    path = tmp_path / "cifar-10-batches-py" / name
    path.unlink()
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(FileNotFoundError, match=rf"cifar-10-batches-py are missing or altered \({reason}\)"):
        load_data("cifar10", tmp_path)


@pytest.mark.parametrize("content", [b"<html>Quota exceeded</html>", b""])
def test_an_archive_that_was_not_unpacked_is_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "cifar-10-python.tar.gz").write_bytes(content)
    with pytest.raises(FileNotFoundError, match=r"train/airplane has no images; unpack cifar-10-python\.tar\.gz"):
        load_data("cifar10", tmp_path)
    (tmp_path / "cifar-10-batches-py").write_bytes(content)
    with pytest.raises(FileNotFoundError, match="there is no cifar-10-batches-py/"):
        load_data("cifar10", tmp_path)


@pytest.mark.parametrize("content", [b"<html>Quota exceeded</html>", b""])
def test_a_broken_image_of_a_class_folder_is_named(tmp_path: Path, content: bytes) -> None:
    for part in ("train", "test"):
        for name in CLASSES:
            (tmp_path / part / name).mkdir(parents=True)
            Image.new("RGB", (4, 4)).save(tmp_path / part / name / "0.jfif", format="JPEG")
    with pytest.raises(ValueError, match=r"^cifar10: 10 images cannot give 7000"):
        load_data("cifar10", tmp_path)
    (tmp_path / "test" / "dog" / "0.jfif").write_bytes(content)
    with pytest.raises(ValueError, match=r"^cifar10: .*test/dog/0\.jfif is not a complete image"):
        load_data("cifar10", tmp_path)


def test_a_download_without_a_network_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError("no network")

    monkeypatch.setattr(socket, "create_connection", refuse)
    with pytest.raises(ConnectionError, match="CIFAR10 could not be downloaded"):
        load_data("cifar10", tmp_path, download=True)
