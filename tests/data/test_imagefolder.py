from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from common.data import DataBundle, load_data
from common.data.imagefolder import ImageFiles
from common.data.normalization import IMAGENET
from common.models import build_model
from common.torchvision_compat import torchvision
from common.training import evaluate

PARTS = ("train", "calibration", "validation", "test")


def write_folders(root: Path, **counts: int) -> None:
    """Write images of 20 x 30 pixels in two classes, each with its own brightness."""
    number = 0
    for part, count in counts.items():
        for name in ("ant", "bee"):
            (root / part / name).mkdir(parents=True)
            for index in range(count):
                Image.new("L", (30, 20), number % 256).save(root / part / name / f"{index}.png")
                number += 1


def load(root: Path, **options: Any) -> DataBundle:
    return load_data("imagefolder", root, **{"image_size": 16, "batch_size": 4, "workers": 0, **options})


def split(data: DataBundle, part: str) -> ImageFiles:
    dataset = getattr(data, part).dataset
    assert isinstance(dataset, ImageFiles)
    return dataset


def paths(data: DataBundle, part: str) -> list[Path]:
    dataset = split(data, part)
    return [dataset.path(index) for index in range(len(dataset))]


def test_four_disjoint_splits_and_classes_by_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_folders(tmp_path, train=20, val=5, test=3)
    (tmp_path / "train" / ".thumbnails").mkdir()
    (tmp_path / "train" / "ant" / "notes.txt").write_text("no image")
    data = load(tmp_path)
    assert data.classes == ("ant", "bee")
    assert [len(split(data, part)) for part in PARTS] == [36, 4, 10, 6]
    assert sorted(paths(data, "train") + paths(data, "calibration")) == sorted((tmp_path / "train").glob("*/*.png"))
    assert sorted(paths(data, "validation")) == sorted((tmp_path / "val").glob("*/*.png"))
    for part in PARTS:
        labels = split(data, part).labels.tolist()
        assert labels == [("ant", "bee").index(path.parent.name) for path in paths(data, part)]
    assert {part for part in PARTS if split(data, part).augment} == {"train", "calibration"}
    assert capsys.readouterr().err == "imagefolder: train/ holds files that are left out: 1 .txt in ant\n"


def test_a_folder_of_classes_is_divided_and_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_folders(tmp_path, **{"": 20})
    data = load(tmp_path)
    assert [len(split(data, part)) for part in PARTS] == [26, 2, 6, 6]
    assert sorted(path for part in PARTS for path in paths(data, part)) == sorted(tmp_path.glob("*/*.png"))
    for part in ("validation", "test"):
        assert sorted(split(data, part).labels.tolist()) == [0, 0, 0, 1, 1, 1]
    shown = capsys.readouterr().err
    assert "has no train/ and val/: each class is divided by split_seed, 28 for train, 6 for validation, 6" in shown
    assert "If a network was trained on more of these images, its metrics here are too good" in shown
    assert [paths(load(tmp_path), part) for part in PARTS] == [paths(data, part) for part in PARTS]
    assert paths(load(tmp_path, split_seed=1), "test") != paths(data, "test")
    for path in sorted((tmp_path / "bee").iterdir())[2:]:
        path.unlink()
    with pytest.raises(ValueError, match=r"but bee has 2 images; add some, or divide the folder yourself"):
        load(tmp_path)


