from __future__ import annotations

import numpy as np
import pytest

from common.reporting import figures
from tests.records import make_baseline, make_record
from tests.reporting.drawn import texts


def test_training_curves() -> None:
    history = [
        {"epoch": 1, "train_loss": 2.0, "loss": 2.1, "accuracy": 0.5, "lr": 0.1},
        {"epoch": 2, "train_loss": 1.0, "loss": float("nan"), "accuracy": 0.75, "lr": 0.01},
    ]
    left, right = figures.training_curves(history).axes
    assert [line.get_label() for line in left.get_lines()] == ["train loss", "validation loss"]
    assert [line.get_label() for line in right.get_lines()] == ["accuracy"]
    assert np.asarray(left.get_lines()[0].get_xydata()).tolist() == [[1, 2], [2, 1]]
    assert np.asarray(right.get_lines()[0].get_xydata()).tolist() == [[1, 50], [2, 75]]
    assert (left.get_xlabel(), left.get_ylabel(), right.get_ylabel()) == ("Epoch", "Loss", "Validation metric (%)")
    assert "No epoch" in texts(figures.training_curves([]))


def test_progress_by_hand() -> None:
    dense = make_baseline()["params"]
    shares, good = (0.5, 0.8, 0.1, 0.2), {"raw": {"accuracy": 0.95}}
    records = [
        make_record(trial=n, params=round(share * dense), metrics=good if share > 0.1 else {"raw": {"accuracy": 0.1}})
        for n, share in enumerate(shares)
    ]
    figure = figures.progress(records)
    trials, spent = (np.asarray(axes.get_lines()[0].get_xydata()) for axes in figure.axes)
    assert trials[:, 0].tolist() == [1, 2, 3, 4]
    assert trials[:, 1] == pytest.approx([50, 50, 50, 20], abs=1e-4)
    assert spent[:, 0] == pytest.approx([n * 41.7 / 60 for n in (1, 2, 3, 4)])
    assert [axes.get_xlabel() for axes in figure.axes] == ["Trials made", "Time spent in trials (min)"]
    assert "No accepted trial" in texts(figures.progress(records[2:3]))


def test_progress_keeps_a_model_without_a_long_search() -> None:
    searched = [make_record(trial=n) for n in range(10)]
    rule = make_record(trial=10, rule="energy", details={"sampler": "energy"})
    small = [make_record(run="v", model="vgg16", trial=n) for n in range(3)]
    figure = figures.progress([*searched, rule, *small])
    assert [axes.get_title("left") for axes in figure.axes[::2]] == ["resnet18 (cifar10)", "vgg16 (cifar10)"]
    assert [len(axes.get_lines()) for axes in figure.axes[::2]] == [1, 1]  # the single trial of the rule is left out


def test_progress_says_how_many_searches_have_a_line() -> None:
    good, bad = ({"raw": {"accuracy": value}} for value in (0.95, 0.5))
    searches = [
        make_record(run=f"r{seed}", seed=seed, trial=n, metrics=good if seed < 1 else bad)
        for seed in range(3)
        for n in range(10)
    ]
    titles = [axes.get_title("left") for axes in figures.progress(searches).axes]
    assert titles[0] == "resnet18 (cifar10): 1 of 3 searches"
    assert figures.progress(searches[:10]).axes[0].get_title("left") == "resnet18 (cifar10)"
