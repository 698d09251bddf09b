from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.coco import (
    areas,
    brightness,
    json_of,
    load_coco,
    write_annotations,
    write_part,
    write_set,
)


@pytest.mark.parametrize("name", ["val", "validation"])
def test_the_folder_of_validation_may_have_other_names(tmp_path: Path, name: str) -> None:
    write_set(tmp_path)
    (tmp_path / "valid").rename(tmp_path / name)
    assert areas(load_coco(tmp_path), "validation") == {0: [25], 1: [0], 2: [25], 3: [0]}
    write_part(tmp_path / "valid", 4, [])
    with pytest.raises(
        ValueError, match=rf"holds valid/_.*json and {name}/_.*json, all for valid; keep only one of them"
    ):
        load_coco(tmp_path)


def test_without_a_part_for_testing_half_of_validation_is_the_test_split(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_set(tmp_path, others=9)
    (tmp_path / "test" / "_annotations.coco.json").unlink()
    data = load_coco(tmp_path)
    assert "half of valid, drawn by split_seed, is the test split" in capsys.readouterr().err
    parts = [brightness(data, part) for part in ("validation", "test")]
    assert [len(part) for part in parts] == [5, 4]
    assert sorted(parts[0] + parts[1]) == list(range(9))
    assert (
        brightness(load_coco(tmp_path, seed=5), "test")
        == parts[1]
        != brightness(load_coco(tmp_path, split_seed=5), "test")
    )
    assert [len(brightness(load_coco(tmp_path, limit=3), part)) for part in ("validation", "test")] == [3, 3]
    write_annotations(
        tmp_path / "valid", {**json_of(tmp_path / "valid"), "images": json_of(tmp_path / "valid")["images"][:1]}
    )
    with pytest.raises(ValueError, match="has one image, which cannot be divided, and there is no part for testing"):
        load_coco(tmp_path)


def write_official(root: Path, folders: dict[str, str]) -> None:
    """Write a set in the official layout: name of the annotations -> folder of the images."""
    write_set(root / "plain")
    (root / "annotations").mkdir(parents=True)
    for (name, folder), part in zip(folders.items(), ("train", "valid", "test"), strict=False):
        (root / folder).parent.mkdir(parents=True, exist_ok=True)
        (root / "plain" / part / "_annotations.coco.json").rename(root / "annotations" / f"instances_{name}.json")
        (root / "plain" / part).rename(root / folder)


@pytest.mark.parametrize(
    "folders",
    [
        {"train2017": "train2017", "val2017": "val2017", "test2017": "test2017"},
        {"train": "train", "val": "val"},
        {"train2017": "images/train2017", "val2017": "images/val2017"},
        {"train": "train2014", "valid": "valid2014"},
        {"train2017": "train", "validation2017": "images/validation"},
    ],
)
def test_the_official_layout(tmp_path: Path, folders: dict[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    write_official(tmp_path, folders)
    (tmp_path / "annotations" / "captions_val2017.json").write_text("of no use here")
    (tmp_path / "annotations" / "instances_minival.json").write_text("of no use here")
    data = load_coco(tmp_path)
    assert data.classes == ("tumour",)
    assert sorted(brightness(data, "train") + brightness(data, "calibration")) == list(range(10))
    assert all(area == [25 * (number % 2 == 0)] for number, area in areas(data, "validation").items())
    halved = [len(brightness(data, part)) for part in ("validation", "test")]
    assert halved == ([4, 4] if len(folders) == 3 else [2, 2])
    assert ("is the test split" in capsys.readouterr().err) == (len(folders) == 2)


def test_file_names_of_the_official_layout_may_hold_their_folder(tmp_path: Path) -> None:
    write_official(tmp_path, {"train2017": "pictures/train", "val2017": "pictures/val"})
    for name, folder in (("train2017", "train"), ("val2017", "val")):
        path = tmp_path / "annotations" / f"instances_{name}.json"
        content = json.loads(path.read_text())
        for entry in content["images"]:
            entry["file_name"] = f"pictures/{folder}/{entry['file_name']}"
        path.write_text(json.dumps(content))
    assert len(brightness(load_coco(tmp_path), "train")) == 8


def test_an_official_layout_that_is_not_whole_is_named(tmp_path: Path) -> None:
    write_official(tmp_path, {"default": "images"})
    with pytest.raises(
        FileNotFoundError, match=r"annotations/ holds instances_default\.json; files called instances_tr"
    ):
        load_coco(tmp_path)
    annotations = tmp_path / "annotations"
    (annotations / "instances_default.json").rename(annotations / "instances_train2017.json")
    with pytest.raises(
        FileNotFoundError, match=r"does not hold a COCO set: .*valid/_annotations\.coco\.json is missing"
    ):
        load_coco(tmp_path)
    for year in (2014, 2017):
        (annotations / f"instances_val{year}.json").write_text((annotations / "instances_train2017.json").read_text())
    with pytest.raises(ValueError, match=r"instances_val2014\.json and .*instances_val2017\.json, all for valid"):
        load_coco(tmp_path)
    (annotations / "instances_val2014.json").unlink()
    (tmp_path / "images").rename(tmp_path / "elsewhere")
    with pytest.raises(ValueError, match=r"train2017: 10 of 10 images are missing or broken"):
        load_coco(tmp_path)
