from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from tests.coco import (
    areas,
    change_annotations,
    json_of,
    load_coco,
    square,
    write_annotations,
    write_set,
)


@pytest.mark.parametrize("kind", [str, float, lambda n: f"{n}.0", lambda n: f" {n:03d} ", int])
@pytest.mark.parametrize("other", [str, float, int])
def test_ids_as_text_and_as_numbers_are_equal(
    tmp_path: Path, kind: Callable[[int], object], other: Callable[[int], object]
) -> None:
    write_set(tmp_path)
    for part in ("train", "valid", "test"):
        content = json_of(tmp_path / part)
        for entry in (*content["images"], *content["categories"]):
            entry["id"] = kind(entry["id"])
        for item in content["annotations"]:
            item |= {"image_id": other(item["image_id"]), "category_id": other(item["category_id"])}
        write_annotations(tmp_path / part, content)
    data = load_coco(tmp_path)
    assert data.classes == ("tumour",)
    assert areas(data, "test") == {0: [25], 1: [0], 2: [25], 3: [0]}


def test_ids_that_are_text_stay_apart(tmp_path: Path) -> None:
    write_set(tmp_path)
    for part in ("train", "valid", "test"):
        content = json_of(tmp_path / part)
        for entry in content["images"]:
            entry["id"] = f"{entry['id']}e1"
        for item in content["annotations"]:
            item["image_id"] = f"{item['image_id']}e1"
        write_annotations(tmp_path / part, content)
    assert areas(load_coco(tmp_path), "test") == {0: [25], 1: [0], 2: [25], 3: [0]}


@pytest.mark.parametrize("part", ["train", "valid", "test"])
@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"image_id": "a7"}, "annotations of unknown images: 2"),
        ({"image_id": None}, "annotations of unknown images: 2"),
        ({"image_id": 1.5}, "annotations of unknown images: 2"),
        ({"image_id": True}, "annotations of unknown images: 2"),
        ({"category_id": None}, "annotations of unknown categories: 2"),
        ({"category_id": 9}, "annotations of unknown categories: 2"),
    ],
)
def test_a_part_whose_annotations_belong_to_nothing_says_why(
    tmp_path: Path, part: str, change: dict[str, object], reason: str
) -> None:
    write_set(tmp_path, train=4)
    change_annotations(tmp_path, lambda item: item.update(change), part)
    sentence = (
        rf"{part}/_annotations\.coco\.json has no annotation that can be used; left out {reason} \({part} 0, {part} 2"
    )
    with pytest.raises(ValueError, match=sentence):
        load_coco(tmp_path)


def test_images_and_categories_without_an_id_are_counted(tmp_path: Path) -> None:
    write_set(tmp_path)
    content = json_of(tmp_path / "valid")
    write_annotations(
        tmp_path / "valid", {**content, "images": [{**entry, "id": None} for entry in content["images"]]}
    )
    with pytest.raises(
        ValueError, match=r"holds no image; left out image entries without a unique .*: 4 \(valid 0\.png"
    ):
        load_coco(tmp_path)
    categories = [{"name": "tumour"}, {"id": 2}, {"id": 3, "name": "a"}, {"id": "3.0", "name": "b"}]
    write_annotations(tmp_path / "valid", {**content, "categories": categories})
    with pytest.raises(
        ValueError,
        match=r"left out category entries without a unique id .*: 3 \(valid tumour, valid 2, valid b\); annotations",
    ):
        load_coco(tmp_path)


@pytest.mark.parametrize(
    "polygon", [square(0.2, 0.2, 0.6), square(0, 0, 1), [0.5, -0.004, 1.0, 0.5, 0.5, 1.003], square(0.5, 0.5, 0.01)]
)
@pytest.mark.parametrize("part", ["train", "valid", "test"])
def test_polygons_in_shares_of_the_image_are_named(tmp_path: Path, polygon: list[float], part: str) -> None:
    write_set(tmp_path)
    change_annotations(tmp_path, lambda item: item.update(segmentation=[polygon, polygon]), part)
    sentence = (
        rf"{part}/_annotations\.coco\.json: every coordinate of its polygons lies in \[0, 1\]; they must be in pixels"
    )
    with pytest.raises(ValueError, match=sentence):
        load_coco(tmp_path)


