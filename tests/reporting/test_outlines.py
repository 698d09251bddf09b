from __future__ import annotations

import numpy as np
import pytest

from common.reporting.figures.outlines import sample_masks


def squares() -> dict[str, np.ndarray]:
    truth = np.zeros((2, 12, 12))
    truth[:, 2:6, 2:6] = 1
    found = np.zeros_like(truth)
    found[0, 2:6, 4:8] = 1  # half of the truth and as many pixels beside it; nothing in the second image
    return {"image": np.random.default_rng(0).random((2, 12, 12)), "truth": truth, "dense": found}


def test_dice_stands_under_each_mask() -> None:
    figure = sample_masks(squares())
    labels = [axes.get_xlabel() for axes in figure.axes]
    assert labels == ["", "", "Dice 0.50", "", "", "Dice 0.00"]
    (key,) = figure.legends
    assert [text.get_text() for text in key.get_texts()] == ["true mask", "mask of the network above the column"]
    assert [axes.get_title() for axes in figure.axes[:3]] == ["image", "truth", "dense"]


def test_outlines_are_drawn_where_there_is_something() -> None:
    first, second = sample_masks(squares()).axes[2], sample_masks(squares()).axes[5]
    assert (len(first.collections), len(second.collections)) == (2, 1)


def test_pictures_of_different_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match=r"'truth': \(2, 11, 12\)"):
        sample_masks({**squares(), "truth": np.zeros((2, 11, 12))})
    with pytest.raises(ValueError, match="images and true masks are needed"):
        sample_masks({"image": np.zeros((1, 4, 4))})
