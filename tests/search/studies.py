"""A small search that several test modules run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn

from common.search import SearchResult, SearchSettings, search_ranks
from common.training import TrainingSettings
from common.trials import TrialRecord
from tests.networks import tiny_digits

SETTINGS = SearchSettings(
    trials=8,
    batch=4,
    keep=0.3,
    finetune_top=2,
    finetune=TrainingSettings(epochs=1.0, learning_rate=0.02, amp="off"),
)


def search(model: nn.Module, folder: Path, run: str = "run", **changes: Any) -> tuple[SearchResult, list[TrialRecord]]:
    seen: list[TrialRecord] = []
    result = search_ranks(model, tiny_digits(), SETTINGS, logs=folder, run=run, on_trial=seen.append, **changes)
    return result, seen
