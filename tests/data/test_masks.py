from __future__ import annotations

import warnings

import numpy as np
import pycocotools.mask
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from common.data.masks import region_mask, resize_mask, union
from tests.coco import square


def block(height: int, width: int, rows: slice, columns: slice) -> np.ndarray:
    mask = np.zeros((height, width), dtype=bool)
    mask[rows, columns] = True
    return mask


def test_polygons_are_joined_and_cut_off_at_the_image() -> None:
    mask = region_mask([square(1, 2, 3), square(8, 8, 10)], 10, 12)
    expected = block(10, 12, slice(2, 5), slice(1, 4)) | block(10, 12, slice(8, 10), slice(8, 12))
    assert np.array_equal(mask, expected)


@pytest.mark.parametrize(
    "polygon",
    [square(20, 2, 5), square(-9, 2, 5), square(2, -9, 5), square(2, 20, 5), [2, 2, 2, 2, 2, 2], [1, 1, 5, 1, 9, 1]],
)
def test_what_lies_outside_or_has_no_area_covers_nothing(polygon: list[float]) -> None:
    assert not region_mask([polygon], 10, 10).any()


def test_points_and_lines_beside_a_polygon_cover_nothing() -> None:
    assert np.array_equal(
        region_mask([square(1, 2, 3), [8, 8, 9, 9], [5, 5]], 10, 12), region_mask([square(1, 2, 3)], 10, 12)
    )


def test_runs_go_down_the_columns() -> None:
    # Columns of 3: (0,0,1), (1,0,0): two pixels from the third on.
    assert region_mask({"size": [3, 2], "counts": [2, 2, 2]}, 3, 2).tolist() == [[0, 1], [0, 0], [1, 0]]


@given(arrays(bool, st.tuples(st.integers(1, 40), st.integers(1, 40))))
def test_compressed_runs_are_those_of_pycocotools(mask: np.ndarray) -> None:
    encoded = pycocotools.mask.encode(np.asfortranarray(mask.astype(np.uint8)))
    encoded["counts"] = encoded["counts"].decode()  # type: ignore[union-attr]
    assert np.array_equal(region_mask(encoded, *mask.shape), mask)


@pytest.mark.parametrize(
    ("segmentation", "reason"),
    [
        (None, "list of polygons or a run-length encoding"),
        ([[1, 1, 5, 5]], "at least three points"),
        ([[1, 1, 5, 5, 9]], "at least three points"),
        ([[1, 1, 5, 5, 9, float("nan")]], "numbers in or near"),
        ([[1, 1, 5, 5, 9, "9"]], "numbers in or near"),
        ([[1, 1, 5, 5, 9, 1e12]], "numbers in or near"),
        ([{"size": [10, 10]}], "a list of numbers"),
        ([[1, 1, 5, 5], [1, 1]], "at least three points"),
        ({"size": [10, 9], "counts": [100]}, "its size is"),
        ({"size": [10, 10], "counts": [50, 49]}, "add up to 99, not to 100"),
        ({"size": [10, 10], "counts": [50, -50, 100]}, "whole numbers >= 0"),
        ({"size": [10, 10], "counts": [0.5, 99.5]}, "whole numbers >= 0"),
        ({"size": [10, 10]}, "whole numbers >= 0"),
        ({"size": [10, 10], "counts": ""}, "add up to 0"),
        ({"size": [10, 10], "counts": "4P"}, "middle of a number"),
        ({"size": [10, 10], "counts": "4 "}, "the character ' '"),
        ({"size": [10, 10], "counts": "oooo2"}, "add up to|whole numbers"),
    ],
)
def test_invalid_regions_are_refused(segmentation: object, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        region_mask(segmentation, 10, 10)


@given(st.binary(max_size=40))
def test_damaged_runs_never_get_past_the_checks(noise: bytes) -> None:
    try:
        mask = region_mask({"size": [10, 10], "counts": noise.decode("latin-1")}, 10, 10)
    except ValueError:
        return
    assert mask.shape == (10, 10)


@given(st.lists(st.floats(-100, 100), min_size=6, max_size=12).filter(lambda values: len(values) % 2 == 0))
def test_any_polygon_near_the_image_can_be_drawn(polygon: list[float]) -> None:
    assert region_mask([polygon], 10, 7).shape == (10, 7)


def test_no_warning_of_pycocotools_reaches_the_user() -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        region_mask([square(1, 2, 3)], 10, 12)
    assert not caught


def test_a_large_region_is_resized_by_half_coverage() -> None:
    mask = block(40, 40, slice(4, 30), slice(10, 34))  # at a quarter: rows 1 to 7.5, columns 2.5 to 8.5
    small = resize_mask(mask, 10)
    rows, columns = np.nonzero(small)
    assert (rows.min(), columns.min(), columns.max()) == (1, 2, 8)
    assert small[1:7, 3:8].all()
    assert small.sum() == pytest.approx(26 * 24 / 16, abs=8)


def test_a_thin_line_stays_in_one_piece() -> None:
    line = block(50, 50, slice(3, 4), slice(None))  # a fifth of a new pixel: less than half, and off the centres
    assert np.array_equal(resize_mask(line, 10), block(10, 10, slice(0, 1), slice(None)))


def test_a_single_pixel_does_not_disappear() -> None:
    assert np.array_equal(
        resize_mask(block(100, 100, slice(37, 38), slice(82, 83)), 10), block(10, 10, slice(3, 4), slice(8, 9))
    )


def test_enlarging_repeats_pixels_and_an_empty_mask_stays_empty() -> None:
    mask = np.array([[True, False], [False, True]])
    assert np.array_equal(resize_mask(mask, 4), np.kron(mask, np.ones((2, 2), dtype=bool)))
    assert not resize_mask(np.zeros((5, 5), dtype=bool), 3).any()
    assert resize_mask(np.ones((5, 7), dtype=bool), 3).all()


def test_union() -> None:
    one, other = block(2, 2, slice(1), slice(None)), block(2, 2, slice(None), slice(1))
    assert union([one, other], 2).tolist() == [[True, True], [True, False]]
    assert union([], 2).tolist() == [[False, False], [False, False]]


def test_whole_numbers_may_be_written_as_floats() -> None:
    exact = region_mask({"size": [3, 2], "counts": [2, 2, 2]}, 3, 2)
    assert (region_mask({"size": [3, 2], "counts": [2.0, 2.0, 2.0]}, 3, 2) == exact).all()
    with pytest.raises(ValueError, match="whole numbers"):
        region_mask({"size": [3, 2], "counts": [2.5, 1.5, 2.0]}, 3, 2)
