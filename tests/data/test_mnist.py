from __future__ import annotations

import gzip
import struct
from pathlib import Path

import pytest
import torch

from common.data import load_data
from common.data.mnist import load_mnist

FILES = tuple(f"{part}-{kind}-ubyte" for part in ("train", "t10k") for kind in ("images-idx3", "labels-idx1"))


def images(count: int, size: int = 28) -> bytes:
    return struct.pack(">IIII", 2051, count, size, size) + bytes(index % 256 for index in range(count * size * size))


def labels(count: int) -> bytes:
    return struct.pack(">II", 2049, count) + bytes(index % 10 for index in range(count))


def write(root: Path, **changed: bytes) -> Path:
    """Write a small set. ``changed`` maps the first letters of part and kind to other contents of the file."""
    folder = root / "MNIST" / "raw"
    folder.mkdir(parents=True)
    contents = {
        "train_images": images(7),
        "train_labels": labels(7),
        "test_images": images(3),
        "test_labels": labels(3),
    }
    for name, content in zip(FILES, (contents | changed).values(), strict=True):
        (folder / name).write_bytes(content)
    return folder


def test_files_are_read_as_they_are_published(tmp_path: Path) -> None:
    write(tmp_path)
    train, train_labels, test, test_labels = load_mnist(tmp_path, download=False)
    assert (train.shape, train.dtype, test.shape) == ((7, 28, 28), torch.uint8, (3, 28, 28))
    assert train.flatten().tolist() == [index % 256 for index in range(7 * 784)]
    assert (train_labels.tolist(), test_labels.tolist()) == ([0, 1, 2, 3, 4, 5, 6], [0, 1, 2])
    assert train_labels.dtype == torch.int64
    train[0] = 9  # the tensors own their memory


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"<html><body>Quota exceeded</body></html>", "is a web page; unpack it or download it again"),
        (b"\xef\xbb\xbf\n<!DOCTYPE html>", "is a web page"),
        (b'<?xml version="1.0"?><Error><Code>AccessDenied</Code></Error>', "is a web page"),
        (b"", "is empty"),
        (gzip.compress(images(7), mtime=0), "is still packed by gzip; unpack it or download it again"),
        (b"PK\x03\x04" + bytes(99), "is a zip archive"),
        (images(7)[:-1], r"has 5,503 bytes; by its header \(7, 28, 28\) it must have 5,504"),
        (images(7) + b"\n", "has 5,505 bytes"),
        (images(7)[:15], "is not a file of MNIST; it must hold images"),
        (images(7)[:3], "is not a file of MNIST; it must hold images"),
        (bytes(5504), "is not a file of MNIST; it must hold images"),
        (b"404: Not Found", "is not a file of MNIST; it must hold images"),
        (labels(7), "holds labels; it must hold images"),
        (images(0), "holds no images"),
        (struct.pack(">IIII", 2051, 2**32 - 1, 2**32 - 1, 2**32 - 1) + bytes(99), "has 115 bytes; by its header"),
        (images(6), "holds 6 images and train-labels-idx1-ubyte 7 labels; the numbers must be equal"),
    ],
)
def test_a_damaged_file_of_images_is_named(tmp_path: Path, content: bytes, reason: str) -> None:
    write(tmp_path, train_images=content)
    for download in (False, True):
        with pytest.raises(ValueError, match=f"MNIST/raw/train-images-idx3-ubyte {reason}"):
            load_data("mnist", tmp_path, download=download)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"<html>", "is a web page"),
        (b"", "is empty"),
        (gzip.compress(labels(3), mtime=0), "is still packed by gzip"),
        (labels(3)[:-1], r"has 10 bytes; by its header \(3,\) it must have 11"),
        (images(3), "holds images; it must hold labels"),
        (labels(0), "holds no labels"),
        (labels(2) + b"\xff", "has 11 bytes"),
        (struct.pack(">II", 2049, 3) + b"\x01\x02\x1a", "holds the label 26; MNIST's are 0 to 9"),
    ],
)
def test_a_damaged_file_of_labels_is_named(tmp_path: Path, content: bytes, reason: str) -> None:
    write(tmp_path, test_labels=content)
    with pytest.raises(ValueError, match=f"MNIST/raw/t10k-labels-idx1-ubyte {reason}"):
        load_data("mnist", tmp_path)


def test_missing_files_are_named(tmp_path: Path) -> None:
    folder = write(tmp_path)
    (folder / FILES[1]).rename(folder / f"{FILES[1]}.gz")
    with pytest.raises(
        FileNotFoundError, match=rf"does not hold MNIST: .*raw lacks {FILES[1]}; unpack {FILES[1]}\.gz"
    ):
        load_data("mnist", tmp_path)
    (folder / FILES[2]).unlink()
    (folder / FILES[2]).mkdir()
    with pytest.raises(FileNotFoundError, match=f"lacks {FILES[1]}, {FILES[2]}; unpack"):
        load_data("mnist", tmp_path)


def test_too_few_images_for_the_splits_are_named(tmp_path: Path) -> None:
    write(tmp_path)
    with pytest.raises(ValueError, match=r"^mnist: 7 images cannot give 7000 to validation, calibration"):
        load_data("mnist", tmp_path)


def test_pickles_beside_the_files_are_not_opened(tmp_path: Path) -> None:
    folder = write(tmp_path).parent / "processed"
    folder.mkdir()
    for name in ("training.pt", "test.pt"):  # as old versions of torchvision left them
        (folder / name).write_bytes(b"no pickle")
    assert len(load_mnist(tmp_path, download=False)[0]) == 7
