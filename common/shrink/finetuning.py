"""Fine-tune a small network, and the dense one beside it, so that both have had the same training."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from torch import nn

from common.data import DataBundle
from common.network.copies import independent_copy
from common.planning import plan_of
from common.search.study.specification import network_digest
from common.training import TRAINING_ERRORS, EpochLog, TrainingSettings, evaluate, train

DENSE_TUNED, SMALL_TUNED = "dense-tuned", "small-tuned"
"""Titles of the networks after fine-tuning."""
CHECKPOINT = ".checkpoint"
"""Ending of the states of trainings. Their names tell networks apart, see :func:`_digest`."""


def finetuned(
    dense: nn.Module,
    small: nn.Module,
    data: DataBundle,
    settings: TrainingSettings,
    *,
    checkpoints: Path | None = None,
) -> tuple[dict[str, nn.Module], list[EpochLog]]:
    """Fine-tune copies of the small network and, for comparison, of the dense one, with the dense one as teacher.

    A copy that is worse on validation than the network that it began as, or whose training failed, is left out, and a
    line says so.

    Args:
        dense: the dense network. It stays unchanged.
        small: the small network. It stays unchanged.
        data: its training and validation splits are read.
        settings: of both trainings.
        checkpoints: folder for the state of both trainings after each epoch. If they are interrupted, the same call
            continues from there. Once the networks are saved, call :func:`remove_checkpoints`. None writes none.

    Returns:
        ``dense-tuned`` and ``small-tuned``, and the history of the latter, empty if its training failed.
    """
    better: dict[str, nn.Module] = {}
    history: list[EpochLog] = []
    for title, network in ((DENSE_TUNED, dense), (SMALL_TUNED, small)):
        tuned = independent_copy(network)
        checkpoint = checkpoints / f"{title}-{_digest(dense, network)}{CHECKPOINT}" if checkpoints else None
        try:
            history = train(tuned, data, settings, teacher=dense, checkpoint=checkpoint, description=title)
        except TRAINING_ERRORS as error:
            history = []
            print(f"{title} is left out, fine-tuning failed: {type(error).__name__}: {error}")
            continue
        before, after = (evaluate(each, data.validation, data.task)[data.metric] for each in (network, tuned))
        if after < before:
            print(f"{title} is worse on validation than before, {after:.2%} after {before:.2%}: it is left out")
        else:
            better[title] = tuned
    return better, history


def _digest(dense: nn.Module, network: nn.Module) -> str:
    """A short digest of the dense network's weights and of the plan of ``network``; of its weights, if it has none.

    The weights of a small network may differ in their last digits when it is made again.
    """
    plan = plan_of(network)
    parts = network_digest(dense), json.dumps(plan.to_json()) if plan else network_digest(network)
    return hashlib.sha256("".join(parts).encode()).hexdigest()[:12]


def remove_checkpoints(folder: Path) -> None:
    """Remove the states of trainings in a folder."""
    for title in (DENSE_TUNED, SMALL_TUNED):
        for file in folder.glob(f"{title}-*{CHECKPOINT}"):
            file.unlink()
