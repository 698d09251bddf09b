from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from common.data import load_data
from common.data.images import ORIENTATION
from tests.coco import (
    TUMOURS,
    annotation,
    areas,
    brightness,
    json_of,
    load_coco,
    split,
    square,
    write_annotations,
    write_part,
    write_set,
)

PARTS = ("train", "calibration", "validation", "test")
BRAIN_TUMOR = Path(__file__).parents[3] / "shared" / "data" / "brain_tumor"


def test_images_masks_and_splits(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_set(tmp_path)
    data = load_coco(tmp_path, augment=False)
    assert (data.task, data.metric, data.classes, data.num_classes) == ("segmentation", "dice", ("tumour",), 1)
    assert [len(split(data, part)) for part in PARTS] == [8, 2, 4, 4]
    assert sorted(brightness(data, "train") + brightness(data, "calibration")) == list(range(10))
    assert areas(data, "validation") == {0: [25], 1: [0], 2: [25], 3: [0]}
    inputs, targets = next(iter(data.validation))
    assert (inputs.shape, targets.shape) == ((4, 3, 10, 10), (4, 1, 10, 10))
    assert (str(inputs.dtype), str(targets.dtype)) == ("torch.float32", "torch.float32")
    assert targets[0, 0].tolist() == [[1.0] * 5 + [0.0] * 5] * 5 + [[0.0] * 10] * 5
    assert inputs[3].unique().item() == pytest.approx((3 / 255 - 0.5) / 0.5)
    assert data.normalization.undo(inputs)[3].unique().item() == pytest.approx(3 / 255, abs=1e-6)
    assert "left out" not in "".join(capsys.readouterr())


def test_split_seed_alone_moves_images_between_the_splits(tmp_path: Path) -> None:
    write_set(tmp_path)
    one, other, third = (load_coco(tmp_path, seed=s, split_seed=t) for s, t in ((0, 0), (1, 0), (0, 1)))
    assert brightness(one, "calibration") == brightness(other, "calibration")
    assert brightness(one, "calibration") != brightness(third, "calibration")


def test_limit_reads_no_more_than_it_needs(tmp_path: Path) -> None:
    write_set(tmp_path, train=30)
    data = load_coco(tmp_path, limit=3)
    assert [len(split(data, part)) for part in PARTS] == [3, 3, 3, 3]
    assert set(brightness(data, "train")).isdisjoint(brightness(data, "calibration"))


def test_images_that_nobody_annotated_can_be_dropped(tmp_path: Path) -> None:
    write_set(tmp_path)
    data = load_coco(tmp_path, unannotated="drop")
    assert [len(split(data, part)) for part in PARTS] == [3, 2, 2, 2]
    assert all(area == [25] for part in PARTS for area in areas(data, part).values())
    write_annotations(tmp_path / "test", {**json_of(tmp_path / "test"), "annotations": []})
    assert areas(load_coco(tmp_path), "test") == {0: [0], 1: [0], 2: [0], 3: [0]}
    with pytest.raises(ValueError, match=r"unannotated='drop' leaves no image of .*test"):
        load_coco(tmp_path, unannotated="drop")


def test_a_set_whose_annotations_cover_nothing_is_refused(tmp_path: Path) -> None:
    """An export with boxes only, for example. A network would learn to predict nothing, and score 1."""
    write_set(tmp_path)
    for part in ("train", "valid", "test"):
        boxes = [{**item, "segmentation": []} for item in json_of(tmp_path / part)["annotations"]]
        write_annotations(tmp_path / part, {**json_of(tmp_path / part), "annotations": boxes})
    with pytest.raises(ValueError, match=r"train.*no annotation covers a pixel; left out annotations"):
        load_coco(tmp_path)


def test_images_whose_annotations_cannot_be_used_are_dropped_as_well(tmp_path: Path) -> None:
    write_set(tmp_path)
    content = json_of(tmp_path / "test")
    content["annotations"][0]["segmentation"] = []
    write_annotations(tmp_path / "test", content)
    assert areas(load_coco(tmp_path, unannotated="drop"), "test") == {2: [25]}
    content["annotations"][1]["segmentation"] = []
    write_annotations(tmp_path / "test", content)
    with pytest.raises(ValueError, match=r"unannotated='drop' leaves no image of .*test"):
        load_coco(tmp_path, unannotated="drop")


@pytest.mark.parametrize(
    ("width", "orientation", "turns"),
    [
        (40, 6, 1),  # stored on its side, to be turned clockwise by a quarter
        (20, 3, 2),  # stored upside down, which its size does not show
        (40, 6, 0),  # to be turned, but annotated as stored, which its size shows
    ],
)
def test_images_turned_by_exif_match_their_masks(width: int, orientation: int, turns: int, tmp_path: Path) -> None:
    write_set(tmp_path, train=25, others=25)
    pixels = np.zeros((20, width), dtype=np.uint8)
    pixels[:10, :10] = 255  # where the annotation is
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    stored = Image.fromarray(np.rot90(pixels, turns))
    stored.save(tmp_path / "test" / "0.jpg", exif=exif, quality=100, subsampling=0)
    content = json_of(tmp_path / "test")
    content["images"][0] |= {"file_name": "0.jpg", "height": 20, "width": width}
    write_annotations(tmp_path / "test", content)
    data = load_coco(tmp_path, image_size=20)
    (image, mask) = split(data, "test").images[0, 0], split(data, "test").masks[0, 0]
    assert mask.sum() == 100 * 20 / width
    assert image[mask].float().mean() > 200
    assert image[~mask].float().mean() < 20


def test_an_image_turned_without_exif_is_broken(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_set(tmp_path, train=25, others=25)
    Image.new("L", (20, 40)).save(tmp_path / "test" / "0.png")
    content = json_of(tmp_path / "test")
    content["images"][0] |= {"height": 20, "width": 40}
    write_annotations(tmp_path / "test", content)
    assert len(split(load_coco(tmp_path), "test")) == 24
    assert "broken images: 1 (test/0.png)" in capsys.readouterr().err


def test_categories_of_one_name_are_one_class_and_those_without_annotations_are_none(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    categories = [
        {"id": 0, "name": "findings", "supercategory": "none"},
        {"id": 1, "name": "tumour", "supercategory": "findings"},
        {"id": 2, "name": "cyst", "supercategory": "findings"},
        {"id": 3, "name": "tumour ", "supercategory": "findings"},
        {"id": 4, "name": "bleeding", "supercategory": "findings"},
    ]
    for part in ("train", "valid", "test"):
        annotations = [
            annotation(0, 0, [square(0, 0, 10)], 1),
            annotation(1, 0, [square(10, 10, 10)], 3),
            annotation(2, 0, [square(0, 0, 4)], 2),
        ]
        write_part(tmp_path / part, 5, annotations, categories)
    data = load_coco(tmp_path)
    assert data.classes == ("tumour", "cyst")
    assert areas(data, "test")[0] == [50, 4]
    assert next(iter(data.test))[1].shape == (4, 2, 10, 10)
    assert "left out categories without annotations: 1 (bleeding)" in capsys.readouterr().err


def test_a_parent_that_is_used_is_a_class(tmp_path: Path) -> None:
    categories = [{"id": 0, "name": "findings"}, {"id": 1, "name": "tumour", "supercategory": "findings"}]
    for part in ("train", "valid", "test"):
        write_part(tmp_path / part, 5, [annotation(0, 0, [square(0, 0, 10)], int(part == "train"))], categories)
    assert load_coco(tmp_path).classes == ("findings", "tumour")


def test_crowds_runs_and_several_annotations_are_joined(tmp_path: Path) -> None:
    write_set(tmp_path)
    runs = {"size": [20, 20], "counts": [0, 40, 360]}  # the first two columns
    crowd = {**annotation(1, 0, {"size": [20, 20], "counts": "0X1X;"}), "iscrowd": 1}  # the same, compressed
    bottom = annotation(2, 0, [square(0, 18, 2), square(18, 18, 2)])
    content = {**json_of(tmp_path / "test"), "annotations": [annotation(0, 0, runs), crowd, bottom]}
    write_annotations(tmp_path / "test", content)
    data = load_coco(tmp_path)
    mask = split(data, "test").masks[0, 0]
    assert mask[:, 0].all()
    assert mask[:, 1:].nonzero().tolist() == [[9, 8]]


def test_masks_follow_an_image_of_another_size_than_annotated(tmp_path: Path) -> None:
    write_set(tmp_path)
    Image.new("RGB", (77, 33)).save(tmp_path / "test" / "0.png")
    content = json_of(tmp_path / "test")
    for entry in content["images"][2:]:
        del entry["height"], entry["width"]
    write_annotations(tmp_path / "test", content)
    data = load_coco(tmp_path)
    assert split(data, "test").images.shape == (4, 3, 10, 10)  # one is in colour, so all are
    assert split(data, "test").masks.sum((1, 2, 3)).tolist() == [25, 0, 25, 0]


def odd_folder(root: Path) -> None:
    """Write a set with every fault that an annotation can have, and one broken image in 40."""
    write_set(root, train=40)
    train = root / "train"
    (train / "1.png").unlink()  # it has no annotation
    content = json_of(train)
    for number, segmentation in enumerate(
        [
            [square(30, 2, 5)],  # outside
            [[3, 3, 3, 3, 3, 3]],  # without area
            [[1, 1, 9, 9]],  # two points
            {"size": [20, 20], "counts": [7]},
            {"size": [20, 20], "counts": "zzzz"},
            [],
        ]
    ):
        content["annotations"].append(annotation(100 + number, 3, segmentation))
    content["annotations"] += [
        annotation(200, 999, [square(0, 0, 5)]),
        annotation(201, None, [square(0, 0, 5)]),
        annotation(202, [1], [square(0, 0, 5)]),
        annotation(203, 5, [square(0, 0, 5)], 77),
        annotation(204, 7, {"size": [20, 20], "counts": [0, 200, 200]}),  # a good one: the left half
    ]
    content["images"] += [{"id": 0, "file_name": "0.png"}, {"file_name": "2.png"}, {"id": 41}]
    write_annotations(train, content)
    valid = json_of(root / "valid")
    valid["categories"].append({"id": 2, "name": "elsewhere"})
    valid["annotations"].append(annotation(300, 1, [square(0, 0, 5)], 2))
    write_annotations(root / "valid", valid)


def test_unusable_annotations_are_left_out_counted_and_named_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    odd_folder(tmp_path)
    data = load_coco(tmp_path)
    found = areas(data, "train") | areas(data, "calibration")
    assert sorted(found) == [number for number in range(40) if number != 1]
    assert all(area == [25 * (number % 2 == 0)] for number, area in found.items() if number != 7)
    assert found[7] == [50]
    assert areas(data, "validation") == {0: [25], 1: [0], 2: [25], 3: [0]}
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "left out" in line]
    assert line.startswith(f"coco in {tmp_path}: left out ")
    assert sorted(line.split(": left out ")[1].split("; ")) == [
        "annotations of categories that train lacks: 1 (valid 300)",
        "annotations of unknown categories: 1 (train 203)",
        "annotations of unknown images: 3 (train 200, train 201, train 202)",
        "annotations that cover no pixel: 3 (train 100, train 101, train 105)",
        "annotations whose region is malformed: 3 (train 102, train 103, train 104)",
        "image entries without a unique id or a name: 3 (train 0.png, train 2.png, train 41)",
        "missing images: 1 (train/1.png)",
    ]


def test_a_truncated_jpeg_is_left_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_set(tmp_path, train=40)
    path = tmp_path / "train" / "5.png"
    noise = np.random.default_rng(0).integers(0, 256, (20, 20), dtype=np.uint8)
    Image.fromarray(noise).save(path, format="JPEG")
    path.write_bytes(path.read_bytes()[:-100])
    data = load_coco(tmp_path)
    assert len(split(data, "train")) + len(split(data, "calibration")) == 39
    assert "left out broken images: 1 (train/5.png)" in capsys.readouterr().err


def test_more_than_a_twentieth_broken_stops(tmp_path: Path) -> None:
    write_set(tmp_path, train=40, others=40)
    for number in range(2):
        (tmp_path / "valid" / f"{number}.png").unlink()
    assert len(split(load_coco(tmp_path), "validation")) == 38
    (tmp_path / "valid" / "7.png").write_text("no image")
    with pytest.raises(
        ValueError,
        match=r"valid: 3 of 40 images are missing or broken \(valid/0.png, valid/1.png, valid/7.png\); "
        "at most 5% may be",
    ):
        load_coco(tmp_path)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", r"valid/_annotations.coco.json is not a complete JSON file"),
        ('{"images": [{"id": 1, "file', r"valid/_annotations.coco.json is not a complete JSON file"),
        ("[" * 100_000, r"valid/_annotations.coco.json is not a complete JSON file"),
        ("\xff\xfe", r"valid/_annotations.coco.json is not a complete JSON file"),
        ("[]", r"valid/_annotations.coco.json is not in COCO's format: it holds no list of images"),
        ('{"images": [], "annotations": [1]}', "it holds no list of annotations"),
        ('{"images": [], "annotations": []}', "it holds no list of categories"),
        ('{"images": [], "annotations": [], "categories": []}', r"valid/_annotations.coco.json holds no image"),
    ],
)
def test_a_damaged_annotation_file_is_named(tmp_path: Path, text: str, sentence: str) -> None:
    write_set(tmp_path)
    (tmp_path / "valid" / "_annotations.coco.json").write_text(text, encoding="latin-1")
    with pytest.raises(ValueError, match=sentence):
        load_coco(tmp_path)


