"""The code of the processes that the tests start and kill."""

from __future__ import annotations

import os
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch

from common.search import SearchSettings, search_ranks
from common.search.study import worker
from common.trials import read_log
from tests.brevity import time_briefly
from tests.forked import PROCESSES
from tests.networks import tiny_cnn, tiny_digits

KILLS = int(os.environ.get("SEARCH_KILLS", "5"))
TRIALS_A_KILL = 5
"""More than end between two kills, so that some are left after the last."""
SETTINGS = SearchSettings(
    method="svd", trials=TRIALS_A_KILL * KILLS, batch=4, startup=6, finetune_top=0, sensitivity_images=16
)


def search(logs: str, run: str, storage: str | None = None) -> None:
    """Begin a study, or go on with it, to its end; a trial takes about 0.1 s."""
    time_briefly()
    search_ranks(tiny_cnn(), tiny_digits(), SETTINGS, logs=logs, run=run, storage=storage)


def take_part(study: str, storage: str, logs: str, weights: str, name: str) -> None:
    """A worker as from the command line, whose trials take their time: they must not end before the kills do."""
    arguments = ["--study", study, "--storage", storage, "--logs", logs, "--weights", weights, "--name", name]
    raise SystemExit(worker.main(arguments))


def start(target: Any, *arguments: Any) -> BaseProcess:
    process = PROCESSES.Process(target=_quietly, args=(target, *arguments), daemon=True)
    process.start()
    return process


def _quietly(target: Any, *arguments: Any) -> None:
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)
    os.dup2(null, 2)
    torch.set_num_threads(1)  # several of them share the processors
    target(*arguments)


def logged(logs: Path, pattern: str) -> list[int]:
    """Numbers of the trials in the logs that match, in order."""
    return sorted(record.trial for path in logs.glob(pattern) for record in read_log(path)[0])
