"""The programs that the tests kill. Each does one thing again and again, so that a kill meets it at any moment."""

from __future__ import annotations

import resource
from pathlib import Path

import torch

import analyze_results
import jsonify_logs
from common.compression import save_compressed
from common.deploy import export_onnx
from common.search import SearchSettings, search_ranks
from common.training import TrainingSettings, train
from tests.brevity import time_briefly
from tests.networks import tiny_cnn, tiny_digits

SETTINGS = SearchSettings(method="svd", trials=8, batch=4, startup=6, finetune_top=0, sensitivity_images=16)
WIDTHS = (8, 16)
"""Of the networks that are saved in turn to one file."""


def keep_saving(path: str) -> None:
    networks = [tiny_cnn(seed, width) for seed, width in enumerate(WIDTHS)]
    while True:
        for network in networks:
            save_compressed(network, path)


def keep_exporting(path: str) -> None:
    while True:
        for seed, width in enumerate(WIDTHS):
            export_onnx(tiny_cnn(seed, width), path, torch.zeros(1, 3, 8, 8))


def train_to_the_end(folder: str, epochs: int) -> None:
    """Train, or continue to train, with a checkpoint in ``folder``; save the network there."""
    model = tiny_cnn()
    settings = TrainingSettings(epochs=float(epochs), amp="off")
    train(model, tiny_digits(), settings, checkpoint=Path(folder) / "t.checkpoint")
    save_compressed(model, Path(folder) / "trained.safetensors")


def analyse(logs: str, out: str) -> None:
    assert jsonify_logs.main([logs, "--out", out]) == 0
    assert analyze_results.main([logs, "--out", out, "--format", "csv", "--format", "html"]) == 0


def keep_analysing(logs: str, out: str) -> None:
    while True:
        analyse(logs, out)


def search_briefly(logs: str) -> None:
    """Begin the search ``r``, or continue it to its end."""
    time_briefly()
    search_ranks(tiny_cnn(), tiny_digits(), SETTINGS, logs=logs, run="r")


def search_on_a_full_disk(logs: str, limit: int) -> None:
    """Search where no file may grow beyond ``limit`` bytes; Python then raises an OSError, as on a full disk."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    search_briefly(logs)


def write_on_a_full_disk(folder: str) -> list[str]:
    """Save a network and train with a checkpoint where no file may grow beyond 2000 bytes; return the errors."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))
    model, errors = tiny_cnn(), []
    settings = TrainingSettings(epochs=1.0, amp="off")
    for write in (
        lambda: save_compressed(model, Path(folder) / "w.safetensors"),
        lambda: train(model, tiny_digits(limit=64), settings, checkpoint=Path(folder) / "t.checkpoint"),
    ):
        try:
            write()
        except OSError as error:
            errors.append(str(error))
    return errors
