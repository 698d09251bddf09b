"""Another process on a study: ``python -m common.search.study.worker --study NAME --storage URL``.

Start any number of them, on any machine that reaches the storage and the data. Each runs trials until all are done.
The process that called :func:`common.search.search_ranks` then fine-tunes and tests the best.
"""

from __future__ import annotations

import argparse
import os
import signal
import socket
import sys
from pathlib import Path
from types import FrameType

import optuna
from torch import nn

from common.compression import load_compressed
from common.data import DataBundle, load_data
from common.environment import default_device
from common.files import check_writable
from common.search.preparation import decompose_for_search, prepare
from common.search.study.records import Recorder
from common.search.study.runner import Runner, SameFailure
from common.search.study.specification import SPECIFICATION, StudySpecification, data_digest, network_digest
from common.search.study.storage import STORAGE_ERRORS, open_study, opened_storage
from common.trials import TrialLines, TrialWriter

TOLERANCE = 0.02
"""How much the dense network's metric may differ from the study's, because processors round differently."""


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    summary, _, rest = (__doc__ or "").partition("\n\n")
    parser = argparse.ArgumentParser(prog="python -m common.search.study.worker", description=summary, epilog=rest)
    parser.add_argument("--study", required=True, help="name of the study, which is that of the run")
    parser.add_argument("--storage", required=True, help="URL of the storage, or a journal file")
    parser.add_argument("--data-root", help="folder that holds the data set here; default: where it was for the study")
    parser.add_argument("--weights", help="the dense network's file; default: where the study says it is")
    parser.add_argument("--logs", default="logs", help="folder for this worker's log; default: %(default)s")
    parser.add_argument(
        "--name", default=f"{socket.gethostname()}-{os.getpid()}", help="of this worker; default: %(default)s"
    )
    return parser.parse_args(arguments)


def load_network(specification: StudySpecification, weights: str | None) -> nn.Module:
    """Load the study's dense network.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file holds another network, or one that only its own code can build.
    """
    path = Path(weights or specification.weights)
    if not path.is_file():
        raise FileNotFoundError(
            f"weights={str(path)!r}: there is no such file; copy it here and name it with --weights"
        )
    model = load_compressed(path).to(default_device())
    if network_digest(model) != specification.network:
        raise ValueError(f"weights={str(path)!r} holds other weights than the study was begun with")
    return model


def load_data_for(specification: StudySpecification, root: str | None) -> DataBundle:
    """Load the study's data.

    Raises:
        ValueError: the data did not come from ``load_data``, or the data here differ.
    """
    if not specification.dataset:
        raise ValueError("the study's data did not come from load_data, so only the process that began it has them")
    # A study that others made must not name a folder to download to.
    data = load_data(**{**specification.dataset, "download": False, **({"root": root} if root else {})})
    if data_digest(data) != specification.data:
        raise ValueError(
            f"data_root={root or specification.dataset['root']!r} holds other data than the study was begun with"
        )
    return data


def main(arguments: list[str] | None = None) -> int:
    """Take part in the study until all of its trials are done. Return the exit status, 130 after an interruption.

    Raises:
        ValueError: the folder of the logs cannot be written; the storage cannot be opened or holds no such study; or
            the network or the data are not those of the study.
        SameFailure: many trials in a row failed for one reason.
        StorageInternalError, SQLAlchemyError: a database stayed away or broke a connection at a bad moment. Nothing
            finished is lost; the same call continues.
    """
    options = parse_arguments(arguments)
    check_writable(options.logs)
    with opened_storage(options.storage) as storage:
        return _take_part(options, open_study(options.study, storage, None))


def _take_part(options: argparse.Namespace, study: optuna.Study) -> int:
    if SPECIFICATION not in study.user_attrs:
        raise ValueError(f"study={options.study!r} is not ready for workers; search_ranks is to begin it")
    specification = StudySpecification.from_json(study.user_attrs[SPECIFICATION])
    data = load_data_for(specification, options.data_root)
    model = load_network(specification, options.weights)
    decompositions = decompose_for_search(
        model, data, specification.settings.seed, specification.data_aware, specification.sweeps
    )
    prepared = prepare(model, data, specification, decompositions)
    here, there = prepared.objective.dense_metrics, specification.baseline["metrics"]["validation"]
    if abs(here[data.metric] - there[data.metric]) > TOLERANCE:
        figures = f"{here[data.metric]:.4f} here and {there[data.metric]:.4f} where the study was begun"
        raise ValueError(f"the dense network's {data.metric} on validation is {figures}; its data must differ")
    signal.signal(signal.SIGTERM, _stop)
    run = f"{options.study}-{options.name}"
    with TrialWriter(options.logs, run) as writer:
        recorder = Recorder(options.study, run, data, specification, prepared.objective.decompositions)
        try:
            Runner(study, prepared, recorder, writer, TrialLines(), options.name).run()
        except KeyboardInterrupt:
            writer.note("stopped; the trial under way is left to the others")
            return 130
    return 0


def _stop(number: int, frame: FrameType | None) -> None:
    """End the worker on a batch system's SIGTERM, as on Ctrl-C."""
    raise KeyboardInterrupt


if __name__ == "__main__":
    try:
        sys.exit(main())
    except (ValueError, OSError, SameFailure, *STORAGE_ERRORS) as error:
        sys.exit(f"worker: {error}")
