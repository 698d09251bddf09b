from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from common.data import load_data, phantoms
from common.data.masked_images import MaskedImages
from common.data.phantoms import phantoms_folder, write_phantoms


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(phantoms, "COUNTS", {"train": 24, "valid": 8, "test": 8})


def bytes_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*.*")}


@pytest.mark.usefixtures("few")
def test_the_seed_decides_everything(tmp_path: Path) -> None:
    for name, seed in (("one", 3), ("again", 3), ("other", 4)):
        write_phantoms(tmp_path / name, seed)
    one, again, other = (bytes_of(tmp_path / name) for name in ("one", "again", "other"))
    assert len(one) == 43
    assert one == again
    assert all(one[name] != other[name] for name in one)
    assert one["train/000.png"] != one["valid/000.png"]


@pytest.mark.usefixtures("few")
def test_a_complete_folder_is_used_again_and_an_incomplete_one_is_replaced(tmp_path: Path) -> None:
    folder = phantoms_folder(tmp_path, 0)
    assert list(tmp_path.iterdir()) == [folder]
    content = bytes_of(folder)
    Image.new("L", (5, 5)).save(folder / "train" / "003.png")
    changed = bytes_of(folder)
    assert changed != content
    assert phantoms_folder(tmp_path, 0) == folder
    assert bytes_of(folder) == changed
    (folder / "train" / "004.png").unlink()
    assert phantoms_folder(tmp_path, 0) == folder
    assert bytes_of(folder) == content
    assert phantoms_folder(tmp_path, 1) != folder


@pytest.mark.usefixtures("few")
def test_a_write_that_fails_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(phantoms, "_lesion", fail)
    with pytest.raises(KeyboardInterrupt):
        phantoms_folder(tmp_path, 0)
    assert not list(tmp_path.iterdir())


@pytest.mark.usefixtures("few")
def test_a_folder_that_another_process_made_meanwhile_is_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write = write_phantoms

    def write_late(folder: Path, seed: int) -> None:
        write(folder, seed)
        write(tmp_path / "phantoms-1-0", seed)

    monkeypatch.setattr(phantoms, "write_phantoms", write_late)
    folder = phantoms_folder(tmp_path, 0)
    assert list(tmp_path.iterdir()) == [folder]
    assert len(bytes_of(folder)) == 43


@pytest.mark.usefixtures("few")
def test_the_users_cache_holds_it_by_default(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert phantoms_folder(None, 0) == tmp_path / "low-rank-cnn" / "phantoms-1-0"


def test_slices_lesions_and_splits(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = load_data("phantoms", tmp_path)
    parts = [getattr(data, part).dataset for part in ("train", "calibration", "validation", "test")]
    assert [len(part) for part in parts] == [192, 48, 60, 60]
    assert (data.name, data.task, data.classes, data.image_size) == ("phantoms", "segmentation", ("lesion",), 64)
    assert [part.augment for part in parts] == [True, True, False, False]
    assert "left out" not in capsys.readouterr().err
    masks = torch.cat([part.masks for part in parts])
    present = masks.flatten(1).any(1)
    assert 0.68 < present.float().mean() < 0.82
    assert 0.005 < masks[present].float().mean() < 0.1
    again = load_data("phantoms", tmp_path, augment=False)
    assert isinstance(again.train.dataset, MaskedImages)
    assert not again.train.dataset.augment
    assert torch.equal(again.train.dataset.masks, parts[0].masks)


def test_lesions_stand_out_but_brightness_alone_does_not_find_them(tmp_path: Path) -> None:
    data = load_data("phantoms", tmp_path, image_size=96)
    dataset = data.train.dataset
    assert isinstance(dataset, MaskedImages)
    images, masks = dataset.images[:, 0].numpy().astype(float), dataset.masks[:, 0].numpy()
    tissue = np.zeros((96, 96), dtype=bool)
    tissue[25:70, 25:70] = True
    ahead = []
    for image, mask in zip(images, masks, strict=True):
        if (mask & tissue).sum() > 20:
            ahead.append(image[mask & tissue].mean() - image[tissue & ~mask].mean())
    assert np.mean(np.array(ahead) > 0) > 0.95
    for threshold in range(60, 200, 5):
        predicted = images > threshold
        assert 2 * (predicted & masks).sum() / (predicted.sum() + masks.sum()) < 0.5
