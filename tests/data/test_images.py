from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from common.data.images import open_image

GREY = np.array([[0, 51], [128, 255]], dtype=np.uint8)
COLOUR = np.stack([GREY, GREY.T, 255 - GREY], axis=2)


def palette() -> Image.Image:
    image = Image.new("P", (2, 2))
    image.putpalette([0, 0, 0, 10, 20, 30, 40, 50, 60, 250, 240, 230])
    image.putdata([0, 1, 2, 3])
    return image


def transparent(image: Image.Image) -> Image.Image:
    image.putalpha(Image.fromarray(255 - GREY))
    return image


PALETTE = np.array([[[0, 0, 0], [10, 20, 30]], [[40, 50, 60], [250, 240, 230]]])


@pytest.mark.parametrize(
    ("name", "make", "expected"),
    [
        ("grey.png", lambda: Image.fromarray(GREY), GREY),
        ("colour.png", lambda: Image.fromarray(COLOUR), COLOUR),
        ("bilevel.png", lambda: Image.fromarray(GREY > 100), np.array([[0, 0], [255, 255]])),
        ("16 bit.png", lambda: Image.fromarray(GREY.astype(np.uint16) * 257), GREY),
        ("16 bit.tif", lambda: Image.fromarray(GREY.astype(np.uint16) * 257), GREY),
        ("float.tif", lambda: Image.fromarray(GREY.astype(np.float32) / 255 - 7), GREY),
        ("32 bit.tif", lambda: Image.fromarray(GREY.astype(np.int32) * 100_000 - 5), GREY),
        ("constant.tif", lambda: Image.fromarray(np.full((2, 2), 3.5, dtype=np.float32)), np.zeros((2, 2))),
        ("palette.png", palette, PALETTE),
        ("alpha.png", lambda: transparent(Image.fromarray(COLOUR)), COLOUR),
        ("grey alpha.png", lambda: transparent(Image.fromarray(GREY)), GREY),
        ("one.png", lambda: Image.fromarray(GREY[1:, 1:]), GREY[1:, 1:]),
    ],
)
def test_every_kind_becomes_8_bit_grey_or_colour(
    tmp_path: Path, name: str, make: Callable[[], Image.Image], expected: NDArray[np.uint8]
) -> None:
    make().save(tmp_path / name)
    image = open_image(tmp_path / name)
    assert image.mode == ("L" if expected.ndim == 2 else "RGB")
    assert np.asarray(image).tolist() == expected.tolist()


def test_a_palette_with_transparent_entries(tmp_path: Path) -> None:
    palette().save(tmp_path / "palette.png", transparency=bytes([0, 128, 255, 255]))
    assert np.asarray(open_image(tmp_path / "palette.png")).tolist() == PALETTE.tolist()


def test_a_cmyk_jpeg_has_its_colours(tmp_path: Path) -> None:
    Image.new("CMYK", (16, 16), (0, 255, 255, 0)).save(tmp_path / "red.jpg", quality=95)
    red, green, blue = np.asarray(open_image(tmp_path / "red.jpg")).reshape(-1, 3).mean(0)
    assert (red > 245, green < 10, blue < 10) == (True, True, True)


@pytest.mark.parametrize("name", ["cut.jpg", "cut.png", "text.png", "empty.jpg"])
def test_a_broken_file_is_named(tmp_path: Path, name: str) -> None:
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64), dtype=np.uint8))
    path = tmp_path / name
    if name.startswith("cut"):
        noise.save(path)
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    else:
        path.write_text("no image" * (name == "text.png"))
    with pytest.raises(OSError, match=f"{name} is not a complete image"):
        open_image(path)


def test_a_missing_file_is_told_from_a_broken_one(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"nothing\.png"):
        open_image(tmp_path / "nothing.png")


def test_values_that_are_no_numbers_are_an_error(tmp_path: Path) -> None:
    Image.fromarray(np.array([[0, np.nan]], dtype=np.float32)).save(tmp_path / "nan.tif")
    with pytest.raises(OSError, match="not all finite"):
        open_image(tmp_path / "nan.tif")


def test_damage_beside_whole_pixels_does_not_matter(tmp_path: Path) -> None:
    path = tmp_path / "a.jpg"
    Image.new("L", (4, 3), 100).save(path, exif=b"Exif\x00\x00no TIFF file")
    assert open_image(path, upright=True).size == (4, 3)