def test_some_polygons_in_shares_are_left_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_set(tmp_path)
    content = json_of(tmp_path / "test")
    content["annotations"][1]["segmentation"] = [square(0.2, 0.2, 0.6)]
    write_annotations(tmp_path / "test", content)
    assert areas(load_coco(tmp_path), "test") == {0: [25], 1: [0], 2: [0], 3: [0]}
    assert "left out annotations in shares of the image, not in pixels: 1 (test 2)" in capsys.readouterr().err


@pytest.mark.parametrize("part", ["train", "valid", "test"])
@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"segmentation": [], "bbox": [0, 0, 10, 10]}, "annotations that are boxes alone: 2"),
        ({"segmentation": None, "bbox": [0, 0, 10, 10]}, "annotations that are boxes alone: 2"),
        ({"segmentation": None}, "annotations without a region: 2"),
        ({"segmentation": {"size": [10, 20], "counts": [0, 200]}}, "annotations whose region is malformed: 2"),
        ({"segmentation": {"size": [20, 20], "counts": [400]}}, "annotations that cover no pixel: 2"),
        ({"segmentation": square(0, 0, 10)}, "annotations whose region is malformed: 2"),
        ({"segmentation": "0 0 10 10"}, "annotations whose region is malformed: 2"),
        ({"segmentation": [square(90, 90, 10)]}, "annotations that cover no pixel: 2"),
    ],
)
def test_a_part_without_a_region_says_why(tmp_path: Path, part: str, change: dict[str, object], reason: str) -> None:
    write_set(tmp_path, train=5)
    train = json_of(tmp_path / "train")
    write_annotations(tmp_path / "train", {**train, "annotations": train["annotations"][:2]})
    change_annotations(tmp_path, lambda item: item.update(change), part)
    if part == "train":  # one is for calibration
        reason = reason.replace(": 2", "")
    with pytest.raises(
        ValueError, match=rf"{part}/_annotations\.coco\.json: no annotation covers a pixel; left out {reason}"
    ):
        load_coco(tmp_path)


def test_runs_alone_make_a_set(tmp_path: Path) -> None:
    write_set(tmp_path)
    change_annotations(tmp_path, lambda item: item.update(segmentation={"size": [20, 20], "counts": [0, 200, 200]}))
    assert areas(load_coco(tmp_path), "test") == {0: [50], 1: [0], 2: [50], 3: [0]}


def test_images_of_another_size_than_stated_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_set(tmp_path)
    content = json_of(tmp_path / "test")
    Image.new("L", (40, 60)).save(
        tmp_path / "test" / "0.png"
    )  # the annotated one was smaller: its square is a quarter
    for entry, size in zip(content["images"][1:], ((0, 0), ("20", 20.0), (None, 20)), strict=True):
        entry["height"], entry["width"] = size
    write_annotations(tmp_path / "test", content)
    assert list(areas(load_coco(tmp_path), "test").values()) == [[25], [0], [25], [0]]
    (line,) = capsys.readouterr().err.splitlines()[-1:]
    assert line.endswith(
        "1 images do not have the size in their entries (test/0.png); their regions are scaled to the images"
    )


def test_regions_beyond_the_stated_size_contradict_it(tmp_path: Path) -> None:
    write_set(tmp_path)
    content = json_of(tmp_path / "test")
    for entry in content["images"]:
        entry |= {"height": 5, "width": 6}  # a thumbnail's, though the squares are of ten pixels
    write_annotations(tmp_path / "test", content)
    with pytest.raises(
        ValueError,
        match=r"2 of 4 images are .* broken .*; the first: .*0\.png: its regions lie outside the 5x6",
    ):
        load_coco(tmp_path)