def test_a_set_without_anything_to_learn_is_an_error(tmp_path: Path) -> None:
    write_set(tmp_path)
    write_annotations(tmp_path / "train", {**json_of(tmp_path / "train"), "annotations": []})
    with pytest.raises(ValueError, match=r"train/_annotations.coco.json has no annotation that can be used"):
        load_coco(tmp_path)
    write_annotations(tmp_path / "train", {**json_of(tmp_path / "train"), "categories": TUMOURS * 0})
    with pytest.raises(ValueError, match="has no annotation that can be used"):
        load_coco(tmp_path)


def test_a_missing_annotation_file_is_named(tmp_path: Path) -> None:
    write_set(tmp_path)
    (tmp_path / "valid" / "_annotations.coco.json").unlink()
    with pytest.raises(
        FileNotFoundError, match=r"does not hold a COCO set: .*valid/_annotations.coco.json is missing"
    ):
        load_coco(tmp_path)


@pytest.mark.skipif(not BRAIN_TUMOR.is_dir(), reason="the brain tumour set is not on this machine")
def test_the_brain_tumour_set() -> None:
    data = load_data("coco", BRAIN_TUMOR, image_size=64)
    assert data.classes == ("Tumor",)
    assert [len(split(data, part)) for part in PARTS] == [436, 64, 201, 100]
    with_tumour = {part: int(split(data, part).masks.flatten(1).any(1).sum()) for part in PARTS}
    assert with_tumour["train"] + with_tumour["calibration"] == 453
    assert (with_tumour["validation"], with_tumour["test"]) == (127, 57)