@pytest.mark.parametrize("flat", [False, True])
def test_without_class_folders_in_test_half_of_val_is_the_test_split(
    tmp_path: Path, flat: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    write_folders(tmp_path, train=4, val=6)
    if flat:  # ImageNet's own test images have no labels
        (tmp_path / "test").mkdir()
        Image.new("L", (30, 20)).save(tmp_path / "test" / "0.png")
    data = load(tmp_path)
    assert "half of val/, drawn by split_seed, is the test split" in capsys.readouterr().err
    assert len(split(data, "validation")) == len(split(data, "test")) == 6
    assert sorted(paths(data, "validation") + paths(data, "test")) == sorted((tmp_path / "val").glob("*/*.png"))
    assert paths(load(tmp_path, seed=1), "test") == paths(data, "test")
    assert paths(load(tmp_path, split_seed=1), "test") != paths(data, "test")


def test_evaluation_sees_what_torchvisions_weights_want(tmp_path: Path) -> None:
    write_folders(tmp_path, train=4, val=2, test=1)
    noise = np.random.default_rng(0).integers(0, 256, (300, 410, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "test" / "ant" / "0.png")
    data = load(tmp_path, image_size=224)
    wanted = torchvision.models.ResNet18_Weights.IMAGENET1K_V1.transforms()(Image.fromarray(noise))
    assert torch.allclose(next(iter(data.test))[0][0], wanted, atol=1e-6)


def test_training_sees_random_parts_and_their_mirror_images(tmp_path: Path) -> None:
    ramp = np.broadcast_to(np.arange(0, 240, 4, dtype=np.uint8), (60, 60))
    Image.fromarray(ramp.copy()).save(tmp_path / "ramp.png")
    dataset = ImageFiles([str(tmp_path / "ramp.png")], torch.tensor([0]), 16, IMAGENET, augment=True)
    torch.manual_seed(0)
    rows = IMAGENET.undo(torch.cat([dataset[[0]][0] for _ in range(60)]))[:, 0, 8]
    rising = rows[:, -1] > rows[:, 0]
    assert 15 < rising.sum() < 45
    lengths = (rows[:, -1] - rows[:, 0]).abs() * 255 / 240
    assert lengths.min() < 0.5
    assert lengths.max() > 0.75
    torch.manual_seed(0)
    assert torch.equal(IMAGENET.undo(dataset[[0]][0])[:, 0, 8], rows[:1])


def test_limit_takes_images_of_every_class(tmp_path: Path) -> None:
    write_folders(tmp_path, train=20, val=20, test=20)
    data = load(tmp_path, limit=10)
    assert [len(split(data, part)) for part in PARTS] == [10, 4, 10, 10]
    assert split(data, "test").labels.unique().tolist() == [0, 1]


@pytest.mark.filterwarnings("ignore:This DataLoader will create")  # more workers than a small machine has cores
@pytest.mark.parametrize("workers", [0, 2])
def test_a_broken_file_does_not_end_an_epoch(tmp_path: Path, workers: int, capfd: pytest.CaptureFixture[str]) -> None:
    write_folders(tmp_path, train=4, val=20, test=1)
    broken = paths(load(tmp_path), "validation")[2]
    broken.write_bytes(broken.read_bytes()[:40])
    data = load(tmp_path, workers=workers)
    for _ in range(2):
        assert [len(targets) for _, targets in data.validation] == [3] + [4] * 9
    assert split(data, "validation").broken == [broken]
    (line,) = [line for line in capfd.readouterr().err.splitlines() if "left out" in line]
    assert line.startswith(f"left out: {broken} is not a complete image: ")
    assert line.endswith("(1 of 40 so far)")


def test_a_last_batch_of_one_broken_file_is_empty_and_counts_for_nothing(tmp_path: Path) -> None:
    write_folders(tmp_path, train=4, val=20, test=1)
    paths(load(tmp_path), "validation")[-1].write_text("no image")
    data = load(tmp_path, batch_size=39)
    assert [tuple(inputs.shape) for inputs, _ in data.validation] == [(39, 3, 16, 16), (0, 3, 16, 16)]
    assert [tuple(targets.shape) for _, targets in data.validation] == [(39,), (0,)]
    assert 0 <= evaluate(build_model("resnet18", 2), data.validation)["accuracy"] <= 1


def test_more_than_a_twentieth_broken_stops(tmp_path: Path) -> None:
    write_folders(tmp_path, train=4, val=20, test=1)
    for index in range(3):
        (tmp_path / "val" / "ant" / f"{index * 5}.png").write_text("no image")
    data = load(tmp_path)
    with pytest.raises(ValueError, match=r"more than 5% of 40 images are missing or broken, .*ant/0.png.* among them"):
        list(data.validation)


def test_a_batch_of_broken_files_stops(tmp_path: Path) -> None:
    write_folders(tmp_path, train=4, val=40, test=1)
    data = load(tmp_path, batch_size=2)
    for path in paths(data, "validation")[:2]:
        path.write_text("no image")
    with pytest.raises(ValueError, match="none of 2 images can be read"):
        list(data.validation)


@pytest.mark.parametrize("mode", ["16 bit", "palette", "CMYK", "one pixel", "RGBA"])
def test_odd_images_are_read(tmp_path: Path, mode: str) -> None:
    write_folders(tmp_path, train=4, val=2, test=1)
    path = tmp_path / "test" / "ant" / "0.png"
    kinds = {
        "16 bit": Image.fromarray(np.full((9, 9), 100 * 257, dtype=np.uint16)),
        "palette": Image.new("RGB", (9, 9), (100, 100, 100)).quantize(4),
        "CMYK": Image.new("CMYK", (9, 9), (155, 155, 155, 0)),
        "one pixel": Image.new("L", (1, 1), 100),
        "RGBA": Image.new("RGBA", (9, 9), (100, 100, 100, 7)),
    }
    kinds[mode].save(path, format="JPEG" if mode == "CMYK" else "PNG")
    data = load(tmp_path)
    pixels = data.normalization.undo(split(data, "test")[[0]][0]) * 255
    assert torch.allclose(pixels, torch.tensor(100.0), atol=2)


def test_folders_that_do_not_fit_are_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"data_root=.* does not hold class folders"):
        load(tmp_path)
    write_folders(tmp_path, train=4)
    with pytest.raises(FileNotFoundError, match="train/<class>/ and val/<class>/ are needed"):
        load(tmp_path)
    write_folders(tmp_path, val=2)
    (tmp_path / "val" / "cat").mkdir()
    with pytest.raises(ValueError, match=r"val has the class 'cat', which train/ lacks"):
        load(tmp_path)
    (tmp_path / "val" / "cat").rmdir()
    for path in (tmp_path / "val").glob("*/*.png"):
        path.unlink()
    with pytest.raises(FileNotFoundError, match=r"val/<class>/ holds 0 images"):
        load(tmp_path)


def test_a_part_of_validation_holds_images_of_every_class(tmp_path: Path) -> None:
    write_folders(tmp_path, train=20, val=20, test=3)
    assert split(load(tmp_path), "validation").labels[:10].unique().tolist() == [0, 1]
    assert paths(load(tmp_path), "validation") == paths(load(tmp_path), "validation")


def test_a_class_without_an_image_to_learn_from_is_named(tmp_path: Path) -> None:
    write_folders(tmp_path, train=4, val=2)
    (tmp_path / "train" / "zebra").mkdir()
    with pytest.raises(FileNotFoundError, match=r"train/zebra holds no image .* \(\.jpg, .*\), it holds nothing; add"):
        load(tmp_path)
    for name in ("a.heic", "b.HEIC", "c.txt", "no ending", ".hidden.png"):
        (tmp_path / "train" / "zebra" / name).write_text("no image")
    with pytest.raises(FileNotFoundError, match=r"it holds 2 \.heic, 1 \.txt, 1 without an ending; add"):
        load(tmp_path)
    for path in (tmp_path / "train" / "bee").iterdir():
        path.rename(path.with_suffix(".svg"))
    with pytest.raises(FileNotFoundError, match=r"train/bee holds no image .*, it holds 4 \.svg; nor do zebra; add"):
        load(tmp_path)


@pytest.mark.parametrize("content", [b"", b"<html>Quota exceeded</html>", None])
def test_a_class_whose_images_cannot_be_read_is_named(tmp_path: Path, content: bytes | None) -> None:
    write_folders(tmp_path, train=60, val=2, test=1)
    broken = sorted((tmp_path / "train" / "bee").iterdir())
    for path in broken[1:]:
        path.write_bytes(path.read_bytes()[:45] if content is None else content)
    load(tmp_path)
    broken[0].write_bytes(content or b"")
    with pytest.raises(
        ValueError, match=r"train/bee: none of its images can be read \(.*bee/0\.png is not a complete image"
    ):
        load(tmp_path)


def test_jfif_files_and_deeper_folders_are_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_folders(tmp_path, train=4, val=2, test=1)
    (tmp_path / "train" / "bee" / "more" / "still").mkdir(parents=True)
    for number, path in enumerate(sorted((tmp_path / "train" / "bee").glob("*.png"))):
        moved = path.parent / "more" / "still" / f"{number}.JFIF"
        Image.open(path).save(moved, format="JPEG")
        path.unlink()
    data = load(tmp_path)
    assert len(split(data, "train")) + len(split(data, "calibration")) == 8
    assert (
        sorted(split(data, "train").labels.tolist() + split(data, "calibration").labels.tolist()) == [0] * 4 + [1] * 4
    )
    assert not split(data, "train").broken
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("empty", [False, True])
def test_a_class_without_an_image_in_val_is_named(
    tmp_path: Path, empty: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    write_folders(tmp_path, train=4, val=4, test=4)
    for part, name in (("val", "bee"), ("test", "ant")):
        for path in (tmp_path / part / name).iterdir():
            path.rename(path.with_suffix(".heic")) if empty else path.unlink()
        if not empty:
            (tmp_path / part / name).rmdir()
    load(tmp_path)
    lines = capsys.readouterr().err.splitlines()
    assert "imagefolder: val/ has no image of a class in train/: bee" in lines
    assert "imagefolder: test/ has no image of a class in train/: ant" in lines
    assert ("imagefolder: val/ holds files that are left out: 4 .heic in bee" in lines) == empty


def test_a_single_class_is_refused(tmp_path: Path) -> None:
    write_folders(tmp_path / "pictures", train=4, val=2)
    for part in ("train", "val"):  # one level too deep
        (tmp_path / part).mkdir()
        (tmp_path / "pictures" / part).rename(tmp_path / part / "pictures")
    with pytest.raises(ValueError, match="train has one class folder, 'pictures'; a classifier needs two or more"):
        load(tmp_path)
